//! One generation from admission to settlement: the task that owns the permit and the engine's streams.
//!
//! It never waits for the reader: what the reader has not taken yet is kept and joined, bounded by the request's own
//! maximum. That way a slow reader neither stops the engine nor lets a grant come too late.
use std::collections::VecDeque;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, Sleep, sleep, sleep_until, timeout};
use tracing::error;
use uuid::Uuid;

use super::wire;
use super::writer::finish_word;
use crate::api::error::ApiError;
use crate::api::limits::denied_detail;
use crate::engine::{Event, EventStream, Failure, FinishReason, TokenLogprob, TokenUsage};
use crate::governance::ports::StoreError;
use crate::governance::reconcile::Receipt;
use crate::governance::{Denied, Permit, Status, Usage, Vigil, Withdrawn};
use crate::telemetry::{self, Metrics, RequestTrace, Sizes, Stages, Tenant, TokenClass};

/// Completion tokens asked for at a time, a sequence, when the client set no maximum.
const BLOCK_TOKENS: u64 = 256;
/// A prompt that takes longer than this gets its reservation written meanwhile; an answer that is complete by then needs
/// one commit in all.
const RECORD_AFTER: Duration = Duration::from_millis(1);
/// When to come back after the engine or the store failed us.
const PAUSE: Duration = Duration::from_secs(5);

/// What the writer of the answer gets to see, in order; the last one is `Finished` or `Failed`.
#[derive(Debug)]
pub(crate) enum Output {
    /// A prompt is computed and the reservation is on the disk: content may follow.
    Started,
    /// Log-probabilities of a prompt's tokens.
    PromptLogprobs { prompt: usize, tokens: Vec<Option<TokenLogprob>> },
    /// More of a choice; choices are numbered over all prompts.
    Text { choice: u32, text: String, logprobs: Vec<TokenLogprob> },
    /// Complete, and on the ledger.
    ///
    /// In a box, like the next one: a channel keeps room for many outputs, and most are pieces of text.
    Finished(Box<Finished>),
    /// Ended by an error; nothing is charged, unless the reason lies with the caller.
    Failed(Box<ApiError>),
}

/// The end of a complete generation.
#[derive(Debug)]
pub(crate) struct Finished {
    /// Why each choice ended.
    pub(crate) reasons: Vec<FinishReason>,
    usage: wire::Usage,
    receipt: Receipt,
    /// The limit that ended a choice early.
    pub(crate) limit: Option<Value>,
}

impl Finished {
    /// The usage, for the client: from here on it counts as told.
    pub(crate) fn tell_usage(&self) -> wire::Usage {
        self.receipt.tell(self.usage.told());
        self.usage
    }
}

/// One prompt under way.
#[derive(Debug)]
pub(crate) struct Flight {
    pub(crate) stream: EventStream,
    /// Completion tokens the engine may sample so far.
    pub(crate) granted: u64,
    /// Completion tokens this prompt could use at most.
    pub(crate) most: u64,
    /// Set by the terminal event.
    usage: Option<TokenUsage>,
    is_parked: bool,
    retry_at: Option<Instant>,
    is_ended: bool,
}

impl Flight {
    pub(crate) fn new(stream: EventStream, granted: u64, most: u64) -> Self {
        Self { stream, granted, most, usage: None, is_parked: false, retry_at: None, is_ended: false }
    }
}

/// Times that bound a generation.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) stall: Duration,
    pub(crate) refill: Duration,
    pub(crate) generation: Duration,
}

/// A generation under way. Run it as a task of its own: it must outlive the connection.
pub(crate) struct Generation {
    pub(crate) id: Uuid,
    pub(crate) model: String,
    pub(crate) permit: Permit,
    pub(crate) flights: Vec<Flight>,
    /// Choices a prompt.
    pub(crate) choices: u32,
    /// The client's cap, if it set one.
    pub(crate) max_tokens: Option<u64>,
    /// Whose request it is.
    pub(crate) tenant: Tenant,
    pub(crate) patience: Patience,
    pub(crate) metrics: Arc<Metrics>,
    /// When the request arrived.
    pub(crate) arrived: Instant,
    /// When the engine got it.
    pub(crate) submitted: Instant,
    /// Filled in as the generation goes, if traces are wanted.
    pub(crate) trace: Option<RequestTrace>,
}

/// How following the engine ended.
enum Outcome {
    Completed,
    ReaderGone,
    /// The caller lost the right to it, or asked for more than there is time for; charged is what was sampled.
    Ended(ApiError),
    Failed(ApiError),
}

/// What changes while the generation runs.
struct Course {
    generation: Generation,
    pending: VecDeque<Output>,
    reasons: Vec<FinishReason>,
    limit: Option<Value>,
    /// Whether the reservation is on the disk; nothing leaves before.
    is_recorded: bool,
    /// Whether it is time to write it.
    wants_record: bool,
    has_started: bool,
    first_text: Option<Instant>,
    last_text: Option<Instant>,
}

impl Generation {
    /// Follows the engine to the end, settles, and tells the reader how it ended; `vigil` says when the caller may not go on.
    pub(crate) async fn run(self, vigil: Vigil, reader: mpsc::Sender<Output>) {
        let metrics = Arc::clone(&self.metrics);
        metrics.generation_opened();
        let reasons = vec![FinishReason::Length; self.flights.len() * self.choices as usize];
        let mut course = Course {
            generation: self,
            pending: VecDeque::new(),
            reasons,
            limit: None,
            is_recorded: false,
            wants_record: false,
            has_started: false,
            first_text: None,
            last_text: None,
        };
        let outcome = course.follow(vigil, &reader).await;
        course.settle(outcome, reader).await;
        metrics.generation_closed();
    }
}

impl Course {
    /// Follows the engine for as long as the caller may go on.
    async fn follow(&mut self, mut vigil: Vigil, reader: &mpsc::Sender<Output>) -> Outcome {
        let begun = Instant::now();
        let mut gone = pin!(reader.closed());
        let mut recorded = pin!(self.generation.permit.durable());
        let mut alarm = pin!(sleep(RECORD_AFTER));
        loop {
            let mut waits = Waits {
                reader,
                gone: gone.as_mut(),
                recorded: recorded.as_mut(),
                alarm: alarm.as_mut(),
                deadline: begun + self.generation.patience.generation,
            };
            let ended = {
                let changed = pin!(vigil.policy_changed());
                self.follow_until(changed, &mut waits).await
            };
            if let Some(outcome) = ended {
                return outcome;
            }
            if let Err(withdrawn) = vigil.verdict().await {
                return Outcome::Ended(withdrawn_error(withdrawn));
            }
        }
    }

    /// Handles events until every prompt has its terminal one, the reader is gone, or something fails; `None`: the policy
    /// has changed before.
    async fn follow_until(
        &mut self,
        mut changed: Pin<&mut impl Future<Output = ()>>,
        waits: &mut Waits<'_, impl Future<Output = ()>, impl Future<Output = Result<(), StoreError>>>,
    ) -> Option<Outcome> {
        while self.generation.flights.iter().any(|flight| flight.usage.is_none()) {
            let retry_at = self.generation.flights.iter().filter_map(|flight| flight.retry_at).min();
            let step = tokio::select! {
                biased;
                slot = waits.reader.reserve(), if self.is_recorded && !self.pending.is_empty() => match slot {
                    Ok(slot) => {
                        slot.send(self.pending.pop_front().expect("the branch is only taken when something is pending"));
                        continue;
                    }
                    Err(_) => Step::ReaderGone,
                },
                () = waits.gone.as_mut() => Step::ReaderGone,
                () = changed.as_mut() => return None,
                (flight, event) = poll_fn(|context| poll_event(&mut self.generation.flights, context)) => {
                    Step::Event(flight, event)
                }
                recorded = waits.recorded.as_mut(), if self.wants_record && !self.is_recorded => Step::Recorded(recorded),
                () = sleep_until(retry_at.unwrap_or(waits.deadline)), if retry_at.is_some() => Step::Retry,
                () = waits.alarm.as_mut() => Step::Alarm,
            };
            match step {
                Step::ReaderGone => return Some(Outcome::ReaderGone),
                Step::Alarm if Instant::now() < waits.deadline => {
                    self.wants_record = true;
                    waits.alarm.as_mut().reset(waits.deadline);
                }
                Step::Alarm => return Some(Outcome::Ended(too_long(self.generation.patience.generation))),
                Step::Retry => self.retry_parked().await,
                Step::Recorded(Ok(())) => self.is_recorded = true,
                Step::Recorded(Err(error)) => return Some(Outcome::Failed(self.unrecorded(&error))),
                Step::Event(flight, event) => {
                    if let Err(error) = self.handle(flight, event).await {
                        return Some(Outcome::Failed(error));
                    }
                }
            }
        }
        Some(Outcome::Completed)
    }

    async fn handle(&mut self, index: usize, event: Option<Event>) -> Result<(), ApiError> {
        let first_choice = index as u32 * self.generation.choices;
        match event {
            Some(Event::Started { .. }) => self.start(),
            Some(Event::PromptLogprobs(tokens)) => {
                self.start();
                self.pending.push_back(Output::PromptLogprobs { prompt: index, tokens });
            }
            Some(Event::Text { choice, text, logprobs }) => self.add_text(first_choice + choice, text, logprobs),
            Some(Event::ChoiceDone { choice, reason }) => self.reasons[(first_choice + choice) as usize] = reason,
            Some(Event::AllowanceLow { .. }) => self.extend(index).await,
            Some(Event::Parked) => {
                let flight = &mut self.generation.flights[index];
                // A notice that was under way while the last grant was made says nothing any more.
                if u64::from(flight.stream.usage().completion_tokens) >= flight.granted {
                    flight.is_parked = true;
                    self.extend(index).await;
                }
            }
            Some(Event::Done(usage)) => self.generation.flights[index].usage = Some(usage),
            Some(Event::Failed(failure, usage)) => {
                self.generation.flights[index].usage = Some(usage);
                return Err(failure_error(failure, self.generation.id));
            }
            // The engine promises a terminal event; without one its thread has died.
            None => return Err(ApiError::internal().naming_request(self.generation.id)),
        }
        Ok(())
    }

    /// There is content. The durability rule: the reservation is on the disk before the first byte of it leaves.
    fn start(&mut self) {
        if !self.has_started {
            (self.has_started, self.wants_record) = (true, true);
            self.pending.push_back(Output::Started);
        }
    }

    fn add_text(&mut self, choice: u32, text: String, logprobs: Vec<TokenLogprob>) {
        let generation = &self.generation;
        generation.permit.progress(governed(&used(&generation.flights)));
        let now = Instant::now();
        match self.last_text.replace(now) {
            None => {
                self.first_text = Some(now);
                generation.metrics.first_token(&generation.model, now - generation.arrived);
            }
            Some(before) => generation.metrics.next_token(&generation.model, now - before),
        }
        if let Some(Output::Text { choice: last, text: before, logprobs: scores }) = self.pending.back_mut()
            && *last == choice
        {
            before.push_str(&text);
            scores.extend(logprobs);
        } else {
            self.pending.push_back(Output::Text { choice, text, logprobs });
        }
    }

    /// Asks for one more block. When a limit refuses: waits if it frees soon, else lets the engine use up what it has and
    /// then ends the answer.
    async fn extend(&mut self, index: usize) {
        let flight = &mut self.generation.flights[index];
        let room = flight.most.saturating_sub(flight.granted);
        let want = room.min(BLOCK_TOKENS * u64::from(self.generation.choices));
        if want == 0 {
            return;
        }
        match self.generation.permit.extend(want).await {
            Ok(granted) => {
                flight.stream.grant(u32::try_from(granted).unwrap_or(u32::MAX));
                flight.granted += granted;
                (flight.is_parked, flight.retry_at) = (false, None);
            }
            Err(denied) => self.refused(index, &denied),
        }
    }

    fn refused(&mut self, index: usize, denied: &Denied) {
        self.limit = Some(denied_detail(denied));
        let refill = self.generation.patience.refill;
        let flight = &mut self.generation.flights[index];
        match denied.retry_after.filter(|wait| *wait <= refill) {
            Some(wait) => flight.retry_at = Some(Instant::now() + wait),
            None if flight.is_parked && !flight.is_ended => {
                (flight.is_ended, flight.retry_at) = (true, None);
                flight.stream.end_for_limit();
            }
            None => flight.retry_at = None,
        }
    }

    async fn retry_parked(&mut self) {
        let now = Instant::now();
        for index in 0..self.generation.flights.len() {
            if self.generation.flights[index].retry_at.is_some_and(|at| at <= now) {
                self.generation.flights[index].retry_at = None;
                self.extend(index).await;
            }
        }
    }

    /// Brings the engine to an end where it has not come to one, writes the ledger row, then lets the reader know.
    async fn settle(mut self, outcome: Outcome, reader: mpsc::Sender<Output>) {
        for flight in &self.generation.flights {
            if flight.usage.is_none() {
                flight.stream.cancel();
            }
        }
        for flight in &mut self.generation.flights {
            drain(flight).await;
        }
        let usage = used(&self.generation.flights);
        let (stages, sizes) = (self.stages(), self.sizes(&usage));
        let trace = self.traced(&stages, &usage, &outcome);
        let is_cut = self.reasons.contains(&FinishReason::Allowance);
        let status = match &outcome {
            Outcome::Completed if is_cut => Status::LimitReached,
            Outcome::Completed => Status::Completed,
            Outcome::ReaderGone | Outcome::Ended(_) => Status::Aborted,
            Outcome::Failed(_) => Status::Failed,
        };
        let Self { generation, mut pending, reasons, limit, is_recorded, .. } = self;
        let (metrics, model) = (&generation.metrics, &generation.model);
        metrics.request_ended(model, &stages, &sizes);
        let asked = Instant::now();
        let committed = generation.permit.settle(governed(&usage), status).await;
        let last = match (outcome, committed) {
            (_, Err(error)) => {
                metrics.ledger_failed();
                error!(request.id = %generation.id, %error, "cannot write the ledger row");
                Output::Failed(Box::new(unrecorded()))
            }
            (Outcome::Failed(error), Ok(_)) => Output::Failed(Box::new(error)),
            (Outcome::Ended(error), Ok(_)) => {
                metrics.ledger_committed(asked.elapsed());
                count_charged(metrics, model, &usage);
                metrics.tenant_charged(&generation.tenant, model, sizes.prompt_tokens + sizes.completion_tokens);
                Output::Failed(Box::new(error))
            }
            (Outcome::Completed | Outcome::ReaderGone, Ok(receipt)) => {
                metrics.ledger_committed(asked.elapsed());
                count_charged(metrics, model, &usage);
                metrics.tenant_charged(&generation.tenant, model, sizes.prompt_tokens + sizes.completion_tokens);
                if status != Status::Aborted {
                    reasons.iter().for_each(|reason| metrics.choice_finished(model, finish_word(*reason)));
                }
                let limit = limit.filter(|_| is_cut);
                Output::Finished(Box::new(Finished { usage: shown(&usage), receipt, limit, reasons }))
            }
        };
        if !is_recorded && matches!(last, Output::Failed(_)) {
            // Nothing has left yet, so the answer can be the error alone.
            pending.clear();
        }
        if let Some(mut trace) = trace {
            trace.stage("settle", asked.into_std(), Instant::now().into_std());
            trace.finish(Instant::now().into_std());
        }
        pending.push_back(last);
        for output in pending {
            // A reader that takes nothing for so long is gone; everything is settled already.
            if !matches!(timeout(generation.patience.stall, reader.send(output)).await, Ok(Ok(()))) {
                break;
            }
        }
    }

    /// How long each part took, of the prompt that waited longest.
    fn stages(&self) -> Stages {
        let generation = &self.generation;
        let queued = generation.flights.iter().map(|flight| flight.stream.queued_for()).max().unwrap_or_default();
        let until_text = self.first_text.map(|first| first.duration_since(generation.submitted));
        let decode = self.first_text.zip(self.last_text).map(|(first, last)| last.duration_since(first));
        Stages {
            whole: generation.arrived.elapsed(),
            queued,
            prefill: until_text.map_or(Duration::ZERO, |took| took.saturating_sub(queued)),
            decode: decode.unwrap_or_default(),
        }
    }

    /// Completes the trace but for the settlement, if there is one.
    fn traced(&mut self, stages: &Stages, usage: &TokenUsage, outcome: &Outcome) -> Option<RequestTrace> {
        let mut trace = self.generation.trace.take()?;
        let (from, computed) = (self.generation.submitted, self.generation.submitted + stages.queued);
        trace.stage("queue", from.into_std(), computed.into_std());
        if let Some((first, last)) = self.first_text.zip(self.last_text) {
            trace.stage("prefill", computed.into_std(), first.into_std());
            trace.stage("decode", first.into_std(), last.into_std());
        }
        trace.ended(telemetry::Outcome {
            input_tokens: usage.prompt_tokens.into(),
            cached_tokens: usage.cached_tokens.into(),
            output_tokens: usage.completion_tokens.into(),
            finish_reasons: self.reasons.iter().map(|reason| finish_word(*reason)).collect(),
            error: match outcome {
                Outcome::Completed => None,
                Outcome::ReaderGone => Some("client_gone"),
                Outcome::Ended(_) => Some("ended"),
                Outcome::Failed(_) => Some("failed"),
            },
        });
        Some(trace)
    }

    fn sizes(&self, usage: &TokenUsage) -> Sizes {
        let flights = &self.generation.flights;
        let longest = flights.iter().map(|flight| flight.stream.usage().completion_tokens).max().unwrap_or(0);
        Sizes {
            prompt_tokens: usage.prompt_tokens.into(),
            completion_tokens: usage.completion_tokens.into(),
            choices: self.generation.choices,
            max_tokens: self.generation.max_tokens,
            longest: longest.into(),
        }
    }

    fn unrecorded(&self, error: &StoreError) -> ApiError {
        error!(request.id = %self.generation.id, %error, "cannot write the reservation");
        unrecorded()
    }
}

/// What a generation waits for besides its events.
struct Waits<'a, G, R> {
    reader: &'a mpsc::Sender<Output>,
    /// The reader takes nothing any more.
    gone: Pin<&'a mut G>,
    /// The reservation is on the disk; the first poll has it written.
    recorded: Pin<&'a mut R>,
    /// Rings when the reservation must not wait longer, then at the deadline.
    alarm: Pin<&'a mut Sleep>,
    deadline: Instant,
}

enum Step {
    ReaderGone,
    Alarm,
    Retry,
    Recorded(Result<(), StoreError>),
    Event(usize, Option<Event>),
}

/// The next event of any prompt that is not over.
fn poll_event(flights: &mut [Flight], context: &mut Context<'_>) -> Poll<(usize, Option<Event>)> {
    for (index, flight) in flights.iter_mut().enumerate().filter(|(_, flight)| flight.usage.is_none()) {
        if let Poll::Ready(event) = flight.stream.poll_next(context) {
            return Poll::Ready((index, event));
        }
    }
    Poll::Pending
}

/// Waits for the terminal event, which carries the exact usage.
async fn drain(flight: &mut Flight) {
    while flight.usage.is_none() {
        match flight.stream.next().await {
            Some(Event::Done(usage) | Event::Failed(_, usage)) => flight.usage = Some(usage),
            Some(_) => {}
            None => flight.usage = Some(flight.stream.usage()),
        }
    }
}

/// What all prompts have cost so far.
fn used(flights: &[Flight]) -> TokenUsage {
    let mut sum = TokenUsage::default();
    for flight in flights {
        let usage = flight.usage.unwrap_or_else(|| flight.stream.usage());
        sum.prompt_tokens += usage.prompt_tokens;
        sum.cached_tokens += usage.cached_tokens;
        sum.completion_tokens += usage.completion_tokens;
    }
    sum
}

fn governed(usage: &TokenUsage) -> Usage {
    Usage {
        prompt_tokens: usage.prompt_tokens.into(),
        cached_tokens: usage.cached_tokens.into(),
        completion_tokens: usage.completion_tokens.into(),
    }
}

fn shown(usage: &TokenUsage) -> wire::Usage {
    wire::Usage::new(usage.prompt_tokens.into(), usage.cached_tokens.into(), usage.completion_tokens.into())
}

fn count_charged(metrics: &Metrics, model: &str, usage: &TokenUsage) {
    metrics.charged(model, TokenClass::Prompt, u64::from(usage.prompt_tokens - usage.cached_tokens));
    metrics.charged(model, TokenClass::Cached, usage.cached_tokens.into());
    metrics.charged(model, TokenClass::Completion, usage.completion_tokens.into());
}

fn failure_error(failure: Failure, id: Uuid) -> ApiError {
    match failure {
        Failure::Cancelled | Failure::Shutdown => {
            ApiError::unavailable("The model or the server is being stopped. Please retry.", PAUSE)
        }
        Failure::Deadline => ApiError::overloaded(PAUSE),
        Failure::Internal(reference) => {
            error!(request.id = %id, engine.reference = %reference, "the engine failed on a request");
            ApiError::internal().naming_request(id)
        }
    }
}

fn withdrawn_error(withdrawn: Withdrawn) -> ApiError {
    match withdrawn {
        Withdrawn::Credential => ApiError::unauthenticated("it was revoked while the answer was generated"),
        Withdrawn::Model => ApiError::model_forbidden(),
    }
}

fn too_long(most: Duration) -> ApiError {
    let message = format!("The answer took longer than {} seconds.", most.as_secs());
    // The same request would take as long again.
    ApiError::unavailable(message, PAUSE).with_should_retry(false)
}

fn unrecorded() -> ApiError {
    ApiError::unavailable("The request could not be recorded. Please retry.", PAUSE)
}
