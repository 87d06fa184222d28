//! The way into the engine thread: a bounded queue of submissions, the wishes of handles, and the figures it shows.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use super::config::Config;
use super::figures::Figures;
use super::handle::{EngineTotals, QueueBound, SubmitError};
use super::mailbox::Mailbox;
use super::request::{Failure, Request};

/// A request on its way to the engine thread.
#[derive(Debug)]
pub(crate) struct Submission {
    /// Name inside this engine, also the order of arrival.
    pub(crate) serial: u64,
    pub(crate) request: Request,
    pub(crate) mailbox: Arc<Mailbox>,
}

/// State shared by the handles, the event streams and the engine thread.
#[derive(Debug)]
pub(crate) struct Inbox {
    state: Mutex<State>,
    changed: Condvar,
    /// Whether every request has its terminal event.
    all_closed: watch::Sender<bool>,
    stopped: watch::Sender<bool>,
    figures: Figures,
    max_queue_requests: usize,
    max_queue_tokens: usize,
}

#[derive(Debug, Default)]
struct State {
    arrived: VecDeque<Submission>,
    // Every request without a terminal event, so that all can be failed when the thread dies.
    open: HashMap<u64, Arc<Mailbox>>,
    next_serial: u64,
    waiting_requests: usize,
    waiting_tokens: usize,
    retry_after: Duration,
    is_poked: bool,
    /// The engine's thread waits: only then must it be woken, which is a call to the system.
    is_asleep: bool,
    is_draining: bool,
    is_stopping: bool,
    is_stopped: bool,
}

/// What the engine thread finds in its inbox.
#[derive(Debug, Default)]
pub(crate) struct Mail {
    pub(crate) arrived: Vec<Submission>,
    pub(crate) is_stopping: bool,
}

impl Inbox {
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            state: Mutex::new(State { retry_after: Duration::from_secs(1), ..State::default() }),
            changed: Condvar::new(),
            all_closed: watch::Sender::new(true),
            stopped: watch::Sender::new(false),
            figures: Figures::new(),
            max_queue_requests: config.max_queue_requests,
            max_queue_tokens: config.max_queue_tokens,
        }
    }

    /// Queues a request and returns its mailbox.
    ///
    /// # Errors
    /// `QueueFull`, `Draining` or `Stopped`; nothing is queued then.
    pub(crate) fn submit(&self, request: Request) -> Result<Arc<Mailbox>, SubmitError> {
        let mut state = self.lock();
        if state.is_stopped || state.is_stopping {
            return Err(SubmitError::Stopped);
        }
        if state.is_draining {
            return Err(SubmitError::Draining);
        }
        let tokens = request.prompt.len();
        let full = |bound| Err(SubmitError::QueueFull { bound, retry_after: state.retry_after });
        if state.waiting_requests >= self.max_queue_requests {
            return full(QueueBound::Requests);
        }
        if state.waiting_requests > 0 && state.waiting_tokens + tokens > self.max_queue_tokens {
            return full(QueueBound::Tokens);
        }
        state.waiting_requests += 1;
        state.waiting_tokens += tokens;
        let serial = state.next_serial;
        state.next_serial += 1;
        let mailbox = Arc::new(Mailbox::default());
        state.open.insert(serial, Arc::clone(&mailbox));
        self.tell_closed(false);
        self.figures.count(state.waiting_requests, state.open.len());
        state.arrived.push_back(Submission { serial, request, mailbox: Arc::clone(&mailbox) });
        self.wake(state);
        Ok(mailbox)
    }

    /// Makes the engine thread look at grants and cancellations.
    pub(crate) fn poke(&self) {
        let mut state = self.lock();
        state.is_poked = true;
        self.wake(state);
    }

    pub(crate) fn drain(&self) {
        self.lock().is_draining = true;
        self.figures.drain();
    }

    pub(crate) fn stop(&self) {
        let mut state = self.lock();
        state.is_stopping = true;
        self.wake(state);
    }

    /// Takes what has arrived; waits up to `patience` when nothing has.
    pub(crate) fn take(&self, patience: Duration) -> Mail {
        let mut state = self.lock();
        let is_quiet = |state: &mut State| !state.is_poked && !state.is_stopping && state.arrived.is_empty();
        if !patience.is_zero() && is_quiet(&mut state) {
            // On a busy machine whoever is about to submit gets the processor first: then nobody has to be woken, and the
            // next step has more rows. On an idle one this returns at once.
            drop(state);
            std::thread::yield_now();
            state = self.lock();
        }
        if !patience.is_zero() && is_quiet(&mut state) {
            state.is_asleep = true;
            let waited = self.changed.wait_timeout_while(state, patience, is_quiet);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
            state.is_asleep = false;
        }
        state.is_poked = false;
        Mail { arrived: state.arrived.drain(..).collect(), is_stopping: state.is_stopping }
    }

    /// Records that a request has left the queue, for the batch or for good.
    pub(crate) fn left_queue(&self, prompt_tokens: usize) {
        let mut state = self.lock();
        state.waiting_requests = state.waiting_requests.saturating_sub(1);
        state.waiting_tokens = state.waiting_tokens.saturating_sub(prompt_tokens);
        self.figures.count(state.waiting_requests, state.open.len());
    }

    /// Records that a request has its terminal event.
    pub(crate) fn closed(&self, serial: u64) {
        let mut state = self.lock();
        state.open.remove(&serial);
        // Shown before it is told: who waited for the end looks at the figures next.
        self.figures.count(state.waiting_requests, state.open.len());
        self.tell_closed(state.open.is_empty());
    }

    /// Shows the figures of the last step.
    pub(crate) fn publish(&self, totals: EngineTotals, retry_after: Duration) {
        self.figures.publish(totals);
        self.lock().retry_after = retry_after;
    }

    /// Records a fault that makes the engine unhealthy; the first one stays.
    pub(crate) fn report_fault(&self, fault: String) {
        self.figures.report_fault(fault);
    }

    /// Ends everything: no more submissions, every open request fails. Called by the thread as its last act.
    pub(crate) fn close(&self, failure: Failure) {
        let mut state = self.lock();
        state.is_stopped = true;
        state.arrived.clear();
        let open = std::mem::take(&mut state.open);
        (state.waiting_requests, state.waiting_tokens) = (0, 0);
        self.figures.count(0, 0);
        self.figures.stop();
        drop(state);
        for mailbox in open.values() {
            mailbox.fail(failure);
        }
        self.tell_closed(true);
        self.stopped.send_replace(true);
    }

    /// What the engine shows of itself; read without a lock.
    pub(crate) fn figures(&self) -> &Figures {
        &self.figures
    }

    /// Waits until no request is open.
    pub(crate) async fn all_closed(&self) {
        // The sender lives in `self`, so the channel cannot close during the wait.
        let _ = self.all_closed.subscribe().wait_for(|&all| all).await;
    }

    /// Waits until the thread has ended.
    pub(crate) async fn has_stopped(&self) {
        let _ = self.stopped.subscribe().wait_for(|&stopped| stopped).await;
    }

    /// Wakes those who wait for the last request only when there is something to tell: most requests come and go among others.
    fn tell_closed(&self, all: bool) {
        self.all_closed.send_if_modified(|before| std::mem::replace(before, all) != all);
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let is_asleep = std::mem::take(&mut state.is_asleep);
        drop(state);
        if is_asleep {
            self.changed.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each change under the lock is complete before anything can panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
