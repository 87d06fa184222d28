//! Guesses computed along with the known tokens: readers cannot tell them from steps of one token each, but by the time.

use proptest::prelude::*;

use super::*;

/// A model whose texts repeat themselves, with a mistake now and then.
fn echoing() -> FakeOptions {
    FakeOptions { echo_logit: 8.0, end_logit: 0.0, ..FakeOptions::default() }
}

/// Everything that a reader sees of a choice: text, log probabilities to the bit, and how it ended.
type Seen = (String, Vec<(u32, u32)>, Option<FinishReason>);

fn seen(reader: &Reader) -> (Vec<Seen>, TokenUsage) {
    let choice = |choice| {
        let logprobs = reader.logprobs(choice).iter().map(|scores| (scores.token, scores.logprob.to_bits())).collect();
        (reader.text(choice), logprobs, reader.reason(choice))
    };
    ((0..reader.request.choices).map(choice).collect(), reader.usage())
}

fn answers(
    requests: &[Request],
    options: &FakeOptions,
    speculation: bool,
) -> (Vec<(Vec<Seen>, TokenUsage)>, EngineTotals) {
    let mut rig = Rig::new(options.clone(), Config { speculation, prefix_cache: false, ..Config::default() });
    let mut readers: Vec<Reader> = requests.iter().map(|request| rig.submit(request.clone())).collect();
    rig.run();
    readers.iter_mut().for_each(Reader::read);
    (readers.iter().map(seen).collect(), rig.stepper.totals)
}

#[test]
fn a_text_that_repeats_itself_takes_a_fraction_of_the_steps_and_is_the_same_to_the_bit() {
    let greedy = SamplingParams { temperature: 0.0, logprobs: Some(2), ..SamplingParams::default() };
    let ask = Request { sampling: greedy, max_tokens: 300, ..request(&long_prompt(1, 20)) };
    let options = FakeOptions { echo_logit: 7.0, ..echoing() };
    let (with, totals) = answers(std::slice::from_ref(&ask), &options, true);
    let (without, plain) = answers(std::slice::from_ref(&ask), &options, false);
    assert_eq!(with, without);
    assert_eq!(with[0].1.completion_tokens, 300);
    assert_eq!((plain.steps, plain.drafts), (300, 0));
    assert!(totals.steps < 150, "{totals:?}");
    assert_eq!(totals.steps + totals.accepted_tokens, 300, "each step gives one token and those that it verified");
    assert!(totals.accepted_tokens < totals.draft_tokens, "some guesses were wrong: {totals:?}");
    assert_eq!(totals.computed_tokens, plain.computed_tokens + totals.draft_tokens - totals.accepted_tokens);
}

#[test]
fn sixty_four_mixed_requests_read_the_same_with_and_without_guesses() {
    let options = FakeOptions { num_blocks: 2000, max_output_rows: 200, ..echoing() };
    let requests: Vec<Request> = (0..64)
        .map(|index| {
            let request = varied(index);
            let logprobs = [None, Some(0), Some(3)][index as usize % 3];
            let max_tokens = 30 + 2 * index;
            Request { sampling: SamplingParams { logprobs, ..request.sampling.clone() }, max_tokens, ..request }
        })
        .collect();
    let (with, totals) = answers(&requests, &options, true);
    let (without, plain) = answers(&requests, &options, false);
    assert!(with == without);
    assert!(totals.accepted_tokens > 100, "{totals:?}");
    assert!(totals.steps <= plain.steps);
    assert_eq!((totals.prompt_tokens, totals.completion_tokens), (plain.prompt_tokens, plain.completion_tokens));
}

#[test]
fn no_guess_is_computed_beyond_the_allowance_the_longest_answer_or_the_rows_of_a_step() {
    let options = FakeOptions { end_logit: f32::NEG_INFINITY, echo_logit: 40.0, max_output_rows: 5, ..echoing() };
    let mut rig = Rig::new(options.clone(), Config::default());
    let mut reader = rig.submit(Request { allowance: 40, choices: 2, max_tokens: 61, ..request(&long_prompt(0, 30)) });
    let mut granted = 40;
    while !reader.mailbox.is_closed() {
        let before = rig.stepper.totals;
        if matches!(rig.step(), Step::Idle { .. }) {
            reader.mailbox.grant(7);
            granted += 7;
        }
        let drafted = rig.stepper.totals.draft_tokens - before.draft_tokens;
        let sampled = rig.stepper.totals.completion_tokens - before.completion_tokens;
        assert!(drafted < 5 && sampled <= 5);
        assert!(u64::from(reader.mailbox.usage().completion_tokens) <= granted);
    }
    assert!(rig.stepper.totals.accepted_tokens > 30, "{:?}", rig.stepper.totals);
    reader.read();
    reader.assert_complete(&options);
    assert_eq!(reader.usage().completion_tokens, 122);
}

#[test]
fn a_block_with_rejected_guesses_is_never_found_by_another_prompt() {
    let options = FakeOptions { end_logit: f32::NEG_INFINITY, ..echoing() };
    let mut rig = Rig::new(options.clone(), Config::default());
    let ask = |prompt: &str| Request { max_tokens: 200, ..request(prompt) };
    let mut prompt = long_prompt(2, 40);
    for _ in 0..3 {
        let reader = rig.answer(ask(&prompt));
        reader.assert_complete(&options);
        // The answer is the next prompt's beginning: its blocks are in the cache, and every one of them is looked at.
        prompt += &reader.text(0);
        assert!(prompt.len() == reader.request.prompt.len() || reader.usage().prompt_tokens >= 40);
    }
    assert!(rig.stepper.totals.cached_tokens > 200, "{:?}", rig.stepper.totals);
    assert!(rig.stepper.totals.accepted_tokens > 0);
    assert!(rig.stepper.totals.draft_tokens > rig.stepper.totals.accepted_tokens);
}

#[test]
fn guesses_take_no_block_from_anybody() {
    let options = FakeOptions { num_blocks: 9, end_logit: f32::NEG_INFINITY, echo_logit: 40.0, ..echoing() };
    let ask = |family| Request { max_tokens: 90, choices: 2, ..request(&long_prompt(family, 50)) };
    let requests: Vec<Request> = (0..4).map(ask).collect();
    let (with, totals) = answers(&requests, &options, true);
    let (without, plain) = answers(&requests, &options, false);
    assert_eq!(with, without);
    assert!(totals.preemptions > 0 && totals.accepted_tokens > 0, "{totals:?}");
    assert!(totals.preemptions <= plain.preemptions, "{} and {}", totals.preemptions, plain.preemptions);
}

#[test]
fn where_a_row_costs_as_much_as_a_step_nothing_is_guessed() {
    let mut rig = Rig::new(echoing(), Config::default());
    let mut reader = rig.submit(Request { max_tokens: 600, ignore_eos: true, ..request(&long_prompt(1, 20)) });
    while !reader.mailbox.is_closed() {
        let mail = rig.inbox.take(Duration::ZERO);
        mail.arrived.into_iter().for_each(|submission| rig.stepper.accept(submission, rig.now));
        let step = rig.stepper.step(rig.now);
        let Step::Worked { decode_rows, draft_rows, prefill_tokens } = step else { continue };
        let rows = u32::try_from(decode_rows + draft_rows + prefill_tokens).unwrap();
        rig.stepper.observe(step, Duration::from_millis(5) * rows);
    }
    reader.read();
    assert_eq!(reader.usage().completion_tokens, 600);
    let totals = rig.stepper.totals;
    assert!(totals.draft_tokens <= 60, "only what it takes to know the price: {totals:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_requests_on_any_machine_read_the_same_with_and_without_guesses(
        asks in prop::collection::vec((0_u32..64, 0_usize..3, 1_usize..60, 1_u32..120, any::<bool>()), 1..7),
        num_blocks in 10_usize..40,
        max_step_tokens in 4_usize..90,
        max_output_rows in 1_usize..20,
        echo_logit in 3.0_f32..12.0,
    ) {
        let options = FakeOptions { num_blocks, max_step_tokens, max_output_rows, echo_logit, ..echoing() };
        let requests: Vec<Request> = asks.into_iter().map(|(settings, family, len, max_tokens, scores)| {
            let prompt = long_prompt(family, len).bytes().map(u32::from).collect();
            let request = varied(settings);
            let logprobs = scores.then_some(1);
            let sampling = SamplingParams { logprobs, ..request.sampling.clone() };
            Request { prompt, max_tokens, sampling, ..request }
        }).collect();
        let (with, _) = answers(&requests, &options, true);
        let (without, _) = answers(&requests, &options, false);
        prop_assert!(with == without);
    }
}
