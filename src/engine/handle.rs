//! What the rest of the server holds of an engine: a cheap handle to submit with and a stream of events per request.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;

use millgate_models::Device;

use super::inbox::Inbox;
use super::mailbox::Mailbox;
use super::pulse::Pulse;
use super::request::{Event, Request, TokenUsage};
use crate::telemetry::Distribution;

/// Submits requests to one model's engine thread; cheap to clone. When the last clone is dropped the engine stops.
#[derive(Clone)]
pub struct EngineHandle {
    shared: Arc<Shared>,
}

struct Shared {
    name: String,
    spec: EngineSpec,
    stuck_after: Duration,
    inbox: Arc<Inbox>,
    pulse: Arc<Pulse>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

/// Fixed facts about an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineSpec {
    /// Where the model computes.
    pub device: Device,
    /// Longest sequence, prompt and completion together, in tokens.
    pub context_window: usize,
    /// Tokens of a block of the cache.
    pub block_tokens: usize,
    /// Token ids are below this.
    pub vocab_size: usize,
    /// Longest sequence that the cache has room for when it is alone, in tokens.
    pub cache_tokens: usize,
    /// Sequences computed at the same time.
    pub max_running: usize,
    /// Requests that may wait.
    pub max_queue_requests: usize,
    /// Prompt tokens that may wait.
    pub max_queue_tokens: usize,
}

/// Blocks of the cache by what they hold.
///
/// INVARIANT: `free + cached + owned = total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BlockCounts {
    /// Hold nothing of use.
    pub free: usize,
    /// Owned by no sequence, kept for later prompts; given up when room is needed.
    pub cached: usize,
    /// Owned by at least one sequence.
    pub owned: usize,
    /// All blocks.
    pub total: usize,
}

/// Figures of an engine: gauges of the last step, and counts since the start.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct EngineTotals {
    /// Requests not yet started, as the bounded queue counts them.
    pub queued_requests: usize,
    /// Sequences in the batch.
    pub running: usize,
    /// Sequences waiting for a place, preempted ones included.
    pub waiting: usize,
    /// Requests that stand at zero allowance.
    pub parked: usize,
    /// Blocks of the cache.
    pub blocks: BlockCounts,
    /// Steps computed.
    pub steps: u64,
    /// Time spent in steps.
    pub step_time: Duration,
    /// Prompt tokens computed or found, each once.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u64,
    /// Completion tokens appended.
    pub completion_tokens: u64,
    /// Tokens put through the model, recomputed ones included.
    pub computed_tokens: u64,
    /// Guesses of several tokens at once that were computed.
    pub drafts: u64,
    /// Guessed tokens that were computed.
    pub draft_tokens: u64,
    /// Guessed tokens that were appended.
    pub accepted_tokens: u64,
    /// Sequences that lost their blocks and were computed again.
    pub preemptions: u64,
    /// Requests that ended with `Done`.
    pub requests_done: u64,
    /// Requests that ended with `Failed`.
    pub requests_failed: u64,
}

impl EngineTotals {
    /// The same gauges, with the counts of an engine that has ended added.
    pub fn after(self, past: &Self) -> Self {
        Self {
            steps: self.steps + past.steps,
            step_time: self.step_time + past.step_time,
            prompt_tokens: self.prompt_tokens + past.prompt_tokens,
            cached_tokens: self.cached_tokens + past.cached_tokens,
            completion_tokens: self.completion_tokens + past.completion_tokens,
            computed_tokens: self.computed_tokens + past.computed_tokens,
            drafts: self.drafts + past.drafts,
            draft_tokens: self.draft_tokens + past.draft_tokens,
            accepted_tokens: self.accepted_tokens + past.accepted_tokens,
            preemptions: self.preemptions + past.preemptions,
            requests_done: self.requests_done + past.requests_done,
            requests_failed: self.requests_failed + past.requests_failed,
            ..self
        }
    }

    /// The counts alone, without the gauges: what is left of an engine that has ended.
    pub fn counts(&self) -> Self {
        Self::default().after(self)
    }
}

/// How an engine is doing.
#[derive(Debug, Clone, PartialEq)]
pub struct EngineStatus {
    /// Whether the engine makes progress: its thread lives, beats, and has found no fault in its own books.
    pub is_healthy: bool,
    /// Time since the thread was last seen alive.
    pub heartbeat_age: Duration,
    /// Whether new requests are refused.
    pub is_draining: bool,
    /// Requests without their terminal event.
    pub open_requests: usize,
    /// The first fault found, if any.
    pub fault: Option<String>,
    /// Gauges and counts.
    pub totals: EngineTotals,
}

/// A bound of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QueueBound {
    /// How many requests may wait.
    Requests,
    /// How many prompt tokens may wait.
    Tokens,
}

/// Why a request was not taken. Nothing of it was computed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Too many requests wait already.
    #[error("the queue is full, a place is expected in {} s", retry_after.as_secs())]
    QueueFull {
        /// What there is too much of.
        bound: QueueBound,
        /// When to try again, from the present pace of work.
        retry_after: Duration,
    },
    /// The server is shutting down and finishes what it has.
    #[error("the engine takes no new requests")]
    Draining,
    /// The engine has ended.
    #[error("the engine has stopped")]
    Stopped,
    /// The prompt leaves no room for a completion.
    #[error("the prompt has {prompt_tokens} tokens, at most {limit} fit")]
    PromptTooLong {
        /// Tokens of the prompt.
        prompt_tokens: usize,
        /// Longest prompt that fits, with the completion tokens it asks for at least.
        limit: usize,
    },
    /// A parameter has no meaning; callers check before.
    #[error("{what}")]
    Invalid {
        /// The parameter and what is wrong.
        what: &'static str,
    },
}

impl EngineHandle {
    pub(crate) fn new(name: String, spec: EngineSpec, stuck_after: Duration, lines: Lines) -> Self {
        let Lines { inbox, pulse, thread } = lines;
        Self { shared: Arc::new(Shared { name, spec, stuck_after, inbox, pulse, thread: Mutex::new(Some(thread)) }) }
    }

    #[cfg(test)]
    pub(crate) fn shared_inbox(&self) -> Arc<Inbox> {
        Arc::clone(&self.shared.inbox)
    }

    /// Name of the model that this engine serves.
    pub fn name(&self) -> &str {
        &self.shared.name
    }

    /// Fixed facts.
    pub fn spec(&self) -> &EngineSpec {
        &self.shared.spec
    }

    /// Queues a request; its events arrive on the stream.
    ///
    /// # Errors
    /// [`SubmitError`]; nothing was queued then.
    pub fn submit(&self, request: Request) -> Result<EventStream, SubmitError> {
        self.shared.spec.check(&request)?;
        let mailbox = self.shared.inbox.submit(request)?;
        Ok(EventStream { mailbox, inbox: Arc::clone(&self.shared.inbox) })
    }

    /// How the engine is doing now. Takes no lock, so asking often costs the engine nothing.
    pub fn status(&self) -> EngineStatus {
        let heartbeat_age = self.shared.pulse.age();
        let glance = self.shared.inbox.figures().glance();
        let is_healthy = !glance.is_stopped && glance.fault.is_none() && heartbeat_age < self.shared.stuck_after;
        EngineStatus {
            is_healthy,
            heartbeat_age,
            is_draining: glance.is_draining,
            open_requests: glance.open,
            fault: glance.fault,
            totals: glance.totals,
        }
    }

    /// How many tokens each step computed.
    pub fn step_tokens(&self) -> Distribution {
        self.shared.inbox.figures().step_tokens().read()
    }

    /// Refuses new requests from now on; those already taken go on.
    pub fn drain(&self) {
        self.shared.inbox.drain();
    }

    /// Waits until no request is open, as after [`EngineHandle::drain`].
    ///
    /// # Cancel
    /// Safe: waiting changes nothing.
    pub async fn drained(&self) {
        self.shared.inbox.all_closed().await;
    }

    /// Stops the engine: open requests end with `Failed(Shutdown)`, the thread ends and the model is dropped.
    ///
    /// # Cancel
    /// The engine stops all the same; nobody waits for its thread then.
    pub async fn shutdown(&self) {
        self.shared.inbox.stop();
        self.shared.inbox.has_stopped().await;
        let thread = self.shared.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            // The thread catches its own panics and reports them; all that is left here is to wait for its end. Giving
            // a large model back takes the system a while, which must not hold up anybody else's requests.
            let _ = tokio::task::spawn_blocking(move || drop(thread.join())).await;
        }
    }
}

impl fmt::Debug for EngineHandle {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("EngineHandle").field("name", &self.shared.name).finish_non_exhaustive()
    }
}

/// What connects a handle with the engine thread.
pub(crate) struct Lines {
    pub(crate) inbox: Arc<Inbox>,
    pub(crate) pulse: Arc<Pulse>,
    pub(crate) thread: JoinHandle<()>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.inbox.stop();
    }
}

impl EngineSpec {
    fn check(&self, request: &Request) -> Result<(), SubmitError> {
        let sampling = &request.sampling;
        let numbers = [sampling.presence_penalty, sampling.frequency_penalty];
        let problems = [
            (request.prompt.is_empty(), "the prompt is empty"),
            (request.prompt.iter().any(|&token| token as usize >= self.vocab_size), "a prompt token is unknown"),
            (request.choices == 0, "the number of choices is zero"),
            (!(sampling.temperature >= 0.0 && sampling.temperature.is_finite()), "temperature is not a number from 0"),
            (!(0.0..=1.0).contains(&sampling.top_p), "top_p is outside 0 to 1"),
            (!(0.0..=1.0).contains(&sampling.min_p), "min_p is outside 0 to 1"),
            (numbers.iter().any(|number| !number.is_finite()), "a penalty is not a number"),
            (
                !(sampling.repetition_penalty > 0.0 && sampling.repetition_penalty.is_finite()),
                "repetition_penalty is not a number above 0",
            ),
            (
                sampling
                    .logit_bias
                    .iter()
                    .any(|&(token, bias)| token as usize >= self.vocab_size || bias.is_nan() || bias == f32::INFINITY),
                "logit_bias holds an unknown token or a value that is not a number",
            ),
        ];
        if let Some((_, what)) = problems.into_iter().find(|(is_wrong, _)| *is_wrong) {
            return Err(SubmitError::Invalid { what });
        }
        let least = usize::from(request.max_tokens > 0);
        let limit = self.context_window.min(self.cache_tokens).saturating_sub(least);
        if request.prompt.len() > limit {
            return Err(SubmitError::PromptTooLong { prompt_tokens: request.prompt.len(), limit });
        }
        Ok(())
    }
}

/// The events of one request. Dropping it cancels the request.
#[derive(Debug)]
pub struct EventStream {
    mailbox: Arc<Mailbox>,
    inbox: Arc<Inbox>,
}

impl EventStream {
    /// The next event; `None` after the terminal one.
    ///
    /// # Cancel
    /// Safe: an event is taken only when it is returned.
    pub async fn next(&mut self) -> Option<Event> {
        std::future::poll_fn(|context| self.poll_next(context)).await
    }

    /// As [`EventStream::next`], for who waits for several streams at once.
    pub fn poll_next(&mut self, context: &mut Context<'_>) -> Poll<Option<Event>> {
        self.mailbox.poll_next(context)
    }

    /// What the request has cost up to the last step; exact once the terminal event is there.
    pub fn usage(&self) -> TokenUsage {
        self.mailbox.usage()
    }

    /// How long the request waited for its place in the batch; zero while it waits.
    pub fn queued_for(&self) -> Duration {
        self.mailbox.queued_for()
    }

    /// Raises the allowance by so many completion tokens.
    pub fn grant(&self, tokens: u32) {
        self.mailbox.grant(tokens);
        self.inbox.poke();
    }

    /// Ends every choice cleanly, with [`FinishReason::Allowance`](super::FinishReason::Allowance), before the next
    /// step.
    pub fn end_for_limit(&self) {
        self.mailbox.end_for_limit();
        self.inbox.poke();
    }

    /// Ends the request before the next step; the terminal event still arrives, with the exact usage.
    pub fn cancel(&self) {
        self.mailbox.cancel();
        self.inbox.poke();
    }
}

impl Drop for EventStream {
    fn drop(&mut self) {
        if !self.mailbox.is_closed() {
            self.cancel();
        }
    }
}
