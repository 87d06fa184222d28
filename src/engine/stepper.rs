//! The engine without its thread: takes requests in, computes one step at a time, and sends each request its events.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use millgate_models::text::ModelText;
use millgate_models::{BLOCK_TOKENS, DrawError, ForwardError, Model};
use tracing::{debug, error};
use uuid::Uuid;

use super::config::Config;
use super::desk::Desk;
use super::fairness::Lane;
use super::generation::Generation;
use super::handle::{EngineSpec, EngineTotals};
use super::inbox::{Inbox, Submission};
use super::pace::Pace;
use super::prefix_cache::PrefixHasher;
use super::request::{Failure, FinishReason};
use super::runner::{Runner, Wishes};
use super::sampler::Sampler;
use super::scheduler::{Item, Limits, Plan, Scheduler, Terms};
use super::sequence::{Sequence, SequenceId};

/// Forward passes that fail one after the other before the engine calls itself unhealthy.
const MAX_FAILED_STEPS: u32 = 3;

/// Everything the engine thread owns.
pub(crate) struct Stepper {
    name: String,
    text: ModelText,
    config: Config,
    spec: EngineSpec,
    inbox: Arc<Inbox>,
    runner: Runner,
    scheduler: Scheduler,
    sampler: Sampler,
    pace: Pace,
    generations: BTreeMap<u64, Generation>,
    totals: EngineTotals,
    last_finish: Option<Instant>,
    failed_steps: u32,
}

/// What came of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Sequences that computed one token, guesses computed with them, and tokens of longer chunks.
    Worked { decode_rows: usize, draft_rows: usize, prefill_tokens: usize },
    /// Nothing could be computed; something may by this time, if any.
    Idle { until: Option<Instant> },
}

impl Stepper {
    pub(crate) fn new(name: &str, model: Box<dyn Model>, text: ModelText, config: Config, inbox: Arc<Inbox>) -> Self {
        let facts = model.spec();
        let max_running = config.max_running.unwrap_or(facts.max_output_rows).clamp(1, facts.max_output_rows.max(1));
        let limits = Limits {
            num_blocks: facts.num_blocks,
            max_step_tokens: facts.max_step_tokens,
            max_output_rows: facts.max_output_rows,
            max_running,
        };
        let spec = EngineSpec {
            device: facts.device,
            context_window: facts.context_window,
            block_tokens: BLOCK_TOKENS,
            vocab_size: facts.vocab_size,
            cache_tokens: facts.num_blocks * BLOCK_TOKENS,
            max_running,
            max_queue_requests: config.max_queue_requests,
            max_queue_tokens: config.max_queue_tokens,
        };
        let revision = format!(
            "{name}\n{}\n{}\n{} layers, {} bytes a block",
            facts.architecture, config.revision, facts.num_layers, facts.kv_bytes_per_block
        );
        let hasher = config.prefix_cache.then(|| PrefixHasher::new(&revision, config.shared_prefixes.clone()));
        Self {
            name: name.to_owned(),
            text,
            spec,
            inbox,
            runner: Runner::new(model),
            scheduler: Scheduler::new(limits, hasher),
            sampler: Sampler::default(),
            pace: Pace::default(),
            generations: BTreeMap::new(),
            totals: EngineTotals::default(),
            last_finish: None,
            failed_steps: 0,
            config,
        }
    }

    pub(crate) fn spec(&self) -> &EngineSpec {
        &self.spec
    }

    /// Puts a new request in line.
    pub(crate) fn accept(&mut self, submission: Submission, now: Instant) {
        let Submission { serial, request, mailbox } = submission;
        // The last token sampled is never computed, so it needs no place in the cache.
        let room = (self.spec.context_window.min(self.spec.cache_tokens)).saturating_sub(request.prompt.len());
        let generation = Generation::new(&request, mailbox, &self.text, room, now);
        let terms = Terms {
            choices: request.choices,
            allowance: u64::from(request.allowance),
            max_tokens: generation.max_tokens,
            lane: Lane { band: request.priority, flow: request.flow },
            weight: request.weight,
            salt: request.cache_salt,
        };
        let id = SequenceId { request: serial, choice: 0 };
        debug!(request.id = %request.id.0, flow = request.flow.0, weight = request.weight, priority = request.priority,
            "request with {} prompt tokens enters the queue", request.prompt.len());
        self.scheduler.add(terms, Sequence::new(id, request.prompt, request.prompt_logprobs.is_some()));
        self.generations.insert(serial, generation);
    }

    /// Does what the readers asked for since the last step, and ends what has stood or waited too long.
    pub(crate) fn heed_wishes(&mut self, now: Instant) {
        let serials: Vec<u64> = self.generations.keys().copied().collect();
        for serial in serials {
            let generation = self.generations.get_mut(&serial).expect("only this loop removes requests");
            if generation.mailbox.is_cancelled() {
                self.close(serial, Some(Failure::Cancelled), now);
                continue;
            }
            let granted = generation.take_grant();
            self.scheduler.grant(serial, granted);
            let is_late = |since: Instant, limit| now.saturating_duration_since(since) >= limit;
            let has_parked_too_long =
                generation.parked_since.is_some_and(|since| is_late(since, self.config.park_timeout));
            if generation.mailbox.is_ended_for_limit() || has_parked_too_long {
                generation.finish_all(FinishReason::Allowance);
                self.close(serial, None, now);
            } else if generation.is_queued && is_late(generation.arrived, self.config.queue_timeout) {
                self.close(serial, Some(Failure::Deadline), now);
            } else if self.scheduler.is_parked(serial) {
                generation.park(now);
                generation.flush();
            }
        }
    }

    /// Launches a step and sends the events of the one before it; where the model cannot run ahead, of the same one.
    pub(crate) fn step(&mut self, now: Instant) -> Step {
        let (max_step, floor) = (self.config.max_step, self.config.min_prefill_tokens);
        let pace = &self.pace;
        let mut plan = self.scheduler.plan(|rows| pace.prefill_tokens(rows, max_step, floor, usize::MAX));
        if self.config.speculation && !self.runner.can_run_ahead() {
            let row_cost = pace.draft_cost(plan.items.len());
            self.scheduler.draft(&mut plan, row_cost);
        }
        for &(id, cached) in &plan.admitted {
            self.book_admission(id, cached, now);
        }
        let has_work = !plan.items.is_empty();
        let is_launched = has_work && self.launch(plan, now);
        let may_stay = usize::from(is_launched && self.config.run_ahead && self.runner.can_run_ahead());
        let mut step = match has_work || self.runner.in_flight() > 0 {
            true => Step::Worked { decode_rows: 0, draft_rows: 0, prefill_tokens: 0 },
            false => Step::Idle { until: self.next_deadline() },
        };
        while self.runner.in_flight() > may_stay {
            step = self.land(now);
        }
        step
    }

    /// Gives a step to the model; `false` when it was refused and its requests have failed.
    fn launch(&mut self, plan: Plan, now: Instant) -> bool {
        let wishes = Wishes { generations: &self.generations, end_tokens: &self.text.end_tokens };
        match self.runner.launch(plan, &self.scheduler, wishes) {
            Ok(items) => {
                self.scheduler.launch(items);
                true
            }
            Err((items, failure)) => {
                self.fail_step(&items, &failure, now);
                false
            }
        }
    }

    /// Waits for the oldest step in flight and sends the events that come of it.
    fn land(&mut self, now: Instant) -> Step {
        let (flight, answer) = self.runner.land().expect("only called while a step is in flight");
        let items = &flight.items;
        let answer = match answer {
            Ok(answer) => answer,
            Err(failure) => {
                self.fail_step(items, &failure, now);
                return Step::Worked { decode_rows: 0, draft_rows: 0, prefill_tokens: 0 };
            }
        };
        self.failed_steps = 0;
        self.scheduler.land(items);
        let mut desk = Desk {
            text: &self.text,
            scheduler: &mut self.scheduler,
            sampler: &mut self.sampler,
            totals: &mut self.totals,
        };
        let mut ended: Vec<(u64, Option<DrawError>)> = Vec::new();
        for (item, rows) in items.iter().zip(&flight.rows) {
            // Who ended while this step was in flight has no use for its row.
            let Some(generation) = self.generations.get_mut(&item.id.request) else { continue };
            match desk.settle(item, rows, &answer, generation) {
                Err(broken) => ended.push((item.id.request, Some(broken))),
                Ok(()) if generation.is_finished() => ended.push((item.id.request, None)),
                Ok(()) => {}
            }
        }
        self.send(items, ended, now);
        self.totals.steps += 1;
        let decode_rows = items.iter().filter(|item| item.count == 1).count();
        let all: usize = items.iter().map(|item| item.count).sum();
        let draft_rows: usize = items.iter().map(|item| item.drafts).sum();
        self.totals.computed_tokens += (all + draft_rows) as u64;
        Step::Worked { decode_rows, draft_rows, prefill_tokens: all - decode_rows }
    }

    /// Takes in how long a step took, for the pace and the figures.
    pub(crate) fn observe(&mut self, step: Step, took: std::time::Duration) {
        if let Step::Worked { decode_rows, draft_rows, prefill_tokens } = step {
            self.totals.step_time += took;
            let tokens = decode_rows + draft_rows + prefill_tokens;
            if tokens > 0 {
                self.pace.observe(decode_rows, draft_rows, prefill_tokens, took);
                self.inbox.figures().step_tokens().observe(tokens as f64);
            }
        }
        self.publish();
    }

    /// Shows the present figures to the handles.
    pub(crate) fn publish(&mut self) {
        self.totals.running = self.scheduler.running_len();
        self.totals.waiting = self.scheduler.waiting_len();
        self.totals.parked = self.generations.values().filter(|generation| generation.parked_since.is_some()).count();
        self.totals.blocks = self.scheduler.block_counts();
        self.totals.preemptions = self.scheduler.preemptions();
        self.inbox.publish(self.totals, self.pace.retry_after());
    }

    /// Compares all books and reports the first disagreement as a fault.
    pub(crate) fn check(&self) -> Result<(), String> {
        self.scheduler.check()?;
        let blocks = self.scheduler.block_counts();
        if self.generations.is_empty() && blocks.owned > 0 {
            return Err(format!("{} blocks are owned and no request is open", blocks.owned));
        }
        Ok(())
    }

    fn book_admission(&mut self, id: SequenceId, cached: usize, now: Instant) {
        let Some(generation) = self.generations.get_mut(&id.request) else { return };
        if !std::mem::replace(&mut generation.is_queued, false) {
            return;
        }
        self.inbox.left_queue(generation.prompt_len);
        generation.mailbox.left_queue(now.saturating_duration_since(generation.arrived));
        let counted = generation.count_prompt(cached);
        generation.usage.cached_tokens = counted;
        self.totals.cached_tokens += u64::from(counted);
        self.totals.prompt_tokens += u64::from(counted);
    }

    /// Sends each request of a step its events; those that ended get their terminal one.
    fn send(&mut self, items: &[Item], ended: Vec<(u64, Option<DrawError>)>, now: Instant) {
        let mut done = Vec::new();
        for (serial, broken) in ended {
            match broken {
                None => done.extend(self.take_out(serial, true, now).map(|generation| (serial, generation, None))),
                Some(broken) => self.fail(serial, &format!("`{}` gives no next token: {broken}", self.name), now),
            }
        }
        if !done.is_empty() {
            self.part_with(done);
        }
        for item in items {
            let Some(generation) = self.generations.get_mut(&item.id.request) else { continue };
            if generation.has_started {
                generation.warn_if_low(self.scheduler.allowance(item.id.request));
            }
            if self.scheduler.is_parked(item.id.request) {
                generation.park(now);
            }
            generation.flush();
        }
    }

    fn fail_step(&mut self, items: &[Item], failure: &ForwardError, now: Instant) {
        let message = format!("step of `{}` failed: {}", self.name, chain(failure));
        self.failed_steps += 1;
        if self.failed_steps >= MAX_FAILED_STEPS {
            self.inbox.report_fault(format!("{} steps failed in a row", self.failed_steps));
        }
        let mut serials: Vec<u64> = items.iter().map(|item| item.id.request).collect();
        serials.dedup();
        for serial in serials {
            self.fail(serial, &message, now);
        }
    }

    /// Ends a request by our own fault, with a line in the log that the reader's reference leads to.
    fn fail(&mut self, serial: u64, message: &str, now: Instant) {
        let Some(generation) = self.generations.get(&serial) else { return };
        let reference = Uuid::new_v4();
        error!(request.id = %generation.id.0, error.id = %reference, "{message}");
        self.close(serial, Some(Failure::Internal(reference)), now);
    }

    /// Ends a request: frees its blocks and sends the terminal event.
    fn close(&mut self, serial: u64, failure: Option<Failure>, now: Instant) {
        let ended = self.take_out(serial, failure.is_none(), now);
        self.part_with(ended.map(|generation| (serial, generation, failure)));
    }

    /// Sends requests that were taken out their terminal events.
    fn part_with(&mut self, ended: impl IntoIterator<Item = (u64, Generation, Option<Failure>)>) {
        // First the figures: who has seen the end of a request finds it counted.
        self.publish();
        for (serial, mut generation, failure) in ended {
            generation.close(failure);
            self.inbox.closed(serial);
        }
    }

    /// Frees what a request holds and counts its end.
    fn take_out(&mut self, serial: u64, is_done: bool, now: Instant) -> Option<Generation> {
        let generation = self.generations.remove(&serial)?;
        self.scheduler.remove_request(serial);
        if generation.is_queued {
            self.inbox.left_queue(generation.prompt_len);
        }
        match is_done {
            true => self.totals.requests_done += 1,
            false => self.totals.requests_failed += 1,
        }
        // The time when nobody was here says nothing about the pace, so it counts from this request's arrival.
        let since = self.last_finish.replace(now).map_or(generation.arrived, |last| last.max(generation.arrived));
        self.pace.observe_finish(now.saturating_duration_since(since));
        Some(generation)
    }

    /// When something must be looked at although nothing can be computed.
    fn next_deadline(&self) -> Option<Instant> {
        let deadline = |generation: &Generation| {
            let park = generation.parked_since.map(|since| since + self.config.park_timeout);
            let queue = generation.is_queued.then(|| generation.arrived + self.config.queue_timeout);
            park.into_iter().chain(queue).min()
        };
        self.generations.values().filter_map(deadline).min()
    }
}

/// An error with everything that caused it, in one line for the log.
fn chain(error: &dyn std::error::Error) -> String {
    let mut line = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        line.push_str(": ");
        line.push_str(&source.to_string());
        cause = source.source();
    }
    line
}

#[cfg(test)]
#[path = "stepper_tests.rs"]
mod tests;
