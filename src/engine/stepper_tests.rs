//! The engine without its thread against a plain oracle: whatever the batch, a request's answer is the one it gets alone.

use std::time::Duration;

use super::*;
use crate::engine::asking::History;
use crate::engine::fake::{FakeModel, FakeOptions};
use crate::engine::mailbox::Mailbox;
use crate::engine::request::{CacheSalt, Event, FlowId, Request, RequestId, SamplingParams, TokenLogprob, TokenUsage};
use crate::engine::sampler::Row;
use crate::engine::transcript::Transcript;

/// An engine that is stepped by hand, with the readers of its requests.
struct Rig {
    stepper: Stepper,
    inbox: Arc<Inbox>,
    now: Instant,
}

struct Reader {
    request: Request,
    mailbox: Arc<Mailbox>,
    events: Vec<Event>,
}

impl Rig {
    fn new(options: FakeOptions, config: Config) -> Self {
        let inbox = Arc::new(Inbox::new(&config));
        let model = Box::new(FakeModel::new(options));
        let stepper = Stepper::new("fake", model, FakeModel::text(), config, Arc::clone(&inbox));
        Self { stepper, inbox, now: Instant::now() }
    }

    fn submit(&mut self, request: Request) -> Reader {
        let mailbox = self.inbox.submit(request.clone()).unwrap();
        Reader { request, mailbox, events: Vec::new() }
    }

    fn step(&mut self) -> Step {
        let mail = self.inbox.take(Duration::ZERO);
        mail.arrived.into_iter().for_each(|submission| self.stepper.accept(submission, self.now));
        self.stepper.heed_wishes(self.now);
        let step = self.stepper.step(self.now);
        self.now += Duration::from_millis(5);
        self.stepper.observe(step, Duration::from_millis(5));
        assert_eq!(self.stepper.check(), Ok(()));
        step
    }

    /// Steps until nothing can be computed.
    fn run(&mut self) {
        while matches!(self.step(), Step::Worked { .. }) {}
    }

    fn answer(&mut self, request: Request) -> Reader {
        let mut reader = self.submit(request);
        self.run();
        reader.read();
        reader
    }
}

impl Reader {
    fn read(&mut self) {
        while let Some(event) = self.mailbox.take() {
            self.events.push(event);
        }
    }

    fn text(&self, choice: u32) -> String {
        let parts = self.events.iter().filter_map(|event| match event {
            Event::Text { choice: of, text, .. } if *of == choice => Some(text.as_str()),
            _ => None,
        });
        parts.collect()
    }

    fn logprobs(&self, choice: u32) -> Vec<TokenLogprob> {
        let parts = self.events.iter().filter_map(|event| match event {
            Event::Text { choice: of, logprobs, .. } if *of == choice => Some(logprobs.clone()),
            _ => None,
        });
        parts.flatten().collect()
    }

    fn reason(&self, choice: u32) -> Option<FinishReason> {
        self.events.iter().find_map(|event| match event {
            Event::ChoiceDone { choice: of, reason } if *of == choice => Some(*reason),
            _ => None,
        })
    }

    fn usage(&self) -> TokenUsage {
        match self.events.last() {
            Some(Event::Done(usage) | Event::Failed(_, usage)) => *usage,
            other => panic!("the request has not ended: {other:?}"),
        }
    }

    fn count(&self, is_wanted: impl Fn(&Event) -> bool) -> usize {
        self.events.iter().filter(|event| is_wanted(event)).count()
    }

    /// Everything that must equal what the oracle says.
    fn assert_complete(&self, options: &FakeOptions) {
        let answers = oracle(&self.request, options);
        for (choice, answer) in (0..).zip(&answers) {
            assert_eq!(self.text(choice), answer.text, "choice {choice}");
            assert_eq!(self.reason(choice), Some(answer.reason), "choice {choice}");
        }
        let usage = self.usage();
        assert_eq!(usage.prompt_tokens as usize, self.request.prompt.len());
        assert_eq!(usage.completion_tokens as usize, answers.iter().map(|answer| answer.tokens).sum::<usize>());
        assert_eq!(self.count(Event::is_terminal), 1);
        assert!(matches!(self.events.last(), Some(Event::Done(_))));
        assert!(matches!(
            self.events.iter().find(|event| !matches!(event, Event::Parked)),
            Some(Event::Started { .. })
        ));
    }
}

struct Answer {
    text: String,
    reason: FinishReason,
    tokens: usize,
}

/// The answer by definition: one context at a time, without cache, batch or scheduler.
fn oracle(request: &Request, options: &FakeOptions) -> Vec<Answer> {
    let text = FakeModel::text();
    let room = options.context_window.min(options.num_blocks * BLOCK_TOKENS) - request.prompt.len();
    let max_tokens = room.min(request.max_tokens as usize);
    let answer = |choice: u32| {
        let mut transcript = Transcript::new(&text, request);
        let mut known = request.prompt.clone();
        let mut written = String::new();
        let reason = loop {
            let sampled = known.len() - request.prompt.len();
            if sampled == max_tokens {
                break FinishReason::Length;
            }
            let logits = FakeModel::logits_after(&known, options);
            let may_end = sampled >= request.min_tokens as usize || request.ignore_eos;
            let (prompt, output) = known.split_at(request.prompt.len());
            let forbidden: &[u32] = if may_end { &[] } else { &text.end_tokens };
            let history = History { prompt, output, forbidden };
            let row = Row { logits: &logits, params: &request.sampling, history, choice };
            let token = Sampler::default().draw(&row).unwrap().token;
            known.push(token);
            if token == FakeModel::END_TOKEN && !request.ignore_eos {
                break FinishReason::Stop;
            }
            let (output, is_stopped) = transcript.push(token, None, sampled + 1 >= request.min_tokens as usize);
            written.push_str(&output.text);
            if is_stopped {
                return Answer { text: written, reason: FinishReason::Stop, tokens: sampled + 1 };
            }
        };
        written.push_str(&transcript.finish().text);
        Answer { text: written, reason, tokens: known.len() - request.prompt.len() }
    };
    (0..request.choices).map(answer).collect()
}

fn request(prompt: &str) -> Request {
    Request {
        id: RequestId(Uuid::nil()),
        prompt: prompt.bytes().map(u32::from).collect(),
        sampling: SamplingParams::default(),
        choices: 1,
        max_tokens: 40,
        min_tokens: 0,
        ignore_eos: false,
        stop: Vec::new(),
        continues_text: false,
        prompt_logprobs: None,
        allowance: 10_000,
        flow: FlowId(1),
        weight: 1,
        priority: 0,
        cache_salt: CacheSalt([1; 16]),
    }
}

fn long_prompt(family: usize, len: usize) -> String {
    (0..len).map(|at| char::from(b'a' + ((at * (family + 3) + at / 7) % 26) as u8)).collect()
}

fn varied(index: u32) -> Request {
    let sampling = SamplingParams {
        temperature: [0.0, 0.4, 1.0, 1.7][index as usize % 4],
        top_k: [0, 3, 12][index as usize % 3],
        top_p: [1.0, 0.9, 0.4][index as usize / 3 % 3],
        min_p: [0.0, 0.05][index as usize % 2],
        presence_penalty: [0.0, 0.5, -0.5][index as usize / 2 % 3],
        frequency_penalty: [0.0, 0.3][index as usize / 5 % 2],
        repetition_penalty: [1.0, 1.2][index as usize / 7 % 2],
        logit_bias: if index.is_multiple_of(6) { vec![(u32::from(b'e'), 2.0)] } else { Vec::new() },
        seed: u64::from(index) * 77,
        logprobs: None,
    };
    Request {
        sampling,
        choices: 1 + index % 3,
        max_tokens: 5 + index,
        min_tokens: index % 7,
        ignore_eos: index.is_multiple_of(5),
        stop: if index % 4 == 1 { vec!["ab".into(), "q".into()] } else { Vec::new() },
        ..request(&long_prompt(index as usize % 4, 1 + index as usize * 3))
    }
}

#[test]
fn sixty_four_requests_with_different_settings_get_the_answers_they_get_alone() {
    let options = FakeOptions { num_blocks: 2000, max_output_rows: 200, ..FakeOptions::default() };
    let mut rig = Rig::new(options.clone(), Config::default());
    let mut readers: Vec<Reader> = (0..64).map(|index| rig.submit(varied(index))).collect();
    rig.run();
    for reader in &mut readers {
        reader.read();
        reader.assert_complete(&options);
    }
    assert!(rig.stepper.totals.steps < 200, "they ran together");
    let mut alone = Rig::new(options, Config::default());
    for reader in &readers {
        let again = alone.answer(reader.request.clone());
        assert!((0..reader.request.choices).all(|choice| again.text(choice) == reader.text(choice)));
    }
}

#[test]
fn a_preempted_request_answers_as_if_nothing_had_happened_and_pays_once() {
    for prefix_cache in [false, true] {
        let options = FakeOptions { num_blocks: 9, end_logit: f32::NEG_INFINITY, ..FakeOptions::default() };
        let mut rig = Rig::new(options.clone(), Config { prefix_cache, ..Config::default() });
        let ask = |family| Request { max_tokens: 90, choices: 2, ..request(&long_prompt(family, 50)) };
        let mut readers: Vec<Reader> = (0..4).map(|family| rig.submit(ask(family))).collect();
        rig.run();
        assert!(rig.stepper.scheduler.preemptions() > 0);
        for reader in &mut readers {
            reader.read();
            reader.assert_complete(&options);
        }
        assert_eq!(rig.stepper.totals.completion_tokens, 4 * 2 * 90);
        assert_eq!(rig.stepper.totals.prompt_tokens, 4 * 50);
        assert_eq!(rig.stepper.scheduler.block_counts().owned, 0);
    }
}

#[test]
fn a_cached_prefix_gives_the_same_answer_and_is_reported_to_its_tenant_only() {
    let options = FakeOptions::default();
    let mut rig = Rig::new(options.clone(), Config::default());
    let first = rig.answer(request(&long_prompt(0, 100)));
    first.assert_complete(&options);
    assert_eq!(first.usage().cached_tokens, 0);
    let again = rig.answer(request(&long_prompt(0, 100)));
    again.assert_complete(&options);
    assert_eq!(again.usage().cached_tokens, 96);
    assert_eq!(again.text(0), first.text(0));
    let longer = rig.answer(request(&(long_prompt(0, 100) + &first.text(0) + "more")));
    longer.assert_complete(&options);
    assert!(longer.usage().cached_tokens >= 96);
    let stranger = rig.answer(Request { cache_salt: CacheSalt([2; 16]), ..request(&long_prompt(0, 100)) });
    stranger.assert_complete(&options);
    assert_eq!(stranger.usage().cached_tokens, 0);
    let mut off = Rig::new(options, Config { prefix_cache: false, ..Config::default() });
    assert_eq!(off.answer(request(&long_prompt(0, 100))).text(0), first.text(0));
    assert_eq!(off.answer(request(&long_prompt(0, 100))).usage().cached_tokens, 0);
}

#[test]
fn an_allow_listed_prefix_is_shared_between_tenants() {
    let system: Vec<u32> = long_prompt(1, 70).bytes().map(u32::from).collect();
    let mut rig = Rig::new(FakeOptions::default(), Config { shared_prefixes: vec![system], ..Config::default() });
    let prompt = long_prompt(1, 70) + "the rest is private to its tenant, whatever it says";
    assert_eq!(rig.answer(request(&prompt)).usage().cached_tokens, 0);
    let stranger = rig.answer(Request { cache_salt: CacheSalt([2; 16]), ..request(&prompt) });
    assert_eq!(stranger.usage().cached_tokens, 64, "two whole blocks of the shared prefix");
    assert_eq!(rig.answer(request(&prompt)).usage().cached_tokens, 96, "one's own blocks as well");
}

#[test]
fn choices_do_not_depend_on_how_many_there_are() {
    let options = FakeOptions::default();
    let mut rig = Rig::new(options.clone(), Config::default());
    let ask = |choices| Request { choices, ..request(&long_prompt(2, 45)) };
    let (one, four) = (rig.answer(ask(1)), rig.answer(ask(4)));
    one.assert_complete(&options);
    four.assert_complete(&options);
    assert_eq!(one.text(0), four.text(0));
    assert_ne!(four.text(0), four.text(1));
    assert_eq!(four.usage().prompt_tokens, 45, "the prompt is computed and counted once");
    let six = rig.answer(ask(6));
    assert!((0..4).all(|choice| six.text(choice) == four.text(choice)));
}

#[test]
fn a_stop_string_across_tokens_ends_the_choice_without_another_step() {
    let options = FakeOptions { end_logit: f32::NEG_INFINITY, ..FakeOptions::default() };
    let mut rig = Rig::new(options.clone(), Config::default());
    // The two likeliest tokens are letters: one byte each.
    let letters = SamplingParams { top_k: 2, logprobs: Some(2), ..SamplingParams::default() };
    let ask = Request { sampling: letters, ..request("tell me") };
    let free = rig.answer(ask.clone());
    let whole = free.text(0);
    let stop: String = whole.chars().skip(10).take(3).collect();
    let at = whole.find(&stop).unwrap();
    let steps = rig.stepper.totals.steps;
    let reader = rig.answer(Request { stop: vec![stop.clone()], ..ask });
    reader.assert_complete(&options);
    assert_eq!(reader.text(0), whole[..at]);
    assert_eq!(reader.reason(0), Some(FinishReason::Stop));
    let tokens = reader.usage().completion_tokens as usize;
    assert_eq!(tokens, at + stop.len(), "tokens held back are tokens sampled");
    assert_eq!(rig.stepper.totals.steps - steps, tokens as u64, "no step after the stop");
    let spelled: Vec<u8> = reader.logprobs(0).into_iter().flat_map(|logprob| logprob.bytes).collect();
    assert_eq!(spelled, whole.as_bytes()[..at].to_vec(), "log probabilities cover the text and not the stop string");
}

#[test]
fn end_tokens_are_counted_ignored_or_put_off_as_asked() {
    let options = FakeOptions { end_logit: 40.0, ..FakeOptions::default() };
    let mut rig = Rig::new(options.clone(), Config::default());
    let ended = rig.answer(request("hello"));
    assert_eq!((ended.text(0).as_str(), ended.reason(0)), ("", Some(FinishReason::Stop)));
    assert_eq!(ended.usage().completion_tokens, 1, "the end token counts");
    let late = rig.answer(Request { min_tokens: 7, ..request("hello") });
    late.assert_complete(&options);
    assert_eq!(late.usage().completion_tokens, 8);
    let ignoring = rig.answer(Request { ignore_eos: true, max_tokens: 9, ..request("hello") });
    ignoring.assert_complete(&options);
    assert_eq!((ignoring.usage().completion_tokens, ignoring.reason(0)), (9, Some(FinishReason::Length)));
}

#[test]
fn no_token_is_drawn_beyond_the_allowance_and_grants_take_it_on() {
    let options = FakeOptions { end_logit: f32::NEG_INFINITY, ..FakeOptions::default() };
    let mut rig = Rig::new(options.clone(), Config::default());
    let mut reader = rig.submit(Request { allowance: 5, choices: 3, ..request(&long_prompt(3, 64)) });
    rig.run();
    reader.read();
    assert_eq!(reader.mailbox.usage().completion_tokens, 5);
    assert_eq!(reader.count(|event| matches!(event, Event::Parked)), 1);
    let warnings = |reader: &Reader| reader.count(|event| matches!(event, Event::AllowanceLow { .. }));
    assert_eq!(warnings(&reader), 1);
    let mut granted = 5;
    while !reader.mailbox.is_closed() {
        reader.mailbox.grant(7);
        granted += 7;
        rig.run();
        reader.read();
        assert!(reader.mailbox.usage().completion_tokens <= granted);
        assert!(warnings(&reader) as u32 <= 1 + (granted - 5) / 7);
    }
    reader.assert_complete(&options);
    assert_eq!(reader.usage().completion_tokens, 120);
}

#[test]
fn a_choice_that_the_allowance_did_not_reach_at_first_still_gets_its_own_answer() {
    let options = FakeOptions::default();
    // 64 tokens: the last prompt token, computed again, lies in a full and shared block.
    for len in [1, 40, 64] {
        let mut rig = Rig::new(options.clone(), Config::default());
        let mut reader = rig.submit(Request { allowance: 2, choices: 4, ..request(&long_prompt(3, len)) });
        rig.run();
        assert_eq!(reader.mailbox.usage().completion_tokens, 2);
        reader.mailbox.grant(1000);
        rig.run();
        reader.read();
        reader.assert_complete(&options);
    }
}

#[test]
fn parking_too_long_or_being_ended_finishes_the_choices_cleanly() {
    let options = FakeOptions { end_logit: f32::NEG_INFINITY, ..FakeOptions::default() };
    let mut rig = Rig::new(options.clone(), Config::default());
    let mut parked = rig.submit(Request { allowance: 6, choices: 2, ..request("abc") });
    let letters = SamplingParams { top_k: 2, ..SamplingParams::default() };
    let mut ended = rig.submit(Request { max_tokens: 500, sampling: letters, ..request("xyz") });
    for _ in 0..10 {
        rig.step();
    }
    ended.mailbox.end_for_limit();
    rig.run();
    ended.read();
    assert_eq!(ended.reason(0), Some(FinishReason::Allowance));
    assert!(matches!(ended.events.last(), Some(Event::Done(usage)) if usage.completion_tokens == 10));
    assert_eq!(ended.text(0).len(), 10);
    rig.now += Config::default().park_timeout;
    rig.run();
    parked.read();
    assert_eq!([parked.reason(0), parked.reason(1)], [Some(FinishReason::Allowance); 2]);
    assert_eq!(parked.usage().completion_tokens, 6);
    assert_eq!(rig.stepper.scheduler.block_counts().owned, 0);
}

#[test]
fn a_cancelled_request_frees_its_blocks_before_the_next_step_and_pays_for_what_was_computed() {
    let options = FakeOptions { max_step_tokens: 64, ..FakeOptions::default() };
    let mut rig = Rig::new(options, Config::default());
    let mut reader = rig.submit(request(&long_prompt(0, 200)));
    rig.step();
    rig.step();
    reader.mailbox.cancel();
    rig.step();
    reader.read();
    assert_eq!(reader.events.len(), 1);
    let usage = TokenUsage { prompt_tokens: 128, cached_tokens: 0, completion_tokens: 0 };
    assert_eq!(reader.events[0], Event::Failed(Failure::Cancelled, usage));
    assert_eq!(rig.stepper.scheduler.block_counts().owned, 0);
    rig.stepper.publish();
    assert_eq!(rig.inbox.figures().glance().totals.queued_requests, 0);
}

#[test]
fn broken_logits_fail_their_request_and_no_other() {
    let options = FakeOptions::default();
    let mut rig = Rig::new(options.clone(), Config::default());
    let mut good = rig.submit(request("good"));
    let mut bad = rig.submit(Request { prompt: vec![65, FakeModel::NAN_TOKEN], ..request("") });
    rig.run();
    good.read();
    good.assert_complete(&options);
    bad.read();
    assert!(matches!(bad.events.last(), Some(Event::Failed(Failure::Internal(_), _))));
    assert_eq!(bad.usage().completion_tokens, 0);
}

#[test]
fn a_failed_step_fails_its_requests_and_three_in_a_row_are_a_fault() {
    let mut rig = Rig::new(FakeOptions::default(), Config::default());
    for round in 1..=3 {
        let mut reader = rig.answer(Request { prompt: vec![FakeModel::ERROR_TOKEN], ..request("") });
        reader.read();
        assert!(matches!(reader.events[..], [Event::Failed(Failure::Internal(_), _)]));
        assert_eq!(reader.usage(), TokenUsage::default());
        assert_eq!(rig.inbox.figures().glance().fault.is_some(), round == 3);
    }
}

#[test]
fn prompt_log_probabilities_are_the_models_own_and_do_not_depend_on_chunks_or_the_cache() {
    for max_step_tokens in [7, 512] {
        let options = FakeOptions { max_step_tokens, max_output_rows: 5, ..FakeOptions::default() };
        let mut rig = Rig::new(options.clone(), Config::default());
        rig.answer(request(&long_prompt(1, 90)));
        let reader = rig.answer(Request { prompt_logprobs: Some(2), max_tokens: 3, ..request(&long_prompt(1, 90)) });
        reader.assert_complete(&options);
        assert_eq!(reader.usage().cached_tokens, 0);
        let Some(Event::PromptLogprobs(scores)) = reader.events.get(1) else { panic!("{:?}", reader.events) };
        assert_eq!(scores.len(), 90);
        assert_eq!(scores[0], None);
        for (position, score) in scores.iter().enumerate().skip(1) {
            let score = score.as_ref().unwrap();
            let logits = FakeModel::logits_after(&reader.request.prompt[..position], &options);
            let token = reader.request.prompt[position];
            let exact = Sampler::default().score(&logits, token, 2).unwrap();
            assert_eq!((score.token, score.logprob), (token, exact.logprob));
            assert_eq!(score.bytes, [token as u8]);
            assert_eq!(score.top.len(), 2);
        }
    }
}

#[test]
fn a_request_for_no_tokens_computes_the_prompt_and_ends() {
    let mut rig = Rig::new(FakeOptions::default(), Config::default());
    let reader = rig.answer(Request { max_tokens: 0, allowance: 0, prompt_logprobs: Some(0), ..request("abc") });
    assert!(matches!(reader.events[0], Event::Started { prompt_tokens: 3, cached_tokens: 0 }));
    assert_eq!(reader.reason(0), Some(FinishReason::Length));
    assert_eq!(reader.usage(), TokenUsage { prompt_tokens: 3, cached_tokens: 0, completion_tokens: 0 });
}

#[test]
fn a_full_queue_refuses_and_a_place_is_free_once_a_request_is_admitted() {
    let config = Config { max_queue_requests: 2, max_queue_tokens: 100, ..Config::default() };
    let mut rig = Rig::new(FakeOptions::default(), config);
    let huge = rig.submit(request(&long_prompt(0, 300)));
    assert!(rig.inbox.submit(request("more tokens than may wait")).is_err());
    rig.step();
    rig.step();
    rig.submit(request("one"));
    rig.submit(request("two"));
    let refused = rig.inbox.submit(request("three"));
    assert!(
        matches!(refused, Err(crate::engine::SubmitError::QueueFull { retry_after, .. }) if !retry_after.is_zero())
    );
    rig.run();
    assert!(huge.mailbox.is_closed());
    assert_eq!(rig.inbox.figures().glance().totals.queued_requests, 0);
}

#[test]
fn a_request_that_waits_too_long_for_its_start_is_told() {
    let config = Config { max_running: Some(1), ..Config::default() };
    let options = FakeOptions { end_logit: f32::NEG_INFINITY, ..FakeOptions::default() };
    let mut rig = Rig::new(options, config);
    let _running = rig.submit(Request { max_tokens: 1000, ..request("first") });
    let mut waiting = rig.submit(request("second"));
    rig.step();
    rig.now += Config::default().queue_timeout;
    rig.step();
    waiting.read();
    assert_eq!(waiting.events, [Event::Failed(Failure::Deadline, TokenUsage::default())]);
}

#[path = "stepper_ahead_tests.rs"]
mod ahead;
#[path = "stepper_draft_tests.rs"]
mod draft;
#[path = "stepper_mix_tests.rs"]
mod mix;
