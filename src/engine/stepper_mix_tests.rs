//! Random requests, readers and machines against the oracle: answers, usage and ends are right in any mix.

use proptest::prelude::*;

use super::*;

/// What a reader does while its request runs.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Patient,
    GrantsBit(u32),
    NeverGrants,
    CancelsAfter(usize),
}

fn manner() -> impl Strategy<Value = Manner> {
    prop_oneof![
        3 => Just(Manner::Patient),
        2 => (1_u32..9).prop_map(Manner::GrantsBit),
        1 => Just(Manner::NeverGrants),
        1 => (0_usize..20).prop_map(Manner::CancelsAfter),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 250, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_mix_on_any_machine_gives_each_request_its_own_answer_its_exact_usage_and_one_end(
        asks in prop::collection::vec((0_u32..64, 0_usize..3, 1_usize..120, 0_usize..12, 0_u8..3, manner()), 1..10),
        num_blocks in 6_usize..40,
        max_step_tokens in 1_usize..90,
        max_output_rows in 1_usize..9,
        prefix_cache in any::<bool>(),
        reads_every in 1_usize..6,
        (draws, run_ahead) in prop::sample::select(vec![(false, true), (true, false), (true, true), (true, true)]),
        echo_logit in prop::sample::select(vec![0.0_f32, 6.0, 20.0]),
        speculation in prop::bool::weighted(0.8),
    ) {
        let options = FakeOptions {
            num_blocks, max_step_tokens, max_output_rows, draws, echo_logit, ..FakeOptions::default()
        };
        let mut rig = Rig::new(options.clone(), Config { prefix_cache, run_ahead, speculation, ..Config::default() });
        let mut waiting: Vec<_> = asks.into_iter().map(|(settings, family, len, arrival, priority, manner)| {
            let prompt = long_prompt(family, len).bytes().map(u32::from).collect();
            let allowance = match manner {
                Manner::GrantsBit(tokens) => tokens,
                Manner::NeverGrants => settings,
                _ => 10_000,
            };
            let (flow, weight) = (FlowId(u64::from(settings) % 3), 1 + settings % 5);
            (arrival, Request { prompt, priority, allowance, flow, weight, ..varied(settings) }, manner)
        }).collect();
        let mut readers: Vec<(Reader, Manner, u32)> = Vec::new();
        let mut step = 0;
        loop {
            let (now, later) = waiting.into_iter().partition(|(arrival, ..)| *arrival <= step);
            waiting = later;
            let now: Vec<(usize, Request, Manner)> = now;
            for (_, request, manner) in now {
                let allowance = request.allowance;
                readers.push((rig.submit(request), manner, allowance));
            }
            let outcome = rig.step();
            step += 1;
            for (reader, manner, granted) in &mut readers {
                if step % reads_every == 0 {
                    reader.read();
                }
                let usage = reader.mailbox.usage();
                prop_assert!(usage.completion_tokens <= *granted);
                match *manner {
                    Manner::GrantsBit(tokens) if usage.completion_tokens == *granted => {
                        reader.mailbox.grant(tokens);
                        *granted += tokens;
                    }
                    Manner::CancelsAfter(steps) if step >= steps => reader.mailbox.cancel(),
                    _ => {}
                }
            }
            if matches!(outcome, Step::Idle { .. }) {
                if waiting.is_empty() && readers.iter().all(|(reader, ..)| reader.mailbox.is_closed()) {
                    break;
                }
                rig.now += Duration::from_millis(500);
            }
            prop_assert!(step < 60_000, "the engine stands still");
        }
        for (reader, manner, granted) in &mut readers {
            reader.read();
            prop_assert_eq!(reader.count(Event::is_terminal), 1);
            match manner {
                Manner::Patient | Manner::GrantsBit(_) => reader.assert_complete(&options),
                Manner::NeverGrants => {
                    let answers = oracle(&reader.request, &options);
                    prop_assert!((0..).zip(&answers).all(|(choice, answer)| answer.text.starts_with(&reader.text(choice))
                        || reader.reason(choice) == Some(FinishReason::Allowance)));
                    prop_assert!(reader.usage().completion_tokens <= *granted);
                }
                Manner::CancelsAfter(_) => {
                    let wanted: usize = oracle(&reader.request, &options).iter().map(|answer| answer.tokens).sum();
                    prop_assert!(reader.usage().completion_tokens as usize <= wanted);
                }
            }
        }
        prop_assert_eq!(rig.stepper.scheduler.block_counts().owned, 0);
        let sampled: u64 = readers.iter().map(|(reader, ..)| u64::from(reader.usage().completion_tokens)).sum();
        prop_assert_eq!(rig.stepper.totals.completion_tokens, sampled);
        prop_assert!(rig.stepper.totals.accepted_tokens <= rig.stepper.totals.draft_tokens);
        prop_assert!(speculation && !draws || rig.stepper.totals.drafts == 0);
        let prompts: u64 = readers.iter().map(|(reader, ..)| u64::from(reader.usage().prompt_tokens)).sum();
        prop_assert_eq!(rig.stepper.totals.prompt_tokens, prompts);
    }
}
