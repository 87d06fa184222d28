//! Which blocks already hold which prefix: chained hashes of token ids, and the order in which blocks are given up.

use std::collections::{BTreeMap, HashMap};

use millgate_models::BLOCK_TOKENS;
use sha2::{Digest, Sha256};

use super::request::CacheSalt;

/// Names the tokens of one full block and of all blocks before it.
///
/// SHA-256 in full: equal hashes mean equal prefixes of the same tenant, so a hit needs no comparison of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct BlockHash([u8; 32]);

/// Hashes the prefixes of one engine's sequences.
#[derive(Debug, Clone)]
pub(crate) struct PrefixHasher {
    root: BlockHash,
    shared_prefixes: Vec<Vec<u32>>,
}

impl PrefixHasher {
    /// `revision` names everything besides the tokens that decides what a block holds: model, revision, data type.
    pub(crate) fn new(revision: &str, shared_prefixes: Vec<Vec<u32>>) -> Self {
        Self { root: BlockHash(Sha256::digest(revision.as_bytes()).into()), shared_prefixes }
    }

    /// Appends the hashes of the full blocks of `tokens` that `hashes` lacks.
    ///
    /// The salt enters at the first full block that no shared prefix covers whole, and so is in every later one.
    pub(crate) fn extend(&self, tokens: &[u32], salt: CacheSalt, hashes: &mut Vec<BlockHash>) {
        let shared_blocks = self.shared_blocks(tokens);
        for (index, block) in tokens.chunks_exact(BLOCK_TOKENS).enumerate().skip(hashes.len()) {
            let parent = hashes.last().copied().unwrap_or(self.root);
            let mut hash = Sha256::new();
            hash.update(parent.0);
            if index == shared_blocks {
                hash.update(salt.0);
            }
            for token in block {
                hash.update(token.to_le_bytes());
            }
            hashes.push(BlockHash(hash.finalize().into()));
        }
    }

    /// Full blocks at the beginning of `tokens` that lie inside a shared prefix.
    fn shared_blocks(&self, tokens: &[u32]) -> usize {
        let covering = self.shared_prefixes.iter().filter(|prefix| tokens.starts_with(prefix));
        covering.map(|prefix| prefix.len() / BLOCK_TOKENS).max().unwrap_or(0)
    }
}

/// The index of cached blocks. It holds no references: a block is *idle* when no sequence owns it.
#[derive(Debug, Default)]
pub(crate) struct PrefixCache {
    by_hash: HashMap<BlockHash, u32>,
    by_block: HashMap<u32, BlockHash>,
    // Idle blocks by the time of their release, the earliest first: least recently used.
    idle: BTreeMap<u64, u32>,
    idle_since: HashMap<u32, u64>,
    clock: u64,
}

impl PrefixCache {
    /// The block that holds the prefix with this hash.
    pub(crate) fn find(&self, hash: &BlockHash) -> Option<u32> {
        self.by_hash.get(hash).copied()
    }

    /// Remembers that an owned block holds a prefix. `false` when another block already stands for it.
    pub(crate) fn insert(&mut self, hash: BlockHash, block: u32) -> bool {
        if self.by_hash.contains_key(&hash) || self.by_block.contains_key(&block) {
            return false;
        }
        self.by_hash.insert(hash, block);
        self.by_block.insert(block, hash);
        true
    }

    pub(crate) fn holds(&self, block: u32) -> bool {
        self.by_block.contains_key(&block)
    }

    pub(crate) fn is_idle(&self, block: u32) -> bool {
        self.idle_since.contains_key(&block)
    }

    pub(crate) fn idle_len(&self) -> usize {
        self.idle.len()
    }

    /// Forgets a block's prefix.
    pub(crate) fn remove(&mut self, block: u32) {
        self.set_owned(block);
        if let Some(hash) = self.by_block.remove(&block) {
            self.by_hash.remove(&hash);
        }
    }

    /// The last owner of a held block is gone; it may be evicted from now on, after those that became idle before.
    pub(crate) fn set_idle(&mut self, block: u32) {
        debug_assert!(self.holds(block) && !self.is_idle(block));
        self.clock += 1;
        self.idle.insert(self.clock, block);
        self.idle_since.insert(block, self.clock);
    }

    /// A sequence owns the block again.
    pub(crate) fn set_owned(&mut self, block: u32) {
        if let Some(since) = self.idle_since.remove(&block) {
            self.idle.remove(&since);
        }
    }

    /// Forgets the least recently used idle block and returns it.
    pub(crate) fn evict(&mut self) -> Option<u32> {
        let (_, &block) = self.idle.first_key_value()?;
        self.remove(block);
        Some(block)
    }

    /// Whether the four indexes agree.
    pub(crate) fn check(&self) -> Result<(), String> {
        if self.by_hash.len() != self.by_block.len() {
            return Err(format!("{} prefix hashes name {} blocks", self.by_hash.len(), self.by_block.len()));
        }
        if let Some((block, _)) = self.by_block.iter().find(|(block, hash)| self.by_hash.get(hash) != Some(block)) {
            return Err(format!("block {block} and its prefix hash disagree"));
        }
        if self.idle.len() != self.idle_since.len() {
            return Err(format!("{} idle blocks have {} release times", self.idle.len(), self.idle_since.len()));
        }
        match self.idle.iter().find(|&(since, block)| self.idle_since.get(block) != Some(since) || !self.holds(*block))
        {
            Some((_, block)) => Err(format!("idle block {block} is not filed under its release time")),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ANNE: CacheSalt = CacheSalt([1; 16]);
    const BORIS: CacheSalt = CacheSalt([2; 16]);

    fn hashes(hasher: &PrefixHasher, tokens: &[u32], salt: CacheSalt) -> Vec<BlockHash> {
        let mut hashes = Vec::new();
        hasher.extend(tokens, salt, &mut hashes);
        hashes
    }

    fn tokens(count: usize) -> Vec<u32> {
        (0..count as u32).map(|index| index * 7 % 50).collect()
    }

    #[test]
    fn a_hash_depends_on_revision_tenant_and_every_token_before() {
        let hasher = PrefixHasher::new("model@1 bf16", Vec::new());
        let reference = hashes(&hasher, &tokens(96), ANNE);
        assert_eq!(reference.len(), 3);
        assert_ne!(reference[0], hashes(&hasher, &tokens(96), BORIS)[0]);
        assert_ne!(reference[0], hashes(&PrefixHasher::new("model@2 bf16", Vec::new()), &tokens(96), ANNE)[0]);
        let mut changed = tokens(96);
        changed[40] += 1;
        let other = hashes(&hasher, &changed, ANNE);
        assert_eq!(reference[0], other[0]);
        assert_ne!(reference[1], other[1]);
        assert_ne!(reference[2], other[2]);
    }

    #[test]
    fn tenants_share_whole_blocks_of_an_allow_listed_prefix_and_nothing_after() {
        // 70 tokens cover two whole blocks and six tokens of the third.
        let hasher = PrefixHasher::new("m", vec![tokens(70), tokens(40)]);
        let (anne, boris) = (hashes(&hasher, &tokens(128), ANNE), hashes(&hasher, &tokens(128), BORIS));
        assert_eq!(anne[..2], boris[..2]);
        assert_ne!(anne[2], boris[2]);
        assert_ne!(anne[3], boris[3]);
        // A prompt that only begins like the shared prefix is not allow-listed.
        let mut different = tokens(128);
        different[69] += 1;
        assert_eq!(hashes(&hasher, &different, ANNE)[0], anne[0], "the 40-token prefix still covers one block");
        assert_ne!(hashes(&hasher, &different, ANNE)[1], hashes(&hasher, &different, BORIS)[1]);
    }

    #[test]
    fn the_least_recently_released_block_is_evicted_first() {
        let hasher = PrefixHasher::new("m", Vec::new());
        let names = hashes(&hasher, &tokens(96), ANNE);
        let mut cache = PrefixCache::default();
        for (block, &name) in (0..).zip(&names) {
            assert!(cache.insert(name, block));
        }
        for block in [2, 1, 0] {
            cache.set_idle(block);
        }
        cache.set_owned(2);
        cache.set_idle(2);
        assert_eq!([cache.evict(), cache.evict(), cache.evict(), cache.evict()], [Some(1), Some(0), Some(2), None]);
        assert_eq!(cache.find(&names[0]), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn hashing_in_any_number_of_goes_gives_the_same_chain(cuts in prop::collection::vec(0_usize..40, 0..8)) {
            let hasher = PrefixHasher::new("m", vec![tokens(64)]);
            let whole = hashes(&hasher, &tokens(200), ANNE);
            let mut grown = Vec::new();
            let mut len = 64; // The prompt, which holds the shared prefix, is always there from the start.
            for cut in cuts {
                hasher.extend(&tokens(len), ANNE, &mut grown);
                len = (len + cut).min(200);
            }
            hasher.extend(&tokens(200), ANNE, &mut grown);
            prop_assert_eq!(whole, grown);
        }
    }
}
