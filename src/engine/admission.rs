//! Who gets a place in the batch next, and who gives one up for it.

use std::collections::BTreeMap;

use millgate_models::BLOCK_TOKENS;

use super::{Lane, PROMPT_COST, Plan, Rank, Scheduler, SequenceId};

impl Scheduler {
    /// Moves sequences from the waiting line into the batch, in order, while a step has room for them.
    pub(super) fn admit(&mut self, chunk: &impl Fn(usize) -> usize, plan: &mut Plan) {
        while let Some(rank) = self.fairness.head(|id| self.may_enter(id)) {
            if !self.has_time_for(rank, chunk) || !self.take_place(rank) {
                return;
            }
            let Some(cached) = self.find_blocks(rank) else { return };
            self.fairness.start(self.requests[&rank.id.request].lane, rank.id);
            self.running.insert(rank.id);
            self.pledge(rank.id);
            plan.admitted.push((rank.id, cached));
        }
    }

    /// Not while a step that it had a part in is in flight: what that one computed is not there any more.
    fn may_enter(&self, id: SequenceId) -> bool {
        !self.is_parked(id.request) && self.sequences[&id].in_flight == 0
    }

    /// Charges the prompt tokens that a newcomer will compute for the first time: at once, so that the next place goes to
    /// the flow whose turn it then is.
    fn pledge(&mut self, id: SequenceId) {
        let sequence = self.sequences.get_mut(&id).expect("newcomers live");
        sequence.pledged = sequence.prompt_len.saturating_sub(sequence.paid_prompt);
        let terms = &self.requests[&id.request];
        self.fairness.charge(terms.lane, terms.weight, PROMPT_COST * sequence.pledged as u64);
    }

    /// Takes back what was charged for prompt tokens that were not computed.
    pub(super) fn give_back(&mut self, id: SequenceId) {
        let Some(sequence) = self.sequences.get_mut(&id) else { return };
        let left = std::mem::take(&mut sequence.pledged);
        let terms = &self.requests[&id.request];
        self.fairness.refund(terms.lane, terms.weight, PROMPT_COST * left as u64);
    }

    /// Whether the prompts ahead of a newcomer leave a part of the step.
    fn has_time_for(&self, rank: Rank, chunk: &impl Fn(usize) -> usize) -> bool {
        let (mut rows, mut tokens) = (0, 0);
        for id in self.active() {
            match self.pending(id) {
                1 => rows += usize::from(self.rank(id).band() >= rank.band()),
                pending => tokens += if self.rank(id) < rank { pending } else { 0 },
            }
        }
        let whole = self.limits.max_step_tokens.saturating_sub(rows);
        tokens < if rows > 0 { whole.min(chunk(rows)) } else { whole }
    }

    /// Sequences that a sequence is, or becomes when its prompt is computed.
    fn places_of(&self, id: SequenceId) -> usize {
        if self.sequences[&id].has_forked { 1 } else { self.requests[&id.request].choices as usize }
    }

    /// Places held by those of whom it `is_wanted`. Parked ones take no part in steps; when they come back, decode rows
    /// take turns.
    fn places_held(&self, is_wanted: impl Fn(Lane) -> bool) -> usize {
        let active = self.active().filter(|id| is_wanted(self.requests[&id.request].lane));
        active.map(|id| self.places_of(id)).sum()
    }

    /// Makes a place for a newcomer if there is none: one of a lower band gives up its own, or one of a flow of the same
    /// band that holds more than its part while the newcomer's holds less.
    fn take_place(&mut self, rank: Rank) -> bool {
        if self.choices <= self.limits.max_running {
            // There is a place for every sequence that could live: no need to count them.
            return true;
        }
        // Who has aged gets one place; its further choices take turns.
        let needed = if rank.has_aged() { 1 } else { self.places_of(rank.id) };
        loop {
            let taken = self.places_held(|_| true);
            if taken == 0 || taken + needed <= self.limits.max_running {
                return true;
            }
            let lower = self.active().map(|id| self.rank(id)).filter(|victim| may_displace(rank, *victim)).max();
            let Some(victim) = lower.or_else(|| self.place_beyond_share(rank, needed)) else { return false };
            self.preempt(victim.id);
        }
    }

    /// Who of the same band gives up a place for a flow that holds less than its part: the last in order of a flow that
    /// used more and holds more. Nobody gives up a last place, so places do not go back and forth.
    fn place_beyond_share(&self, rank: Rank, needed: usize) -> Option<Rank> {
        let lane_of = |id: SequenceId| self.requests[&id.request].lane;
        let newcomer = lane_of(rank.id);
        let places = self.limits.max_running.saturating_sub(self.places_held(|lane| lane.band > newcomer.band));
        let all = self.fairness.weights(newcomer.band);
        let share = |lane: Lane| self.fairness.part(lane, all, places).max(1);
        let mut held: BTreeMap<Lane, usize> = BTreeMap::new();
        for id in self.active() {
            *held.entry(lane_of(id)).or_default() += self.places_of(id);
        }
        if held.get(&newcomer).copied().unwrap_or(0) + needed > share(newcomer) {
            return None;
        }
        held.retain(|&lane, places| lane.band == newcomer.band && lane != newcomer && *places > share(lane));
        let ahead = self.active().filter(|&id| held.contains_key(&lane_of(id))).map(|id| self.rank(id));
        ahead.filter(|&victim| victim > rank).max()
    }

    /// Takes what the prefix cache has for a sequence, if the rest of its tokens fits too; returns the tokens found.
    fn find_blocks(&mut self, rank: Rank) -> Option<usize> {
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
            if self.has_room_for(rank, needed) {
                found.iter().for_each(|&block| self.blocks.retain(block));
                let sequence = self.sequences.get_mut(&rank.id).expect("waiting sequences live");
                sequence.computed = found.len() * BLOCK_TOKENS;
                sequence.paid_prompt = sequence.paid_prompt.max(sequence.computed.min(sequence.prompt_len));
                sequence.published = found.len();
                sequence.table = found;
                return Some(sequence.computed);
            }
            if !self.could_gain(rank, needed) || !self.make_room_for_newcomer(rank) {
                return None;
            }
        }
    }

    /// Whether so many blocks are there for a newcomer, and one for each running sequence that goes before its band, so that
    /// they do not make it give up its own at once.
    fn has_room_for(&self, rank: Rank, needed: usize) -> bool {
        let Some(left) = self.blocks.available().checked_sub(needed) else { return false };
        // With a block for everybody who runs, nobody needs to be counted.
        self.running.len() <= left
            || self.running.iter().filter(|&&id| self.rank(id).band() >= rank.band()).count() <= left
    }

    /// Whether the blocks of all who would have to give them up suffice; if not, nobody is robbed for nothing.
    fn could_gain(&self, rank: Rank, needed: usize) -> bool {
        let victims =
            self.running.iter().filter(|id| self.is_parked(id.request) || may_displace(rank, self.rank(**id)));
        let gain: usize = victims.map(|id| self.sequences[id].table.len()).sum();
        needed <= self.blocks.available() + gain
    }

    /// A newcomer takes blocks of parked sequences and of lower bands only.
    fn make_room_for_newcomer(&mut self, rank: Rank) -> bool {
        let ranks = || self.running.iter().map(|&id| self.rank(id));
        let parked = ranks().filter(|victim| self.is_parked(victim.id.request)).max();
        let lower = || ranks().filter(|&victim| may_displace(rank, victim)).max();
        let Some(victim) = parked.or_else(lower) else { return false };
        self.preempt(victim.id);
        true
    }
}

/// Whether a newcomer may have what a running sequence of another band has.
fn may_displace(newcomer: Rank, victim: Rank) -> bool {
    !victim.has_aged() && (victim.band() < newcomer.band() || newcomer.has_aged())
}
