//! Decides what the next step computes: which sequences, how much of each, and whose blocks are given up for it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use foldhash::fast::RandomState;
use millgate_models::BLOCK_TOKENS;

use super::blocks::{Blocks, Writable};
use super::fairness::{COMPLETION_COST, Fairness, Lane, PROMPT_COST, Rank};
use super::handle::BlockCounts;
use super::prefix_cache::PrefixHasher;
use super::request::CacheSalt;
use super::sequence::{Sequence, SequenceId};

#[path = "admission.rs"]
mod admission;
#[path = "drafting.rs"]
mod drafting;

/// What is looked up for each sequence of each step.
type Found<K, V> = HashMap<K, V, RandomState>;

/// While a prompt is computed, the work of lower bands beside it is one token for this many of its own: readers there go
/// on, and the prompt takes at most a quarter longer than alone.
const TOKENS_A_GUEST: usize = 4;
/// That work is at least this many tokens: a short step costs what it costs to start it, so they come nearly for nothing.
const MIN_GUEST_TOKENS: usize = 6;

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
    /// Most completion tokens of a choice; 0 when only the prompt's log probabilities are wanted.
    pub(crate) max_tokens: usize,
    /// Whom it counts for.
    pub(crate) lane: Lane,
    /// Share of the flow among the flows of its band.
    pub(crate) weight: u32,
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
    /// Guessed tokens computed behind those, each with a row of its own to be verified by.
    pub(crate) drafts: usize,
    /// Whether its output rows concern the host: to score a prompt, or to draw the first tokens of several choices. Other
    /// tokens may be drawn by the model itself.
    pub(crate) needs_host: bool,
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

/// All live sequences and the blocks they own.
///
/// The order of service is that of [`Fairness`]: who has aged, the higher band, the flow that used least, first come. A
/// sequence that lacks a block takes it from one that stands at zero allowance, else from the one last in order; that one
/// is computed again later. A block may change hands while a step that uses it is in flight: steps run in order. Nothing overtakes the head of the waiting line, so every sequence gets its turn.
#[derive(Debug)]
pub(crate) struct Scheduler {
    limits: Limits,
    blocks: Blocks,
    /// `None` when prefixes are not kept.
    hasher: Option<PrefixHasher>,
    requests: Found<u64, Terms>,
    /// Choices of all requests together: no more sequences than that ever live.
    choices: usize,
    sequences: BTreeMap<SequenceId, Sequence>,
    /// Who waits, and whose turn it is.
    fairness: Fairness,
    running: BTreeSet<SequenceId>,
    /// Step in which a running sequence last had a part, for turns when there are more than rows.
    last_turn: Found<SequenceId, u64>,
    steps: u64,
    preemptions: u64,
    /// Memory of the last step's lists, used again.
    scratch: (Vec<Rank>, Vec<Rank>),
}

/// What is left of a step while it is planned.
struct Room {
    tokens: usize,
    rows: usize,
    /// Whether lower bands have only what a prompt of a higher one leaves them.
    has_guests: bool,
    /// Draws given out in this step, by request.
    drawn: Found<u64, u64>,
    planned: BTreeSet<SequenceId>,
}

impl Scheduler {
    pub(crate) fn new(limits: Limits, hasher: Option<PrefixHasher>) -> Self {
        Self {
            limits,
            blocks: Blocks::new(limits.num_blocks),
            hasher,
            requests: Found::default(),
            choices: 0,
            sequences: BTreeMap::new(),
            fairness: Fairness::default(),
            running: BTreeSet::new(),
            last_turn: Found::default(),
            steps: 0,
            preemptions: 0,
            scratch: Default::default(),
        }
    }

    /// Puts a request in line; its first sequence computes the prompt for all choices.
    pub(crate) fn add(&mut self, terms: Terms, sequence: Sequence) {
        self.requests.insert(sequence.id.request, terms);
        self.choices += terms.choices as usize;
        self.fairness.arrive(terms.lane, terms.weight, sequence.id);
        self.sequences.insert(sequence.id, sequence);
    }

    /// Plans the next step. `chunk` says how many prompt tokens fit into a step beside a number of decode rows.
    pub(crate) fn plan(&mut self, chunk: impl Fn(usize) -> usize) -> Plan {
        self.steps += 1;
        let mut plan = Plan::default();
        let mut room = Room {
            tokens: self.limits.max_step_tokens,
            rows: self.limits.max_output_rows,
            has_guests: false,
            drawn: Found::default(),
            planned: BTreeSet::new(),
        };
        self.age();
        self.admit(&chunk, &mut plan);
        let (mut line, mut turns) = std::mem::take(&mut self.scratch);
        line.clear();
        line.extend(self.active().map(|id| self.rank(id)));
        line.sort_unstable();
        let mut rest = self.plan_aged(&line, chunk(self.limits.max_output_rows), &mut room, &mut plan);
        while let Some(first) = rest.first() {
            let (own, lower) = rest.split_at(rest.partition_point(|rank| rank.band() == first.band()));
            self.plan_decoders(own, &mut turns, &mut room, &mut plan);
            self.plan_prompts(own, !lower.is_empty(), &chunk, &mut room, &mut plan);
            rest = lower;
        }
        self.scratch = (line, turns);
        for item in &plan.items {
            self.last_turn.insert(item.id, self.steps);
            self.fairness.had_turn(self.requests[&item.id.request].lane.band, self.steps);
        }
        plan
    }

    /// Books a step that is on its way: the next one may be planned before it is read.
    pub(crate) fn launch(&mut self, items: &[Item]) {
        for item in items {
            let sequence = self.sequences.get_mut(&item.id).expect("planned sequences live");
            sequence.computed = item.first + item.count;
            sequence.in_flight += 1;
            if item.needs_host {
                sequence.is_held = true;
            } else {
                sequence.awaited += item.draws as usize;
            }
            // What is computed again after a preemption was paid for, and completion tokens are when they are drawn.
            let paid = sequence.computed.min(sequence.prompt_len).saturating_sub(sequence.paid_prompt);
            sequence.paid_prompt += paid;
            sequence.pledged = sequence.pledged.saturating_sub(paid);
        }
    }

    /// Books that a step has been computed, and offers its full blocks to the prefix cache. Awaited tokens follow one by one.
    pub(crate) fn land(&mut self, items: &[Item]) {
        for item in items {
            let Some(sequence) = self.sequences.get_mut(&item.id) else { continue };
            sequence.in_flight -= 1;
            sequence.is_held &= !item.needs_host;
            let end = item.first + item.count;
            let Some(hasher) = &self.hasher else { continue };
            let full = end.min(sequence.known.len()) / BLOCK_TOKENS;
            // What lost its blocks meanwhile has none to offer; it gets no others before all its steps have landed.
            if sequence.computed >= end && full > sequence.published {
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
        let has_place = self.running.contains(&leader.id);
        for choice in 1..terms.choices {
            let id = SequenceId { request, choice };
            leader.table.iter().for_each(|&block| self.blocks.retain(block));
            self.fairness.split(terms.lane);
            if has_place {
                self.running.insert(id);
            } else {
                self.fairness.put_back(terms.lane, id);
            }
            self.sequences.insert(id, Sequence { id, ..leader.clone() });
        }
    }

    /// Appends a sampled token and takes it from the allowance.
    pub(crate) fn append(&mut self, id: SequenceId, token: u32) {
        let terms = self.requests.get_mut(&id.request).expect("a live sequence has a request");
        debug_assert!(terms.allowance > 0, "a token is drawn only where the allowance covers it");
        terms.allowance = terms.allowance.saturating_sub(1);
        self.fairness.charge(terms.lane, terms.weight, COMPLETION_COST);
        self.fairness.sampled(id);
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are sampled");
        sequence.known.push(token);
        sequence.awaited = sequence.awaited.saturating_sub(1);
    }

    /// Has the last token computed again: its row could not be used yet.
    pub(crate) fn roll_back(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("only live sequences are rolled back");
        sequence.computed = sequence.computed.min(sequence.known.len() - 1);
    }

    /// Removes a sequence and frees its blocks; unknown ones are passed over.
    pub(crate) fn remove(&mut self, id: SequenceId) {
        self.give_back(id);
        let Some(sequence) = self.sequences.remove(&id) else { return };
        self.blocks.release_table(&sequence.table);
        self.fairness.leave(self.requests[&id.request].lane, id);
        self.running.remove(&id);
        self.last_turn.remove(&id);
    }

    /// Removes a request with all its sequences.
    pub(crate) fn remove_request(&mut self, request: u64) {
        let ids = SequenceId { request, choice: 0 }..=SequenceId { request, choice: u32::MAX };
        let ids: Vec<SequenceId> = self.sequences.range(ids).map(|(&id, _)| id).collect();
        ids.into_iter().for_each(|id| self.remove(id));
        if let Some(terms) = self.requests.remove(&request) {
            self.choices -= terms.choices as usize;
        }
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
        self.requests.get(&request).is_some_and(|terms| terms.max_tokens > 0 && terms.allowance == 0)
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
        self.fairness.waiting_len()
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
        let placed = self.running.len() + self.fairness.waiting_len();
        if placed != self.sequences.len() || self.fairness.live_len() != placed {
            let (live, counted) = (self.sequences.len(), self.fairness.live_len());
            return Err(format!("{placed} sequences have a place, {live} live and {counted} are counted"));
        }
        for sequence in self.sequences.values() {
            let id = sequence.id;
            let Some(terms) = self.requests.get(&id.request) else { return Err(format!("{id:?} has no request")) };
            let is_waiting = self.fairness.is_waiting(terms.lane, id);
            if is_waiting && !sequence.table.is_empty() {
                return Err(format!("{id:?} waits and owns blocks"));
            }
            let most = if sequence.in_flight > 0 { sequence.len() } else { sequence.known.len() - 1 };
            if sequence.computed > sequence.table.len() * BLOCK_TOKENS || sequence.computed > most {
                let (computed, tokens) = (sequence.computed, sequence.len());
                return Err(format!("{id:?} has {computed} of {tokens} tokens in {} blocks", sequence.table.len()));
            }
            if sequence.in_flight == 0 && (sequence.awaited > 0 || sequence.is_held) {
                return Err(format!("{id:?} awaits a token that no step in flight draws"));
            }
        }
        Ok(())
    }

    /// Tokens of a sequence that a step could compute: none while it is held, nor when its last token is on the way.
    fn pending(&self, id: SequenceId) -> usize {
        let sequence = &self.sequences[&id];
        let most = sequence.prompt_len.saturating_add(self.requests[&id.request].max_tokens);
        if sequence.is_held || sequence.awaited > 0 && sequence.len() >= most { 0 } else { sequence.pending() }
    }

    /// Completion tokens that steps in flight draw for a request.
    fn awaited(&self, request: u64) -> u64 {
        let ids = SequenceId { request, choice: 0 }..=SequenceId { request, choice: u32::MAX };
        self.sequences.range(ids).map(|(_, sequence)| sequence.awaited as u64).sum()
    }

    fn rank(&self, id: SequenceId) -> Rank {
        self.fairness.rank(self.requests[&id.request].lane, id)
    }

    /// Running sequences that do not stand at zero allowance.
    fn active(&self) -> impl Iterator<Item = SequenceId> {
        self.running.iter().copied().filter(|id| !self.is_parked(id.request))
    }

    /// Sends the first sequence of a band ahead that has had no turn for too long.
    fn age(&mut self) {
        if !self.fairness.has_bands() {
            return self.fairness.no_bands();
        }
        if self.fairness.ahead().is_some_and(|id| self.is_parked(id.request)) {
            self.fairness.call_back();
        }
        let mut has_work = [false; 256];
        for id in self.sequences.keys().filter(|id| !self.is_parked(id.request)) {
            has_work[usize::from(self.requests[&id.request].lane.band)] = true;
        }
        let Some(band) = self.fairness.overdue(self.steps, &has_work) else { return };
        let ready = self.sequences.keys().filter(|id| !self.is_parked(id.request));
        let first = ready.map(|&id| self.rank(id)).filter(|rank| rank.band() == band).min();
        let Some(first) = first else { return };
        self.fairness.send_ahead(self.requests[&first.id.request].lane, first.id);
    }

    /// Plans the sequence that was sent ahead: a row, or a chunk that fits beside a full step. Returns the others.
    fn plan_aged<'a>(&mut self, line: &'a [Rank], chunk: usize, room: &mut Room, plan: &mut Plan) -> &'a [Rank] {
        let Some((&first, others)) = line.split_first().filter(|(first, _)| first.has_aged()) else { return line };
        let most = room.tokens.min(chunk);
        let rest = room.tokens - most;
        room.tokens = most;
        self.plan_item(first, room, plan);
        room.tokens += rest;
        others
    }

    /// Plans the sequences of a band with one token to compute. When they outnumber the rows, the flow that used least
    /// comes first and in it those whose last turn is longest ago; all are tried, for one that finds no block must not
    /// hold up the others.
    fn plan_decoders(&mut self, own: &[Rank], turns: &mut Vec<Rank>, room: &mut Room, plan: &mut Plan) {
        turns.clear();
        turns.extend(own.iter().filter(|rank| self.pending(rank.id) == 1));
        if turns.len() > room.rows.min(room.tokens) {
            turns.sort_unstable_by_key(|rank| (rank.counter(), self.last_turn.get(&rank.id).copied(), rank.id));
        }
        for &rank in turns.iter() {
            self.plan_item(rank, room, plan);
        }
    }

    /// Plans the prompts of a band. Beside decode rows of this or a higher band they get the chunk that keeps the step
    /// short; without any they may fill the step. Bands below are then guests: they must not make the step much longer.
    fn plan_prompts(
        &mut self,
        own: &[Rank],
        has_lower: bool,
        chunk: &impl Fn(usize) -> usize,
        room: &mut Room,
        plan: &mut Plan,
    ) {
        let (spare, rows) = (room.tokens, plan.items.iter().filter(|item| !self.rank(item.id).has_aged()).count());
        if rows > 0 {
            room.tokens = room.tokens.min(chunk(rows));
        } else if has_lower {
            room.tokens -= room.tokens / (TOKENS_A_GUEST + 1);
        }
        let before = plan.items.len();
        for &rank in own {
            // What had one token to compute was tried before.
            if self.running.contains(&rank.id) && self.pending(rank.id) > 1 {
                self.plan_item(rank, room, plan);
            }
        }
        if plan.items.len() == before {
            room.tokens = spare;
        } else if has_lower && !room.has_guests {
            room.has_guests = true;
            let used: usize = plan.items.iter().map(|item| item.count).sum();
            let guests = (used / TOKENS_A_GUEST).max(MIN_GUEST_TOKENS);
            room.tokens = guests.min(self.limits.max_step_tokens - used);
        }
    }

    /// Gives a running sequence as much of the step as there is room, allowance and cache for.
    fn plan_item(&mut self, rank: Rank, room: &mut Room, plan: &mut Plan) {
        // It may have lost its place to a sequence planned before it.
        if !self.running.contains(&rank.id) || room.planned.contains(&rank.id) || self.is_parked(rank.id.request) {
            return;
        }
        let Some((count, draws)) = self.portion(rank.id, room) else { return };
        let first = self.sequences[&rank.id].computed;
        let mut fits = self.reserve(rank.id, first + count, plan);
        while fits < first + count && self.make_room(rank, room) {
            fits = self.reserve(rank.id, first + count, plan);
        }
        let Some(count) = fits.checked_sub(first).filter(|&fits| fits > 0).map(|fits| fits.min(count)) else { return };
        let sequence = &self.sequences[&rank.id];
        let draws = if first + count == sequence.len() { draws } else { 0 };
        let scores = sequence.score_positions(first, count).len();
        let is_shared = draws > 0 && !sequence.has_forked && self.requests[&rank.id.request].choices > 1;
        room.tokens -= count;
        room.rows -= scores + usize::from(draws > 0);
        *room.drawn.entry(rank.id.request).or_default() += u64::from(draws);
        room.planned.insert(rank.id);
        let needs_host = scores > 0 || is_shared;
        plan.items.push(Item { id: rank.id, first, count, draws, drafts: 0, needs_host });
    }

    /// How many tokens of a sequence the step has room for, and how many draws follow from its last row.
    fn portion(&self, id: SequenceId, room: &Room) -> Option<(usize, u32)> {
        let (sequence, terms) = (&self.sequences[&id], &self.requests[&id.request]);
        let pending = self.pending(id);
        let mut count = pending.min(room.tokens);
        let mut rows = room.rows;
        let mut draws = 0;
        if count > 0 && count == pending && terms.max_tokens > 0 {
            let given = self.awaited(id.request) + room.drawn.get(&id.request).copied().unwrap_or(0);
            let left = terms.allowance.saturating_sub(given);
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

    /// Takes the blocks of one sequence for `rank`: of a parked one, else of the one last in order, if that is after
    /// `rank`. `false` when nobody may be robbed.
    fn make_room(&mut self, rank: Rank, room: &Room) -> bool {
        let others = || self.running.iter().filter(|&&id| id != rank.id && !room.planned.contains(&id));
        let parked = others().filter(|id| self.is_parked(id.request)).map(|&id| self.rank(id)).max();
        let last = || others().map(|&id| self.rank(id)).max().filter(|&victim| victim > rank);
        let Some(victim) = parked.or_else(last) else { return false };
        self.preempt(victim.id);
        true
    }

    fn preempt(&mut self, victim: SequenceId) {
        self.give_back(victim);
        let sequence = self.sequences.get_mut(&victim).expect("running sequences live");
        self.blocks.release_table(&sequence.table);
        sequence.table.clear();
        sequence.computed = 0;
        sequence.published = 0;
        self.running.remove(&victim);
        self.fairness.put_back(self.requests[&victim.request].lane, victim);
        self.last_turn.remove(&victim);
        self.preemptions += 1;
    }
}

#[cfg(test)]
#[path = "scheduler_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "scheduler_fairness_tests.rs"]
mod fairness_tests;
