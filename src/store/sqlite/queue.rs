//! What waits to be written; the writer sleeps only while nothing does.
//!
//! Entries gather while the writer is busy or asleep. All that gathered become one group, and all who wait for one of them
//! wait for the group. A ledger row is written at once. What only says how far a request has come lets others arrive first:
//! mostly its own ledger row, and then it need not be written at all.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::governance::ports::{Commit, Edit, JournalEntry, StoreError, Writing};
use crate::governance::records::KeyId;

/// How long an entry waits for company that only says how far a request has come: a short answer is complete by then, and
/// needs one commit in all. Content waits for its reservation, but that was handed in while the prompt was computed.
const COMPANY_COMES: Duration = Duration::from_micros(200);

pub(super) type Answer<T> = oneshot::Sender<Result<T, StoreError>>;

/// Something to write that is a transaction of its own.
#[derive(Debug)]
pub(super) enum Order {
    Change(u64, Edit, Answer<u64>),
    Touch(Vec<(KeyId, i64)>, Answer<()>),
    ForgetKeys { ended_before_us: i64, limited_before_us: i64, answer: Answer<u64> },
}

/// What the writer does at one time.
#[derive(Debug, Default)]
pub(super) struct Round {
    pub(super) entries: Vec<JournalEntry>,
    /// Tells who waits for an entry.
    pub(super) writing: Writing,
    pub(super) orders: Vec<Order>,
    /// Nothing comes after it.
    pub(super) is_last: bool,
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    state: Mutex<State>,
    called: Condvar,
}

#[derive(Debug, Default)]
struct State {
    next: Round,
    /// When what has gathered must be taken; `None` while there is nothing.
    due: Option<Instant>,
    /// The writer sleeps.
    is_asleep: bool,
    /// Nothing is taken any more.
    is_closed: bool,
}

impl Queue {
    // Unbounded on purpose: settling must neither block nor be lost, and open requests are bounded at admission.
    pub(super) fn submit(&self, entry: JournalEntry) -> Commit {
        let mut state = self.lock();
        if state.is_closed {
            return Writing::default().commit();
        }
        let commit = state.next.writing.commit();
        let patience = patience_of(&entry);
        state.next.entries.push(entry);
        self.call(state, patience);
        commit
    }

    /// An order that is not taken any more is dropped, and its answer with it.
    pub(super) fn order(&self, order: Order) {
        let mut state = self.lock();
        if !state.is_closed {
            state.next.orders.push(order);
            self.call(state, Duration::ZERO);
        }
    }

    /// What is queued is still written, nothing is taken after it.
    pub(super) fn finish(&self) {
        let mut state = self.lock();
        (state.next.is_last, state.is_closed) = (true, true);
        self.call(state, Duration::ZERO);
    }

    /// Takes all that has gathered; sleeps until some of it is due, or until `patience` is over, and then waits as long as more
    /// keeps coming, for `linger` at most.
    pub(super) fn take(&self, patience: Option<Duration>, linger: Duration) -> Round {
        let mut state = self.lock();
        let latest = patience.map(|patience| Instant::now() + patience);
        state.is_asleep = true;
        while let Some(wait) = state.wait(latest) {
            state = match wait {
                None => self.called.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(wait) => self.called.wait_timeout(state, wait).unwrap_or_else(PoisonError::into_inner).0,
            };
        }
        state.is_asleep = false;
        let (until, mut gathered) = (Instant::now() + linger, 0);
        while state.next.entries.len() > gathered && !state.is_closed && Instant::now() < until {
            gathered = state.next.entries.len();
            drop(state);
            // Whoever has something to add gets the processor first. When nothing came meanwhile, all may be waiting for
            // this group, and a sleep would leave the machine idle.
            std::thread::yield_now();
            state = self.lock();
        }
        state.due = None;
        std::mem::take(&mut state.next)
    }

    /// Ends all waits: there is nobody who writes.
    pub(super) fn abandon(&self) {
        let mut state = self.lock();
        state.is_closed = true;
        let never_written = std::mem::take(&mut state.next);
        drop(state);
        drop(never_written);
    }

    /// Has the writer come within `patience`.
    fn call(&self, mut state: MutexGuard<'_, State>, patience: Duration) {
        let due = Instant::now() + patience;
        let is_sooner = state.due.is_none_or(|before| due < before);
        if is_sooner {
            state.due = Some(due);
        }
        let must_wake = state.is_asleep && is_sooner;
        drop(state);
        if must_wake {
            self.called.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// How long the writer may still sleep: `None`, not at all; `Some(None)`, until it is called.
    fn wait(&self, latest: Option<Instant>) -> Option<Option<Duration>> {
        let Some(until) = self.due.into_iter().chain(latest).min() else { return Some(None) };
        let wait = until.saturating_duration_since(Instant::now());
        (!wait.is_zero()).then_some(Some(wait))
    }
}

fn patience_of(entry: &JournalEntry) -> Duration {
    match entry {
        JournalEntry::Open(_) | JournalEntry::Extend { .. } | JournalEntry::Progress { .. } => COMPANY_COMES,
        JournalEntry::Close(_) | JournalEntry::Refused(_) | JournalEntry::Notice(_) | JournalEntry::Told(_) => {
            Duration::ZERO
        }
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::governance::records::Usage;

    #[test]
    fn what_only_says_how_far_a_request_has_come_waits_for_company_and_everything_else_for_nobody() {
        let queue = Queue::default();
        let before = Instant::now();
        drop(queue.submit(JournalEntry::Progress { id: Uuid::nil(), usage: Usage::default() }));
        let due = queue.lock().due.expect("something is to be written");
        assert!(due >= before + COMPANY_COMES);
        drop(queue.submit(JournalEntry::Refused(Vec::new())));
        let due = queue.lock().due.expect("two are to be written");
        assert!(due <= Instant::now(), "it is due at once, and the first one with it");
        assert_eq!(queue.take(None, Duration::ZERO).entries.len(), 2);
        assert!(queue.lock().due.is_none(), "nothing is left");
    }

    #[test]
    fn company_that_does_not_come_is_not_waited_for_longer() {
        let queue = Queue::default();
        let before = Instant::now();
        for _ in 0..2 {
            drop(queue.submit(JournalEntry::Progress { id: Uuid::nil(), usage: Usage::default() }));
        }
        assert_eq!(queue.take(None, Duration::ZERO).entries.len(), 2, "without anybody's further word");
        assert!(before.elapsed() >= COMPANY_COMES);
    }
}
