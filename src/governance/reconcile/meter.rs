//! Counts since the start of the process, one owner, one short lock: what was settled, what the engines reported for it, and
//! what clients were told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use uuid::Uuid;

use crate::governance::governor::Core;
use crate::governance::records::{LedgerRecord, Usage};

/// Rows remembered one by one: as many may be settled while the disk is read.
const RECENT: usize = 8192;
/// Answers that were told something wrong, remembered by id.
const WRONG_MAX: usize = 100;

/// Requests, tokens and money.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sums {
    /// Requests that were charged.
    pub requests: u64,
    /// Prompt tokens, cached ones included.
    pub prompt_tokens: u64,
    /// Completion tokens.
    pub completion_tokens: u64,
    /// Money.
    pub cost_nano_usd: u64,
}

impl Sums {
    /// What a ledger row charges.
    pub fn of(row: &LedgerRecord) -> Self {
        let bill = row.bill();
        Self {
            requests: bill.requests,
            prompt_tokens: bill.usage.prompt_tokens,
            completion_tokens: bill.usage.completion_tokens,
            cost_nano_usd: bill.cost_nano_usd,
        }
    }

    /// Tokens of a usage, as one request.
    pub fn told(usage: Usage) -> Self {
        Self {
            requests: 1,
            prompt_tokens: usage.prompt_tokens,
            completion_tokens: usage.completion_tokens,
            cost_nano_usd: 0,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            requests: self.requests + other.requests,
            prompt_tokens: self.prompt_tokens + other.prompt_tokens,
            completion_tokens: self.completion_tokens + other.completion_tokens,
            cost_nano_usd: self.cost_nano_usd + other.cost_nano_usd,
        }
    }

    /// What is more than `other`; what is less counts as nothing.
    #[must_use]
    pub fn since(self, other: Self) -> Self {
        Self {
            requests: self.requests.saturating_sub(other.requests),
            prompt_tokens: self.prompt_tokens.saturating_sub(other.prompt_tokens),
            completion_tokens: self.completion_tokens.saturating_sub(other.completion_tokens),
            cost_nano_usd: self.cost_nano_usd.saturating_sub(other.cost_nano_usd),
        }
    }

    /// Tokens by which two sums differ, classes apart.
    pub fn tokens_apart(self, other: Self) -> u64 {
        self.prompt_tokens.abs_diff(other.prompt_tokens) + self.completion_tokens.abs_diff(other.completion_tokens)
    }
}

/// What the meter shows at one moment.
#[derive(Debug, Clone, Default)]
pub(super) struct Reading {
    /// Rows settled so far; changes with every settlement.
    pub(super) settled: u64,
    /// Settlements that are half done.
    pub(super) passing: u64,
    /// Rows given to the store.
    pub(super) ledger: Sums,
    /// What the engines reported for ended requests, charged or not.
    pub(super) reported: Sums,
    /// Admissions whose client left before there was a permit; the request unit stays spent and no row is written.
    pub(super) abandoned: u64,
    /// What clients were told.
    pub(super) told: Sums,
    /// What the ledger has for the same answers.
    pub(super) told_ledger: Sums,
    /// Answers that were told something else than the ledger has.
    pub(super) wrong: Vec<(Uuid, Sums, Sums)>,
    pub(super) wrong_count: u64,
}

#[derive(Debug, Default)]
struct State {
    reading: Reading,
    recent: VecDeque<Sums>,
}

/// The counts of one process.
#[derive(Debug, Default)]
pub(in crate::governance) struct Meter(Mutex<State>);

impl Meter {
    /// A settlement begins: from now on counters and ledger may differ until it is finished or found abandoned.
    pub(in crate::governance) fn begin(&self) {
        self.lock().reading.passing += 1;
    }

    /// The counters are settled: notes the row and hands it to the store, in this order for all rows.
    pub(in crate::governance) fn finish<T>(
        &self,
        row: LedgerRecord,
        reported: Usage,
        submit: impl FnOnce(LedgerRecord) -> T,
    ) -> T {
        let mut state = self.lock();
        let sums = Sums::of(&row);
        state.reading.passing -= 1;
        state.reading.settled += 1;
        state.reading.ledger = state.reading.ledger.plus(sums);
        state.reading.reported = state.reading.reported.plus(Sums { requests: sums.requests, ..Sums::told(reported) });
        if state.recent.len() == RECENT {
            state.recent.pop_front();
        }
        state.recent.push_back(sums);
        // INVARIANT: rows reach the store in the order in which they are counted, so the disk always shows a prefix.
        submit(row)
    }

    /// The counters are settled and there is no row.
    pub(in crate::governance) fn abandoned(&self) {
        let mut state = self.lock();
        state.reading.passing -= 1;
        state.reading.abandoned += 1;
    }

    pub(super) fn read(&self) -> Reading {
        self.lock().reading.clone()
    }

    /// Sums of the ledger after each of the rows settled since `reading`, itself included; `None`: too many to tell.
    pub(super) fn sums_since(&self, reading: &Reading) -> Option<Vec<Sums>> {
        let state = self.lock();
        let newer = usize::try_from(state.reading.settled - reading.settled).ok()?;
        let first = state.recent.len().checked_sub(newer)?;
        let mut sums = vec![reading.ledger];
        let mut sum = reading.ledger;
        for row in state.recent.range(first..) {
            sum = sum.plus(*row);
            sums.push(sum);
        }
        Some(sums)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the ledger has for an answer; shown to the meter together with what the client is told.
#[derive(Clone)]
pub struct Receipt {
    id: Uuid,
    usage: Usage,
    core: Arc<Core>,
}

impl std::fmt::Debug for Receipt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Receipt").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Receipt {
    pub(in crate::governance) fn new(id: Uuid, usage: Usage, core: Arc<Core>) -> Self {
        Self { id, usage, core }
    }

    /// Notes what the client is being told at this moment.
    pub fn tell(&self, told: Usage) {
        let (told, ledger) = (Sums::told(told), Sums::told(self.usage));
        let mut state = self.core.meter.lock();
        state.reading.told = state.reading.told.plus(told);
        state.reading.told_ledger = state.reading.told_ledger.plus(ledger);
        if told != ledger {
            state.reading.wrong_count += 1;
            if state.reading.wrong.len() < WRONG_MAX {
                state.reading.wrong.push((self.id, told, ledger));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_settlement_is_half_done_until_it_is_finished_or_abandoned() {
        let meter = Meter::default();
        meter.begin();
        assert_eq!(meter.read().passing, 1);
        meter.abandoned();
        let reading = meter.read();
        assert_eq!((reading.passing, reading.settled, reading.abandoned), (0, 0, 1));
    }
}
