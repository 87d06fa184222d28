//! What waits to be written; the writer sleeps only while nothing does.
//!
//! Entries gather while the writer is busy or asleep. All that gathered become one group, and all who wait for one of them
//! wait for the group.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use crate::governance::ports::{Commit, Edit, JournalEntry, StoreError, Writing};
use crate::governance::records::KeyId;

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
    /// Somebody waits for what has gathered.
    is_urgent: bool,
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
        state.next.entries.push(entry);
        self.call(state);
        commit
    }

    /// An order that is not taken any more is dropped, and its answer with it.
    pub(super) fn order(&self, order: Order) {
        let mut state = self.lock();
        if !state.is_closed {
            state.next.orders.push(order);
            self.call(state);
        }
    }

    /// What is queued is still written, nothing is taken after it.
    pub(super) fn finish(&self) {
        let mut state = self.lock();
        (state.next.is_last, state.is_closed) = (true, true);
        self.call(state);
    }

    /// Takes all that has gathered; sleeps until somebody waits for it, or until `patience` is over, and then waits as long as
    /// more keeps coming, for `linger` at most.
    pub(super) fn take(&self, patience: Option<Duration>, linger: Duration) -> Round {
        let mut state = self.lock();
        state.is_asleep = true;
        let is_quiet = |state: &mut State| !state.is_urgent;
        state = match patience {
            None => self.called.wait_while(state, is_quiet).unwrap_or_else(PoisonError::into_inner),
            Some(patience) => {
                self.called.wait_timeout_while(state, patience, is_quiet).unwrap_or_else(PoisonError::into_inner).0
            }
        };
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
        state.is_urgent = false;
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

    fn call(&self, mut state: MutexGuard<'_, State>) {
        let must_wake = state.is_asleep && !state.is_urgent;
        state.is_urgent = true;
        drop(state);
        if must_wake {
            self.called.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
