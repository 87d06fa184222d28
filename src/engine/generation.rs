//! One request inside the engine thread: its choices, its account, and the events that go out after a step.

use std::sync::Arc;
use std::time::Instant;

use millgate_models::text::ModelText;

use super::mailbox::Mailbox;
use super::request::{Event, Failure, FinishReason, Request, RequestId, SamplingParams, TokenLogprob, TokenUsage};
use super::transcript::{Output, Transcript};

/// The caller hears of a low allowance while each choice can still sample this many tokens: several steps, so that a
/// grant is there in time.
const LOW_ALLOWANCE_PER_CHOICE: u64 = 64;

/// A request between its arrival and its terminal event.
#[derive(Debug)]
pub(crate) struct Generation {
    pub(crate) id: RequestId,
    pub(crate) mailbox: Arc<Mailbox>,
    pub(crate) sampling: SamplingParams,
    pub(crate) prompt_len: usize,
    /// Most completion tokens of a choice, capped to context and cache.
    pub(crate) max_tokens: usize,
    pub(crate) min_tokens: usize,
    pub(crate) ignore_eos: bool,
    /// Alternatives a prompt position, when its log probabilities are wanted.
    pub(crate) prompt_top: Option<usize>,
    pub(crate) prompt_logprobs: Vec<Option<TokenLogprob>>,
    pub(crate) choices: Vec<Choice>,
    pub(crate) usage: TokenUsage,
    pub(crate) arrived: Instant,
    /// In the bounded queue: not yet given a place in the batch.
    pub(crate) is_queued: bool,
    /// The prompt is computed.
    pub(crate) has_started: bool,
    pub(crate) parked_since: Option<Instant>,
    /// Grants of the mailbox that the scheduler knows of.
    granted: u64,
    has_warned: bool,
    events: Vec<Event>,
}

/// One continuation.
#[derive(Debug)]
pub(crate) struct Choice {
    pub(crate) transcript: Transcript,
    pub(crate) sampled: usize,
    pub(crate) finished: Option<FinishReason>,
}

impl Generation {
    /// `room`: completion tokens that context window and cache leave.
    pub(crate) fn new(request: &Request, mailbox: Arc<Mailbox>, text: &ModelText, room: usize, now: Instant) -> Self {
        let choice = || Choice { transcript: Transcript::new(text, request), sampled: 0, finished: None };
        Self {
            id: request.id,
            mailbox,
            sampling: request.sampling.clone(),
            prompt_len: request.prompt.len(),
            max_tokens: room.min(request.max_tokens as usize),
            min_tokens: request.min_tokens as usize,
            ignore_eos: request.ignore_eos,
            prompt_top: request.prompt_logprobs.map(usize::from),
            prompt_logprobs: Vec::new(),
            choices: (0..request.choices).map(|_| choice()).collect(),
            usage: TokenUsage::default(),
            arrived: now,
            is_queued: true,
            has_started: false,
            parked_since: None,
            granted: 0,
            has_warned: false,
            events: Vec::new(),
        }
    }

    /// Which of the model's end tokens must not follow on `sampled` tokens of a choice.
    pub(crate) fn forbidden<'a>(&self, sampled: usize, end_tokens: &'a [u32]) -> &'a [u32] {
        if sampled >= self.min_tokens || self.ignore_eos { &[] } else { end_tokens }
    }

    /// Tokens granted since the last call.
    pub(crate) fn take_grant(&mut self) -> u64 {
        let all = self.mailbox.granted();
        let new = all - self.granted;
        self.granted = all;
        if new > 0 {
            self.has_warned = false;
            self.parked_since = None;
        }
        new
    }

    /// Counts computed prompt tokens; recomputed ones are below the mark and count nothing.
    pub(crate) fn count_prompt(&mut self, computed: usize) -> u32 {
        let computed = narrow(computed.min(self.prompt_len));
        let new = computed.saturating_sub(self.usage.prompt_tokens);
        self.usage.prompt_tokens += new;
        new
    }

    /// The prompt is computed for the first time.
    pub(crate) fn start(&mut self) {
        self.has_started = true;
        let TokenUsage { prompt_tokens, cached_tokens, .. } = self.usage;
        self.events.push(Event::Started { prompt_tokens, cached_tokens });
        if self.prompt_top.is_some() {
            self.events.push(Event::PromptLogprobs(std::mem::take(&mut self.prompt_logprobs)));
        }
    }

    /// Queues text of a choice.
    pub(crate) fn write(&mut self, choice: u32, output: Output) {
        if !output.is_empty() {
            self.events.push(Event::Text { choice, text: output.text, logprobs: output.logprobs });
        }
    }

    /// Ends a choice. Text held back is part of it, unless a stop string was completed.
    pub(crate) fn finish(&mut self, index: u32, reason: FinishReason, has_hit_stop_string: bool) {
        let choice = &mut self.choices[index as usize];
        if choice.finished.is_some() {
            return;
        }
        choice.finished = Some(reason);
        if !has_hit_stop_string {
            let rest = choice.transcript.finish();
            self.write(index, rest);
        }
        self.events.push(Event::ChoiceDone { choice: index, reason });
    }

    /// Ends all choices that have not ended.
    pub(crate) fn finish_all(&mut self, reason: FinishReason) {
        for index in 0..narrow(self.choices.len()) {
            self.finish(index, reason, false);
        }
    }

    pub(crate) fn is_finished(&self) -> bool {
        self.choices.iter().all(|choice| choice.finished.is_some())
    }

    /// Warns the caller once for each grant when the allowance will not last.
    pub(crate) fn warn_if_low(&mut self, allowance: u64) {
        let open = self.choices.iter().filter(|choice| choice.finished.is_none());
        let (mut count, mut wanted) = (0, 0);
        for choice in open {
            count += 1;
            wanted += (self.max_tokens - choice.sampled) as u64;
        }
        if !self.has_warned && allowance < wanted && allowance <= LOW_ALLOWANCE_PER_CHOICE * count {
            self.has_warned = true;
            self.events.push(Event::AllowanceLow { remaining: u32::try_from(allowance).unwrap_or(u32::MAX) });
        }
    }

    /// Marks that the request stands still from now on.
    pub(crate) fn park(&mut self, now: Instant) {
        if self.parked_since.is_none() {
            self.parked_since = Some(now);
            self.events.push(Event::Parked);
        }
    }

    /// Sends what has gathered.
    pub(crate) fn flush(&mut self) {
        self.mailbox.post(self.events.drain(..), self.usage);
    }

    /// Sends what has gathered and the terminal event after it.
    pub(crate) fn close(&mut self, failure: Option<Failure>) {
        self.events.push(match failure {
            None => Event::Done(self.usage),
            Some(failure) => Event::Failed(failure, self.usage),
        });
        self.flush();
    }
}

fn narrow(value: usize) -> u32 {
    u32::try_from(value).expect("token and choice counts fit the context window")
}
