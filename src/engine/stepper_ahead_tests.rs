//! A model that draws by itself: steps are launched before the last one is read, and nobody can tell from the answers.

use super::*;

fn drawing() -> FakeOptions {
    FakeOptions { draws: true, ..FakeOptions::default() }
}

/// What a reader sees of each choice, and of the prompt.
type Seen = (Vec<(String, Vec<TokenLogprob>, Option<FinishReason>)>, Option<Event>);

/// Everything that readers see, but for how much of the prompt was in the cache by then; and what the engine counted.
fn outcome(requests: &[Request], options: &FakeOptions, run_ahead: bool) -> (Vec<Seen>, EngineTotals) {
    let mut rig = Rig::new(options.clone(), Config { run_ahead, ..Config::default() });
    let mut readers: Vec<Reader> = requests.iter().map(|request| rig.submit(request.clone())).collect();
    rig.run();
    readers.iter_mut().for_each(Reader::read);
    readers.iter().for_each(|reader| reader.assert_complete(options));
    let seen = |reader: &Reader| {
        let choice = |choice| (reader.text(choice), reader.logprobs(choice), reader.reason(choice));
        let prompt = reader.events.iter().find(|event| matches!(event, Event::PromptLogprobs(_))).cloned();
        ((0..reader.request.choices).map(choice).collect(), prompt)
    };
    (readers.iter().map(seen).collect(), rig.stepper.totals)
}

#[test]
fn readers_of_sixty_four_mixed_requests_see_the_same_with_and_without_running_ahead_and_on_the_host() {
    let options = FakeOptions { num_blocks: 2000, max_output_rows: 200, ..drawing() };
    let requests: Vec<Request> = (0..64)
        .map(|index| {
            let request = varied(index);
            let logprobs = [None, Some(0), Some(3)][index as usize % 3];
            let prompt_logprobs = (index % 9 == 0).then_some(2);
            Request { sampling: SamplingParams { logprobs, ..request.sampling.clone() }, prompt_logprobs, ..request }
        })
        .collect();
    let (ahead, totals) = outcome(&requests, &options, true);
    let (in_turn, _) = outcome(&requests, &options, false);
    let (on_host, host_totals) = outcome(&requests, &FakeOptions { draws: false, ..options }, true);
    assert!(ahead == in_turn);
    assert!(ahead == on_host);
    assert_eq!(totals.completion_tokens, host_totals.completion_tokens);
    assert_eq!(totals.prompt_tokens, host_totals.prompt_tokens);
}

#[test]
fn a_step_is_in_flight_while_the_next_one_is_planned_and_a_known_last_token_is_not_computed_further() {
    let options = FakeOptions { end_logit: f32::NEG_INFINITY, ..drawing() };
    let mut rig = Rig::new(options, Config::default());
    let mut reader = rig.submit(Request { max_tokens: 5, ..request("abc") });
    let mut landed = Vec::new();
    while !reader.mailbox.is_closed() {
        rig.step();
        landed.push((reader.mailbox.usage().completion_tokens, rig.stepper.runner.in_flight()));
    }
    assert_eq!(landed, [(0, 1), (1, 1), (2, 1), (3, 1), (4, 1), (5, 0)]);
    assert_eq!(rig.stepper.totals.steps, 5, "no row was wasted");
    reader.read();
    assert_eq!(reader.reason(0), Some(FinishReason::Length));
}

#[test]
fn an_unforeseen_end_wastes_one_row_that_is_not_charged() {
    let options = drawing();
    let mut rig = Rig::new(options.clone(), Config::default());
    let reader = rig.answer(Request { max_tokens: 1000, ..request("tell me") });
    reader.assert_complete(&options);
    assert_eq!(reader.reason(0), Some(FinishReason::Stop));
    assert_eq!(rig.stepper.totals.steps, u64::from(reader.usage().completion_tokens) + 1);
    assert_eq!(rig.stepper.totals.completion_tokens, u64::from(reader.usage().completion_tokens));
    assert_eq!(rig.stepper.runner.in_flight(), 0);
}

#[test]
fn a_cancelled_request_ends_at_once_and_its_blocks_are_free_although_its_row_is_in_flight() {
    let options = FakeOptions { end_logit: f32::NEG_INFINITY, ..drawing() };
    let mut rig = Rig::new(options, Config::default());
    let mut reader = rig.submit(Request { max_tokens: 1000, ..request(&long_prompt(0, 70)) });
    for _ in 0..6 {
        rig.step();
    }
    assert_eq!(rig.stepper.runner.in_flight(), 1);
    reader.mailbox.cancel();
    rig.step();
    reader.read();
    assert!(matches!(reader.events.last(), Some(Event::Failed(Failure::Cancelled, _))));
    assert_eq!(reader.usage().completion_tokens, 5, "what was in flight is not charged");
    assert_eq!(rig.stepper.scheduler.block_counts().owned, 0);
    assert!(matches!(rig.step(), Step::Idle { .. }));
}

#[test]
fn no_token_in_flight_exceeds_the_allowance() {
    let options = FakeOptions { end_logit: f32::NEG_INFINITY, ..drawing() };
    let mut rig = Rig::new(options.clone(), Config::default());
    let mut reader = rig.submit(Request { allowance: 3, choices: 2, max_tokens: 20, ..request("abc") });
    let mut granted = 3;
    while !reader.mailbox.is_closed() {
        rig.run();
        assert!(reader.mailbox.usage().completion_tokens <= granted);
        reader.mailbox.grant(5);
        granted += 5;
    }
    reader.read();
    reader.assert_complete(&options);
}

#[test]
fn a_failed_step_fails_those_in_it_and_not_those_launched_behind_it() {
    let options = FakeOptions { max_output_rows: 8, ..drawing() };
    let mut rig = Rig::new(options.clone(), Config::default());
    let mut broken = rig.submit(Request { prompt: vec![FakeModel::ERROR_TOKEN], ..request("") });
    rig.step();
    let mut good = rig.submit(request("good"));
    rig.run();
    broken.read();
    assert!(matches!(broken.events[..], [Event::Failed(Failure::Internal(_), _)]));
    good.read();
    good.assert_complete(&options);
}

#[test]
fn logits_that_are_no_numbers_fail_their_request_and_no_other() {
    let options = drawing();
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
fn a_prefix_that_a_failed_step_should_have_computed_is_not_found() {
    let options = drawing();
    let mut rig = Rig::new(options.clone(), Config::default());
    let mut prompt: Vec<u32> = long_prompt(0, 70).bytes().map(u32::from).collect();
    prompt.push(FakeModel::ERROR_TOKEN);
    let broken = rig.answer(Request { prompt, ..request("") });
    assert!(matches!(broken.events[..], [Event::Failed(Failure::Internal(_), _)]));
    let reader = rig.answer(request(&long_prompt(0, 80)));
    assert_eq!(reader.usage().cached_tokens, 0);
    reader.assert_complete(&options);
}
