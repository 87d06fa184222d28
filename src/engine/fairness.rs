//! Whose turn it is: bands of priority, inside a band the flows by the tokens they really used, and ageing across bands.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use super::request::FlowId;
use super::sequence::SequenceId;

/// What a prompt token costs its flow when it is computed for the first time; one found in the cache costs nothing.
pub(crate) const PROMPT_COST: u64 = 1;
/// What a completion token costs its flow: it takes a row in a step of its own, a prompt token shares its step with many.
pub(crate) const COMPLETION_COST: u64 = 2;
/// Steps after which a band that has work and got no turn sends one sequence ahead of all others.
pub(crate) const AGE_STEPS: u64 = 64;
/// Completion tokens for which a sequence stays ahead once its band has aged.
pub(crate) const AGED_TOKENS: u64 = 64;
/// Flows without work that are remembered because they used more than their share.
const MAX_DEBTORS: usize = 1024;
/// Counters are in this fraction of a cost unit, so that dividing by the weight loses nothing that matters.
const UNIT: u128 = 1 << 32;

/// One flow inside one band: its sequences are served in order of arrival.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Lane {
    /// Higher goes first.
    pub(crate) band: u8,
    pub(crate) flow: FlowId,
}

/// Order of service, first in order first: who has aged, then the higher band, then the flow that used least for its
/// weight, then who came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    is_young: bool,
    band: Reverse<u8>,
    counter: u128,
    pub(crate) id: SequenceId,
}

impl Rank {
    pub(crate) fn band(&self) -> u8 {
        self.band.0
    }

    pub(crate) fn has_aged(&self) -> bool {
        !self.is_young
    }

    /// The flow's virtual token counter.
    pub(crate) fn counter(&self) -> u128 {
        self.counter
    }
}

/// Counters of all flows with work, who waits in which flow, and which band had its last turn when.
///
/// Inside a band this is the virtual token counter of "Fairness in Serving Large Language Models" (OSDI'24): a flow pays
/// for the tokens it really used, divided by its weight, and the flow with the lowest counter goes next. A flow that
/// comes back, or asks for more than before, starts no lower than those that already wait, so idling banks no credit.
#[derive(Debug, Default)]
pub(crate) struct Fairness {
    lanes: BTreeMap<Lane, Account>,
    /// Step of the last turn of each band that has work, or in which it began to have some.
    turns: BTreeMap<u8, u64>,
    aged: Option<Aged>,
}

#[derive(Debug, Default)]
struct Account {
    counter: u128,
    /// Weight of the newest request.
    weight: u32,
    waiting: BTreeSet<SequenceId>,
    /// Sequences, waiting or running.
    live: usize,
}

/// The one sequence that goes before all others because its band had waited too long.
#[derive(Debug, Clone, Copy)]
struct Aged {
    id: SequenceId,
    lane: Lane,
    tokens_left: u64,
}

impl Fairness {
    /// A new sequence gets in line. Its flow is lifted to the level of the others unless it has others waiting already.
    pub(crate) fn arrive(&mut self, lane: Lane, weight: u32, id: SequenceId) {
        let level = self.level(lane.band, Some(lane.flow));
        let account = self.lanes.entry(lane).or_default();
        if account.waiting.is_empty() {
            account.counter = account.counter.max(level.unwrap_or(0));
        }
        account.weight = weight.max(1);
        account.waiting.insert(id);
        account.live += 1;
    }

    /// A waiting sequence got its place.
    pub(crate) fn start(&mut self, lane: Lane, id: SequenceId) {
        self.account(lane).waiting.remove(&id);
    }

    /// A running sequence lost its place. That is not idling, so nothing is lifted.
    pub(crate) fn put_back(&mut self, lane: Lane, id: SequenceId) {
        self.account(lane).waiting.insert(id);
    }

    /// A running sequence was split off from another one.
    pub(crate) fn split(&mut self, lane: Lane) {
        self.account(lane).live += 1;
    }

    /// A sequence is gone. A flow without any is forgotten once it is no further ahead than those that have work.
    pub(crate) fn leave(&mut self, lane: Lane, id: SequenceId) {
        let account = self.account(lane);
        account.waiting.remove(&id);
        account.live -= 1;
        if account.live == 0 {
            self.forget();
        }
        if self.aged.is_some_and(|aged| aged.id == id) {
            self.aged = None;
        }
    }

    /// Books what a flow used.
    pub(crate) fn charge(&mut self, lane: Lane, weight: u32, cost: u64) {
        self.account(lane).counter += u128::from(cost) * UNIT / u128::from(weight.max(1));
    }

    /// Takes back what was booked and then not used.
    pub(crate) fn refund(&mut self, lane: Lane, weight: u32, cost: u64) {
        let account = self.account(lane);
        account.counter = account.counter.saturating_sub(u128::from(cost) * UNIT / u128::from(weight.max(1)));
    }

    /// Books a completion token of a sequence: one less for which it may stay ahead.
    pub(crate) fn sampled(&mut self, id: SequenceId) {
        let Some(aged) = self.aged.as_mut().filter(|aged| aged.id == id) else { return };
        aged.tokens_left -= 1;
        if aged.tokens_left == 0 {
            self.aged = None;
        }
    }

    /// Where a sequence stands in the order of service.
    pub(crate) fn rank(&self, lane: Lane, id: SequenceId) -> Rank {
        let counter = self.lanes.get(&lane).map_or(0, |account| account.counter);
        let is_young = self.aged.is_none_or(|aged| aged.id != id);
        Rank { is_young, band: Reverse(lane.band), counter, id }
    }

    /// The first of those that wait and are ready.
    pub(crate) fn head(&self, is_ready: impl Fn(SequenceId) -> bool) -> Option<Rank> {
        if let Some(aged) = self.aged.filter(|aged| is_ready(aged.id))
            && self.lanes[&aged.lane].waiting.contains(&aged.id)
        {
            return Some(self.rank(aged.lane, aged.id));
        }
        let mut first: Option<Rank> = None;
        for (&lane, account) in self.lanes.iter().rev() {
            if first.is_some_and(|first| first.band() > lane.band) {
                break;
            }
            let Some(&id) = account.waiting.iter().find(|&&id| is_ready(id)) else { continue };
            let rank = self.rank(lane, id);
            first = Some(first.map_or(rank, |first| first.min(rank)));
        }
        first
    }

    /// Whether more than one band has sequences.
    pub(crate) fn has_bands(&self) -> bool {
        let mut live = self.lanes.iter().filter(|(_, account)| account.live > 0);
        let first = live.next().map(|(lane, _)| lane.band);
        live.next_back().is_some_and(|(lane, _)| Some(lane.band) != first)
    }

    /// Says which bands have work that could be done now, and returns one that has waited too long for its turn, the one
    /// that waited longest first. Nobody is named while another one is ahead.
    pub(crate) fn overdue(&mut self, step: u64, has_work: &[bool; 256]) -> Option<u8> {
        self.turns.retain(|&band, _| has_work[usize::from(band)]);
        for band in (0..=u8::MAX).filter(|&band| has_work[usize::from(band)]) {
            self.turns.entry(band).or_insert(step);
        }
        let (&top, _) = self.turns.last_key_value()?;
        let late = self.turns.iter().filter(|&(&band, &turn)| band < top && step.saturating_sub(turn) >= AGE_STEPS);
        late.min_by_key(|&(&band, &turn)| (turn, Reverse(band))).map(|(&band, _)| band).filter(|_| self.aged.is_none())
    }

    /// Forgets all waits: no band stands behind another one.
    pub(crate) fn no_bands(&mut self) {
        self.turns.clear();
        self.aged = None;
    }

    /// A sequence of a band had a part in a step.
    pub(crate) fn had_turn(&mut self, band: u8, step: u64) {
        if let Some(turn) = self.turns.get_mut(&band) {
            *turn = step;
        }
    }

    /// Puts a sequence ahead of all others for a while.
    pub(crate) fn send_ahead(&mut self, lane: Lane, id: SequenceId) {
        self.aged = Some(Aged { id, lane, tokens_left: AGED_TOKENS });
    }

    /// The sequence that was sent ahead.
    pub(crate) fn ahead(&self) -> Option<SequenceId> {
        self.aged.map(|aged| aged.id)
    }

    /// Takes the advance back.
    pub(crate) fn call_back(&mut self) {
        self.aged = None;
    }

    /// Weights of all flows of a band that have sequences.
    pub(crate) fn weights(&self, band: u8) -> u64 {
        let live = self.of_band(band).filter(|(_, account)| account.live > 0);
        live.map(|(_, account)| u64::from(account.weight)).sum()
    }

    /// The part of `places` that goes to a flow whose band weighs `all`, rounded down.
    pub(crate) fn part(&self, lane: Lane, all: u64, places: usize) -> usize {
        let own = self.lanes.get(&lane).map_or(0, |account| u64::from(account.weight));
        let part = (places as u128 * u128::from(own)).checked_div(u128::from(all)).unwrap_or(0);
        usize::try_from(part).unwrap_or(places)
    }

    pub(crate) fn waiting_len(&self) -> usize {
        self.lanes.values().map(|account| account.waiting.len()).sum()
    }

    pub(crate) fn is_waiting(&self, lane: Lane, id: SequenceId) -> bool {
        self.lanes.get(&lane).is_some_and(|account| account.waiting.contains(&id))
    }

    /// Sequences that the accounts know of.
    pub(crate) fn live_len(&self) -> usize {
        self.lanes.values().map(|account| account.live).sum()
    }

    /// Flows that are remembered.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.lanes.len()
    }

    fn account(&mut self, lane: Lane) -> &mut Account {
        self.lanes.get_mut(&lane).expect("a flow with live sequences has an account")
    }

    fn of_band(&self, band: u8) -> impl Iterator<Item = (&Lane, &Account)> {
        self.lanes.range(Lane { band, flow: FlowId(0) }..=Lane { band, flow: FlowId(u64::MAX) })
    }

    /// The lowest counter of a band's flows that wait, or that have sequences at all if none waits; of others than one.
    fn level(&self, band: u8, except: Option<FlowId>) -> Option<u128> {
        let others = || self.of_band(band).filter(|(lane, _)| Some(lane.flow) != except);
        let waiting = others().filter(|(_, account)| !account.waiting.is_empty());
        let lowest = waiting.map(|(_, account)| account.counter).min();
        lowest.or_else(|| others().filter(|(_, account)| account.live > 0).map(|(_, account)| account.counter).min())
    }

    /// Drops the accounts of flows without sequences that owe nothing, and the smallest debts when there are too many.
    fn forget(&mut self) {
        let mut level = (None, None);
        let gone: Vec<Lane> =
            self.lanes.iter().filter(|(_, account)| account.live == 0).map(|(&lane, _)| lane).collect();
        let mut debtors = Vec::new();
        for lane in gone {
            if level.0 != Some(lane.band) {
                level = (Some(lane.band), self.level(lane.band, None));
            }
            let counter = self.lanes[&lane].counter;
            match level.1 {
                Some(lowest) if counter > lowest => debtors.push((counter - lowest, lane)),
                _ => drop(self.lanes.remove(&lane)),
            }
        }
        debtors.sort_unstable();
        let surplus = debtors.len().saturating_sub(MAX_DEBTORS);
        debtors[..surplus].iter().for_each(|(_, lane)| drop(self.lanes.remove(lane)));
    }
}

#[cfg(test)]
#[path = "fairness_tests.rs"]
mod tests;
