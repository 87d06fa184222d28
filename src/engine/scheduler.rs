//! Decides what the next step computes: which sequences, how much of each, and whose blocks are given up for it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use millgate_models::BLOCK_TOKENS;

use super::blocks::{Blocks, Writable};
use super::handle::BlockCounts;
use super::prefix_cache::PrefixHasher;
use super::request::CacheSalt;
use super::sequence::{Sequence, SequenceId};

/// What fits into a step of this model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    pub(crate) num_blocks: usize,
    pub(crate) max_step_tokens: usize,
    pub(crate) max_output_rows: usize,
    /// Sequences with blocks at the same time; the choices of one request may exceed it when it is alone.
    pub(crate) max_running: usize,
}

/// What the scheduler knows of a request.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Terms {
    pub(crate) choices: u32,
    /// Completion tokens that may still be sampled, by all choices together.
    pub(crate) allowance: u64,
    /// Whether tokens are drawn at all; not when only the prompt's log probabilities are wanted.
    pub(crate) draws_tokens: bool,
    pub(crate) priority: u8,
    pub(crate) salt: CacheSalt,
}

/// One sequence's part of a step: the tokens `first..first + count` of what is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Item {
    pub(crate) id: SequenceId,
    pub(crate) first: usize,
    pub(crate) count: usize,
    /// Completion tokens drawn from the last row: one, or one a choice when the prompt ends here, or none.
    pub(crate) draws: u32,
}

/// What a step does.
#[derive(Debug, Clone, Default)]
pub(crate) struct Plan {
    /// Blocks to copy before the forward pass, in this order: from, to.
    pub(crate) copies: Vec<(u32, u32)>,
    pub(crate) items: Vec<Item>,
    /// Sequences that got a place, with the tokens found in the prefix cache.
    pub(crate) admitted: Vec<(SequenceId, usize)>,
}

/// Order of service: higher priority, then earlier arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    priority: Reverse<u8>,
    id: SequenceId,
}

/// All live sequences and the blocks they own.
///
/// First come, first served within a priority. A sequence that lacks a block takes it from one that stands at zero
/// allowance, else from the one served last; that one is computed again later. Nothing overtakes the head of the
/// waiting line, so every sequence gets its turn.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    blocks: Blocks,
    /// `None` when prefixes are not kept.
    hasher: Option<PrefixHasher>,
    requests: BTreeMap<u64, Terms>,
    sequences: BTreeMap<SequenceId, Sequence>,
    waiting: BTreeSet<Rank>,
    running: BTreeSet<Rank>,
    /// Step in which a running sequence last had a part, for turns when there are more than rows.
    last_turn: HashMap<SequenceId, u64>,
    steps: u64,
    preemptions: u64,
}

/// What is left of a step while it is planned.
struct Room {
    tokens: usize,
    rows: usize,
    /// Draws given out in this step, by request.
    drawn: HashMap<u64, u64>,
    planned: BTreeSet<SequenceId>,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits, hasher: Option<PrefixHasher>) -> Self {
        Self {
            limits,
            blocks: Blocks::new(limits.num_blocks),
            hasher,
            requests: BTreeMap::new(),
            sequences: BTreeMap::new(),
            waiting: BTreeSet::new(),
            running: BTreeSet::new(),
            last_turn: HashMap::new(),
            steps: 0,
            preemptions: 0,
        }
    }

    /// Puts a request in line; its first sequence computes the prompt for all choices.
    pub(crate) fn add(&mut self, terms: Terms, sequence: Sequence) {
        self.requests.insert(sequence.id.request, terms);
        self.waiting.insert(Rank { priority: Reverse(terms.priority), id: sequence.id });
        self.sequences.insert(sequence.id, sequence);
    }

    /// Plans the next step. `prefill_tokens` bounds the prompt tokens in a step that has decode rows.
    pub(crate) fn plan(&mut self, prefill_tokens: usize) -> Plan {
        self.steps += 1;
        let mut plan = Plan::default();
        let mut room = Room {
            tokens: self.limits.max_step_tokens,
            rows: self.limits.max_output_rows,
            drawn: HashMap::new(),
            planned: BTreeSet::new(),
        };
        for rank in self.decoders() {
            self.plan_item(rank, &mut room, &mut plan);
        }
        if !plan.items.is_empty() {
            room.tokens = room.tokens.min(prefill_tokens);
        }
        let unfinished: Vec<Rank> = self.running.iter().copied().filter(|rank| self.pending(rank.id) > 1).collect();
        for rank in unfinished {
            self.plan_item(rank, &mut room, &mut plan);
        }
        self.admit(&mut room, &mut plan);
        for item in &plan.items {
            self.last_turn.insert(item.id, self.steps);
        }
        plan
    }

    /// Books a step that was computed, and offers its full blocks to the prefix cache.
    pub(crate) fn complete(&mut self, items: &[Item]) {
        for item in items {
            let Some(sequence) = self.sequences.get_mut(&item.id) else { continue };
            sequence.computed = item.first + item.count;
            let Some(hasher) = &self.hasher else { continue };
            let full = sequence.computed / BLOCK_TOKENS;
            if full > sequence.published {
                let salt = self.requests[&item.id.request].salt;
                hasher.extend(&sequence.known, salt, &mut sequence.hashes);
                for index in sequence.published..full {
                    self.blocks.publish(sequence.table[index], sequence.hashes[index]);
                }
                sequence.published = full;
            }
        }
    }

    /// Splits the computed prompt of a request into one sequence a choice, which share its blocks.
    pub(crate) fn fork(&mut self, request: u64) {
        let terms = self.requests[&request];
        let leader =
            self.sequences.get_mut(&SequenceId { request, choice: 0 }).expect("the leader computed the prompt");
        leader.has_forked = true;
        let leader = leader.clone();
        for choice in 1..terms.choices {
            let id = SequenceId { request, choice };
            leader.table.iter().for_each(|&block| self.blocks.retain(block));
            self.running.insert(Rank { priority: Reverse(terms.priority), id });
            self.sequences.insert(id, Sequence { id, ..leader.clone() });
        }
    }

    /// Appends a sampled token and takes it from the allowance.
    pub(crate) fn append(&mut self, id: SequenceId, token: u32) {
        let terms = self.requests.get_mut(&id.request).expect("a live sequence has a request");
        debug_assert!(terms.allowance > 0, "a token is drawn only where the allowance covers it");
        terms.allowance = terms.allowance.saturating_sub(1);
        self.sequences.get_mut(&id).expect("only live sequences are sampled").known.push(token);
    }

    /// Has the last token computed again: its row could not be used yet.
    pub(crate) fn roll_back(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are rolled back");
        sequence.computed = sequence.computed.min(sequence.known.len() - 1);
    }

    /// Removes a sequence and frees its blocks; unknown ones are passed over.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.remove(&id) else { return };
        self.blocks.release_table(&sequence.table);
        let rank = Rank { priority: Reverse(self.requests[&id.request].priority), id };
        self.waiting.remove(&rank);
        self.running.remove(&rank);
        self.last_turn.remove(&id);
    }

    /// Removes a request with all its sequences.
    pub(crate) fn remove_request(&mut self, request: u64) {
        let ids = SequenceId { request, choice: 0 }..=SequenceId { request, choice: u32::MAX };
        let ids: Vec<SequenceId> = self.sequences.range(ids).map(|(&id, _)| id).collect();
        ids.into_iter().for_each(|id| self.remove(id));
        self.requests.remove(&request);
    }

    /// Adds to a request's allowance.
    pub(crate) fn grant(&mut self, request: u64, tokens: u64) {
        if let Some(terms) = self.requests.get_mut(&request) {
            terms.allowance = terms.allowance.saturating_add(tokens);
        }
    }

    /// Completion tokens that a request may still sample.
    pub(crate) fn allowance(&self, request: u64) -> u64 {
        self.requests.get(&request).map_or(0, |terms| terms.allowance)
    }

    /// Whether a live request stands still for want of allowance.
    pub(crate) fn is_parked(&self, request: u64) -> bool {
        self.requests.get(&request).is_some_and(|terms| terms.draws_tokens && terms.allowance == 0)
    }

    pub(crate) fn sequence(&self, id: SequenceId) -> Option<&Sequence> {
        self.sequences.get(&id)
    }

    /// Records up to which position the prompt's log probabilities are known, so that a recompute skips them.
    pub(crate) fn scored(&mut self, id: SequenceId, position: usize) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.score_from = sequence.score_from.max(position);
        }
    }

    pub(crate) fn running_len(&self) -> usize {
        self.running.len()
    }

    pub(crate) fn waiting_len(&self) -> usize {
        self.waiting.len()
    }

    pub(crate) fn preemptions(&self) -> u64 {
        self.preemptions
    }

    pub(crate) fn block_counts(&self) -> BlockCounts {
        self.blocks.counts()
    }

    /// Checks all books against each other.
    ///
    /// # Errors
    /// A sentence that names the first disagreement.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.blocks.check(self.sequences.values().map(|sequence| sequence.table.as_slice()))?;
        let placed = self.running.len() + self.waiting.len();
        if placed != self.sequences.len() {
            return Err(format!("{placed} sequences have a place and {} live", self.sequences.len()));
        }
        for sequence in self.sequences.values() {
            let id = sequence.id;
            let Some(terms) = self.requests.get(&id.request) else { return Err(format!("{id:?} has no request")) };
            let is_waiting = self.waiting.contains(&Rank { priority: Reverse(terms.priority), id });
            if is_waiting && !sequence.table.is_empty() {
                return Err(format!("{id:?} waits and owns blocks"));
            }
            if sequence.computed > sequence.table.len() * BLOCK_TOKENS || sequence.computed >= sequence.known.len() {
                let (computed, known) = (sequence.computed, sequence.known.len());
                return Err(format!("{id:?} has {computed} of {known} tokens in {} blocks", sequence.table.len()));
            }
        }
        Ok(())
    }

    fn pending(&self, id: SequenceId) -> usize {
        self.sequences[&id].pending()
    }

    /// Running sequences with one token to compute, in order of service. When they outnumber the rows, those whose last
    /// turn is longest ago come first; all are named, for one that finds no block must not hold up the others.
    fn decoders(&self) -> Vec<Rank> {
        let ready = |rank: &Rank| self.pending(rank.id) == 1 && !self.is_parked(rank.id.request);
        let mut decoders: Vec<Rank> = self.running.iter().copied().filter(ready).collect();
        let most = self.limits.max_output_rows.min(self.limits.max_step_tokens);
        if decoders.len() > most {
            decoders.sort_by_key(|rank| (self.last_turn.get(&rank.id).copied(), *rank));
        }
        decoders
    }

    /// Gives a running sequence as much of the step as there is room, allowance and cache for.
    fn plan_item(&mut self, rank: Rank, room: &mut Room, plan: &mut Plan) {
        // It may have lost its place to a sequence planned before it.
        if !self.running.contains(&rank) || room.planned.contains(&rank.id) || self.is_parked(rank.id.request) {
            return;
        }
        let Some((count, draws)) = self.portion(rank.id, room) else { return };
        let first = self.sequences[&rank.id].computed;
        let mut fits = self.reserve(rank.id, first + count, plan);
        while fits < first + count && self.make_room(rank, room) {
            fits = self.reserve(rank.id, first + count, plan);
        }
        let Some(count) = fits.checked_sub(first).filter(|&fits| fits > 0).map(|fits| fits.min(count)) else { return };
        let draws = if first + count == self.sequences[&rank.id].known.len() { draws } else { 0 };
        let scores = self.sequences[&rank.id].score_positions(first, count).len();
        room.tokens -= count;
        room.rows -= scores + usize::from(draws > 0);
        *room.drawn.entry(rank.id.request).or_default() += u64::from(draws);
        room.planned.insert(rank.id);
        plan.items.push(Item { id: rank.id, first, count, draws });
    }

    /// How many tokens of a sequence the step has room for, and how many draws follow from its last row.
    fn portion(&self, id: SequenceId, room: &Room) -> Option<(usize, u32)> {
        let (sequence, terms) = (&self.sequences[&id], &self.requests[&id.request]);
        let mut count = sequence.pending().min(room.tokens);
        let mut rows = room.rows;
        let mut draws = 0;
        if count == sequence.pending() && terms.draws_tokens {
            let left = terms.allowance.saturating_sub(room.drawn.get(&id.request).copied().unwrap_or(0));
            let wanted = if sequence.has_forked { 1 } else { terms.choices };
            draws = u32::try_from(left).map_or(wanted, |left| wanted.min(left));
            if draws == 0 || rows == 0 {
                draws = 0;
                count -= 1;
            } else {
                rows -= 1;
            }
        }
        let scores = sequence.score_positions(sequence.computed, count);
        if scores.len() > rows {
            // Every position from the first score on needs a row.
            count = scores.start + rows - sequence.computed;
            draws = 0;
        }
        (count > 0).then_some((count, draws))
    }

    /// Makes the cache of a sequence ready to be written up to `end` (exclusive) and returns how far it is ready.
    fn reserve(&mut self, id: SequenceId, end: usize, plan: &mut Plan) -> usize {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are planned");
        let first_block = sequence.computed / BLOCK_TOKENS;
        for index in first_block..end.div_ceil(BLOCK_TOKENS) {
            if index == sequence.table.len() {
                let Some(block) = self.blocks.allocate() else { return index * BLOCK_TOKENS };
                sequence.table.push(block);
                continue;
            }
            let block = sequence.table[index];
            if self.blocks.prepare_write(block) == Writable::NeedsCopy {
                let Some(copy) = self.blocks.allocate() else { return (index * BLOCK_TOKENS).max(sequence.computed) };
                plan.copies.push((block, copy));
                sequence.table[index] = copy;
                self.blocks.release(block);
            }
            // The write may leave a block that holds other tokens than its prefix hash said.
            sequence.published = sequence.published.min(index);
        }
        end
    }

    /// Takes the blocks of one sequence for `rank`: of a parked one, else of the one served last, if that is after
    /// `rank`. `false` when nobody may be robbed.
    fn make_room(&mut self, rank: Rank, room: &Room) -> bool {
        let robbable = |victim: &&Rank| victim.id != rank.id && !room.planned.contains(&victim.id);
        let parked = self.running.iter().rev().filter(robbable).find(|victim| self.is_parked(victim.id.request));
        let last = || self.running.iter().rev().find(robbable).filter(|&&victim| victim > rank);
        let Some(&victim) = parked.or_else(last) else { return false };
        self.preempt(victim);
        true
    }

    fn preempt(&mut self, victim: Rank) {
        let sequence = self.sequences.get_mut(&victim.id).expect("running sequences live");
        self.blocks.release_table(&sequence.table);
        sequence.table.clear();
        sequence.computed = 0;
        sequence.published = 0;
        self.running.remove(&victim);
        self.waiting.insert(victim);
        self.last_turn.remove(&victim.id);
        self.preemptions += 1;
    }

    /// Moves sequences from the waiting line into the batch, in order, while there is room.
    fn admit(&mut self, room: &mut Room, plan: &mut Plan) {
        let line: Vec<Rank> = self.waiting.iter().copied().filter(|rank| !self.is_parked(rank.id.request)).collect();
        for rank in line {
            if room.tokens == 0 || !self.has_place_for(rank.id) {
                return;
            }
            let Some(cached) = self.find_blocks(rank, room) else { return };
            self.waiting.remove(&rank);
            self.running.insert(rank);
            plan.admitted.push((rank.id, cached));
            self.plan_item(rank, room, plan);
        }
    }

    fn has_place_for(&self, id: SequenceId) -> bool {
        let places = |id: SequenceId| {
            let sequence = &self.sequences[&id];
            if sequence.has_forked { 1 } else { self.requests[&id.request].choices as usize }
        };
        // Parked ones take no part in steps; when they come back, decode rows take turns.
        let active = self.running.iter().filter(|rank| !self.is_parked(rank.id.request));
        let taken: usize = active.map(|rank| places(rank.id)).sum();
        taken == 0 || taken + places(id) <= self.limits.max_running
    }

    /// Takes what the prefix cache has for a sequence, if the rest of its tokens fits too; returns the tokens found.
    fn find_blocks(&mut self, rank: Rank, room: &Room) -> Option<usize> {
        loop {
            let sequence = self.sequences.get_mut(&rank.id).expect("waiting sequences live");
            let found = match &self.hasher {
                Some(hasher) if sequence.may_reuse() => {
                    hasher.extend(&sequence.known, self.requests[&rank.id.request].salt, &mut sequence.hashes);
                    // The last token is always computed: its logits are wanted.
                    let most = (sequence.known.len() - 1) / BLOCK_TOKENS;
                    self.blocks.find_prefix(&sequence.hashes[..most.min(sequence.hashes.len())])
                }
                _ => Vec::new(),
            };
            let needed = sequence.blocks_needed() - found.len() + self.blocks.count_idle(&found);
            // A block for each running sequence, so that a newcomer does not make them preempt each other at once.
            if needed + self.running.len() <= self.blocks.available()
                || self.running.is_empty() && needed <= self.blocks.available()
            {
                found.iter().for_each(|&block| self.blocks.retain(block));
                sequence.computed = found.len() * BLOCK_TOKENS;
                sequence.published = found.len();
                sequence.table = found;
                return Some(sequence.computed);
            }
            if !self.make_room_for_newcomer(rank, room) {
                return None;
            }
        }
    }

    /// A newcomer takes blocks of parked sequences and of lower priorities only.
    fn make_room_for_newcomer(&mut self, rank: Rank, room: &Room) -> bool {
        let robbable = |victim: &&Rank| {
            !room.planned.contains(&victim.id) && (self.is_parked(victim.id.request) || victim.priority > rank.priority)
        };
        let parked = self.running.iter().rev().filter(robbable).find(|victim| self.is_parked(victim.id.request));
        let Some(&victim) = parked.or_else(|| self.running.iter().rev().find(robbable)) else { return false };
        self.preempt(victim);
        true
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;
