//! Who owns which block of the paged cache: reference counts, free blocks, and blocks kept for their prefix.

use super::handle::BlockCounts;
use super::prefix_cache::{BlockHash, PrefixCache};

/// The blocks of one model's cache. Decides only; the data is the model's.
///
/// INVARIANT: a block is exactly one of free, cached (held by the prefix cache, owned by nobody) and owned; and a
/// block held by the prefix cache is never written to.
#[derive(Debug)]
pub(crate) struct Blocks {
    owners: Vec<u32>,
    /// Blocks with owners.
    owned: usize,
    free: Vec<u32>,
    cache: PrefixCache,
}

/// What a sequence must do before it writes to a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Writable {
    /// Write in place.
    Yes,
    /// Others read it too: write to a copy.
    NeedsCopy,
}

impl Blocks {
    pub(crate) fn new(total: usize) -> Self {
        let total = u32::try_from(total).expect("block ids are 32 bits wide, and so is the models' count");
        // Taken from the end, so low ids first: short runs touch little memory.
        let free = (0..total).rev().collect();
        Self { owners: vec![0; total as usize], owned: 0, free, cache: PrefixCache::default() }
    }

    /// Blocks that [`Blocks::allocate`] can still hand out.
    pub(crate) fn available(&self) -> usize {
        self.free.len() + self.cache.idle_len()
    }

    /// A block for one new owner: a free one, else the least recently used cached one.
    pub(crate) fn allocate(&mut self) -> Option<u32> {
        let block = self.free.pop().or_else(|| self.cache.evict())?;
        self.owners[block as usize] = 1;
        self.owned += 1;
        Some(block)
    }

    /// Adds an owner to a block that is owned or cached.
    pub(crate) fn retain(&mut self, block: u32) {
        debug_assert!(
            self.owners[block as usize] > 0 || self.cache.is_idle(block),
            "a free block has nothing to share"
        );
        self.cache.set_owned(block);
        let owners = &mut self.owners[block as usize];
        self.owned += usize::from(*owners == 0);
        *owners += 1;
    }

    /// Takes one owner from a block.
    pub(crate) fn release(&mut self, block: u32) {
        let owners = &mut self.owners[block as usize];
        debug_assert!(*owners > 0, "only an owner releases a block");
        *owners -= 1;
        if *owners == 0 {
            self.owned -= 1;
            if self.cache.holds(block) {
                self.cache.set_idle(block);
            } else {
                self.free.push(block);
            }
        }
    }

    /// Takes one owner from every block of a sequence.
    pub(crate) fn release_table(&mut self, table: &[u32]) {
        // In reverse, so the prefix, the part worth caching, is evicted last.
        for &block in table.iter().rev() {
            self.release(block);
        }
    }

    /// Prepares a write to a block that the caller owns.
    pub(crate) fn prepare_write(&mut self, block: u32) -> Writable {
        if self.owners[block as usize] > 1 {
            return Writable::NeedsCopy;
        }
        self.cache.remove(block);
        Writable::Yes
    }

    /// Keeps an owned, full and computed block findable by its prefix.
    pub(crate) fn publish(&mut self, block: u32, hash: BlockHash) {
        debug_assert!(self.owners[block as usize] > 0);
        self.cache.insert(hash, block);
    }

    /// The blocks that hold the longest cached beginning of a chain. Their owners are unchanged.
    pub(crate) fn find_prefix(&self, chain: &[BlockHash]) -> Vec<u32> {
        chain.iter().map_while(|hash| self.cache.find(hash)).collect()
    }

    /// How many of these blocks nobody owns.
    pub(crate) fn count_idle(&self, blocks: &[u32]) -> usize {
        blocks.iter().filter(|&&block| self.cache.is_idle(block)).count()
    }

    pub(crate) fn counts(&self) -> BlockCounts {
        let (free, cached) = (self.free.len(), self.cache.idle_len());
        BlockCounts { free, cached, owned: self.owned, total: self.owners.len() }
    }

    /// Checks the books against the tables of all sequences.
    ///
    /// # Errors
    /// A sentence that names the first disagreement.
    pub(crate) fn check<'a>(&self, tables: impl Iterator<Item = &'a [u32]>) -> Result<(), String> {
        let BlockCounts { free, cached, owned, total } = self.counts();
        if free + cached + owned != total {
            return Err(format!("{free} free, {cached} cached and {owned} owned blocks are not {total}"));
        }
        let mut owners = vec![0_u32; total];
        for &block in tables.flatten() {
            owners[block as usize] += 1;
        }
        if let Some(block) = (0..total).find(|&block| owners[block] != self.owners[block]) {
            let (found, booked) = (owners[block], self.owners[block]);
            return Err(format!("block {block} is in {found} tables and has {booked} owners booked"));
        }
        let mut is_free = vec![false; total];
        for &block in &self.free {
            let has_owner = self.owners[block as usize] > 0;
            if has_owner || self.cache.holds(block) || std::mem::replace(&mut is_free[block as usize], true) {
                return Err(format!("block {block} is on the free list and something else too"));
            }
        }
        self.cache.check()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::prefix_cache::PrefixHasher;
    use crate::engine::request::CacheSalt;
    use proptest::prelude::*;

    fn chain(tokens: &[u32]) -> Vec<BlockHash> {
        let mut hashes = Vec::new();
        PrefixHasher::new("m", Vec::new()).extend(tokens, CacheSalt([0; 16]), &mut hashes);
        hashes
    }

    #[test]
    fn a_released_prefix_is_evicted_from_its_end() {
        let mut blocks = Blocks::new(3);
        let names = chain(&[5; 96]);
        let table: Vec<u32> = (0..3).map(|_| blocks.allocate().unwrap()).collect();
        for (&block, &name) in table.iter().zip(&names) {
            blocks.publish(block, name);
        }
        blocks.release_table(&table);
        assert_eq!(blocks.counts(), BlockCounts { free: 0, cached: 3, owned: 0, total: 3 });
        assert_eq!(blocks.allocate(), Some(table[2]));
        assert_eq!(blocks.find_prefix(&names), table[..2]);
    }

    #[test]
    fn a_shared_block_must_be_copied_and_a_cached_one_is_forgotten_before_a_write() {
        let mut blocks = Blocks::new(2);
        let names = chain(&[5; 32]);
        let block = blocks.allocate().unwrap();
        blocks.publish(block, names[0]);
        blocks.retain(block);
        assert_eq!(blocks.prepare_write(block), Writable::NeedsCopy);
        assert_eq!(blocks.find_prefix(&names), [block]);
        blocks.release(block);
        assert_eq!(blocks.prepare_write(block), Writable::Yes);
        assert!(blocks.find_prefix(&names).is_empty());
    }

    #[derive(Debug, Clone)]
    enum Act {
        Grow(usize),
        Publish(usize),
        Fork(usize),
        Write(usize),
        End(usize),
        Reuse(u32),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            3 => (0_usize..6).prop_map(Act::Grow),
            2 => (0_usize..6).prop_map(Act::Publish),
            1 => (0_usize..6).prop_map(Act::Fork),
            2 => (0_usize..6).prop_map(Act::Write),
            1 => (0_usize..6).prop_map(Act::End),
            2 => (0_u32..3).prop_map(Act::Reuse),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_sequences_do_no_block_is_lost_doubled_or_written_while_shared(
            acts in prop::collection::vec(act(), 1..120),
        ) {
            let mut blocks = Blocks::new(9);
            // Each sequence: its content family and its table. All blocks of a family hold the same chain.
            let mut sequences: Vec<(u32, Vec<u32>)> = Vec::new();
            let chains: Vec<_> = (0..3_u32).map(|family| chain(&[family; 32 * 12])).collect();
            for act in acts {
                match act {
                    Act::Grow(at) if at < sequences.len() => {
                        let before = blocks.available();
                        match blocks.allocate() {
                            Some(block) => sequences[at].1.push(block),
                            None => prop_assert_eq!(before, 0),
                        }
                    }
                    Act::Publish(at) if at < sequences.len() => {
                        let (family, table) = &sequences[at];
                        for (&block, &hash) in table.iter().zip(&chains[*family as usize]) {
                            blocks.publish(block, hash);
                        }
                    }
                    Act::Fork(at) if at < sequences.len() => {
                        let copy = sequences[at].clone();
                        copy.1.iter().for_each(|&block| blocks.retain(block));
                        sequences.push(copy);
                    }
                    Act::Write(at) if at < sequences.len() && !sequences[at].1.is_empty() => {
                        let last = *sequences[at].1.last().unwrap();
                        let readers = sequences.iter().flat_map(|(_, table)| table).filter(|&&block| block == last);
                        let is_shared = readers.count() > 1;
                        let verdict = blocks.prepare_write(last);
                        prop_assert_eq!(verdict == Writable::NeedsCopy, is_shared);
                        prop_assert!(is_shared || chains.iter().all(|chain| !blocks.find_prefix(chain).contains(&last)));
                        if is_shared && let Some(copy) = blocks.allocate() {
                            blocks.release(last);
                            *sequences[at].1.last_mut().unwrap() = copy;
                        }
                    }
                    Act::End(at) if at < sequences.len() => {
                        let (_, table) = sequences.remove(at);
                        blocks.release_table(&table);
                    }
                    Act::Reuse(family) => {
                        let found = blocks.find_prefix(&chains[family as usize]);
                        found.iter().for_each(|&block| blocks.retain(block));
                        sequences.push((family, found));
                    }
                    _ => {}
                }
                let tables = sequences.iter().map(|(_, table)| table.as_slice());
                prop_assert_eq!(blocks.check(tables), Ok(()));
            }
        }
    }
}
