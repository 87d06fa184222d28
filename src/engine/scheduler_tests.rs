//! The scheduler under random work, without a model: its books agree after every step, and every sequence gets on.

use super::*;
use crate::engine::request::FlowId;
use proptest::prelude::*;

fn scheduler(num_blocks: usize, max_step_tokens: usize, max_output_rows: usize, has_cache: bool) -> Scheduler {
    let limits = Limits { num_blocks, max_step_tokens, max_output_rows, max_running: max_output_rows };
    Scheduler::new(limits, has_cache.then(|| PrefixHasher::new("m", Vec::new())))
}

fn terms(choices: u32, allowance: u64, priority: u8) -> Terms {
    let lane = Lane { band: priority, flow: FlowId(1) };
    Terms { choices, allowance, max_tokens: usize::MAX, lane, weight: 1, salt: CacheSalt([0; 16]) }
}

fn add(scheduler: &mut Scheduler, request: u64, prompt: Vec<u32>, terms: Terms) -> SequenceId {
    let id = SequenceId { request, choice: 0 };
    scheduler.add(terms, Sequence::new(id, prompt, false));
    id
}

/// Plays the part of model and sampler: every draw gives a token that depends on the sequence alone.
fn compute(scheduler: &mut Scheduler, plan: &Plan, started: &mut BTreeSet<u64>) {
    scheduler.launch(&plan.items);
    scheduler.land(&plan.items);
    for item in &plan.items {
        if item.draws == 0 {
            continue;
        }
        if started.insert(item.id.request) {
            scheduler.fork(item.id.request);
            for choice in 0..scheduler.requests[&item.id.request].choices {
                let id = SequenceId { choice, ..item.id };
                if choice < item.draws { scheduler.append(id, 100 + choice) } else { scheduler.roll_back(id) }
            }
        } else {
            scheduler.append(item.id, 100 + item.id.choice);
        }
    }
}

fn lens(plan: &Plan) -> Vec<(u64, usize, usize)> {
    plan.items.iter().map(|item| (item.id.request, item.first, item.count)).collect()
}

#[test]
fn decode_rows_go_first_and_the_prompt_beside_them_is_cut_to_the_budget() {
    let mut scheduler = scheduler(64, 256, 8, false);
    let mut started = BTreeSet::new();
    add(&mut scheduler, 1, vec![1; 10], terms(1, 100, 0));
    let plan = scheduler.plan(|_| 40);
    assert_eq!(lens(&plan), [(1, 0, 10)]);
    compute(&mut scheduler, &plan, &mut started);
    add(&mut scheduler, 2, vec![2; 300], terms(1, 100, 0));
    let plan = scheduler.plan(|_| 40);
    assert_eq!(lens(&plan), [(1, 10, 1), (2, 0, 40)]);
    compute(&mut scheduler, &plan, &mut started);
    scheduler.remove_request(1);
    assert_eq!(lens(&scheduler.plan(|_| 40)), [(2, 40, 256)], "without decode rows the prompt fills the step");
}

#[test]
fn a_prompt_of_a_higher_band_fills_the_step_but_for_the_part_that_keeps_lower_readers_going() {
    let mut scheduler = scheduler(200, 100, 40, false);
    let mut started = BTreeSet::new();
    for request in 0..40 {
        add(&mut scheduler, request, vec![1; 2], terms(1, 100, 0));
    }
    let plan = scheduler.plan(|_| 40);
    compute(&mut scheduler, &plan, &mut started);
    add(&mut scheduler, 90, vec![2; 300], terms(1, 100, 9));
    add(&mut scheduler, 91, vec![2; 20], terms(1, 100, 0));
    let mut rows = BTreeSet::new();
    for step in 0..2 {
        let plan = scheduler.plan(|_| 40);
        assert_eq!(lens(&plan)[0], (90, 80 * step, 80), "a fifth of the step is left to others");
        assert_eq!(plan.items.len(), 21, "a row for every four tokens of the prompt");
        rows.extend(plan.items[1..].iter().map(|item| item.id.request));
        compute(&mut scheduler, &plan, &mut started);
    }
    assert!((0..39).all(|request| rows.contains(&request)), "readers take turns: {rows:?}");
    assert!(!scheduler.running.contains(&SequenceId { request: 39, choice: 0 }), "and the last gave up its place");
}

#[test]
fn higher_priorities_are_admitted_first_and_equals_in_order_of_arrival() {
    let mut scheduler = scheduler(64, 8, 8, false);
    for (request, priority) in [(1, 0), (2, 5), (3, 5), (4, 7)] {
        add(&mut scheduler, request, vec![1; 2], terms(1, 100, priority));
    }
    assert_eq!(lens(&scheduler.plan(|_| 8)).iter().map(|item| item.0).collect::<Vec<_>>(), [4, 2, 3, 1]);
}

#[test]
fn the_latest_of_the_lowest_priority_gives_up_its_blocks_and_a_parked_one_before_it() {
    let mut scheduler = scheduler(8, 256, 8, false);
    let mut started = BTreeSet::new();
    for (request, priority) in [(1, 1), (2, 0), (3, 1)] {
        add(&mut scheduler, request, vec![1; 60], terms(1, if request == 3 { 3 } else { 100 }, priority));
        let plan = scheduler.plan(|_| 256);
        compute(&mut scheduler, &plan, &mut started);
    }
    assert_eq!(scheduler.block_counts().owned, 6);
    while !scheduler.is_parked(3) {
        let plan = scheduler.plan(|_| 256);
        compute(&mut scheduler, &plan, &mut started);
    }
    while scheduler.preemptions() == 0 {
        let plan = scheduler.plan(|_| 256);
        compute(&mut scheduler, &plan, &mut started);
    }
    assert!(scheduler.sequence(SequenceId { request: 3, choice: 0 }).unwrap().table.is_empty(), "the parked one first");
    while scheduler.preemptions() == 1 {
        let plan = scheduler.plan(|_| 256);
        compute(&mut scheduler, &plan, &mut started);
    }
    assert!(scheduler.sequence(SequenceId { request: 2, choice: 0 }).unwrap().table.is_empty());
    scheduler.check().unwrap();
}

#[test]
fn a_prompt_of_whole_blocks_is_never_found_to_its_last_token() {
    let mut scheduler = scheduler(16, 256, 8, true);
    let mut started = BTreeSet::new();
    add(&mut scheduler, 1, vec![7; 64], terms(1, 100, 0));
    let plan = scheduler.plan(|_| 256);
    compute(&mut scheduler, &plan, &mut started);
    scheduler.remove_request(1);
    let id = add(&mut scheduler, 2, vec![7; 64], terms(1, 100, 0));
    let plan = scheduler.plan(|_| 256);
    assert_eq!(plan.admitted, [(id, 32)]);
    assert_eq!(lens(&plan), [(2, 32, 32)]);
}

#[test]
fn choices_share_the_prompt_and_copy_only_the_block_they_write_to() {
    let mut scheduler = scheduler(16, 256, 8, true);
    let mut started = BTreeSet::new();
    add(&mut scheduler, 1, vec![7; 70], terms(3, 100, 0));
    let plan = scheduler.plan(|_| 256);
    assert_eq!(plan.items[0].draws, 3);
    compute(&mut scheduler, &plan, &mut started);
    assert_eq!(scheduler.block_counts().owned, 3);
    let plan = scheduler.plan(|_| 256);
    assert_eq!(plan.copies.len(), 2, "the last owner writes in place");
    assert_eq!(scheduler.block_counts().owned, 5);
    scheduler.check().unwrap();
}

#[derive(Debug, Clone)]
enum Act {
    Add { family: u32, len: usize, choices: u32, allowance: u64, priority: u8 },
    Step { prefill: usize },
    Grant { which: usize, tokens: u64 },
    End { which: usize },
    EndChoice { which: usize, choice: u32 },
    FailStep,
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        2 => (0_u32..3, 1_usize..130, 1_u32..4, 0_u64..40, 0_u8..3).prop_map(|(family, len, choices, allowance, priority)| {
            Act::Add { family, len, choices, allowance, priority }
        }),
        10 => (1_usize..80).prop_map(|prefill| Act::Step { prefill }),
        1 => (0_usize..8, 1_u64..30).prop_map(|(which, tokens)| Act::Grant { which, tokens }),
        1 => (0_usize..8).prop_map(|which| Act::End { which }),
        1 => (0_usize..8, 0_u32..3).prop_map(|(which, choice)| Act::EndChoice { which, choice }),
        1 => Just(Act::FailStep),
    ]
}

/// Requests that can get on whatever the others do: not parked, and within the cache.
fn has_work(scheduler: &Scheduler) -> bool {
    scheduler.sequences.keys().any(|id| !scheduler.is_parked(id.request))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn whatever_happens_the_books_agree_limits_hold_and_somebody_gets_on(
        acts in prop::collection::vec(act(), 1..80),
        num_blocks in 5_usize..24,
        max_step_tokens in 1_usize..70,
        rows in 1_usize..6,
        has_cache in any::<bool>(),
    ) {
        let mut scheduler = scheduler(num_blocks, max_step_tokens, rows, has_cache);
        let mut started = BTreeSet::new();
        let mut serial = 0;
        for act in acts {
            let requests: Vec<u64> = scheduler.requests.keys().copied().collect();
            match act {
                Act::Add { family, len, choices, allowance, priority } => {
                    let prompt = (0..len as u32).map(|at| family * 1000 + at / 40).collect();
                    let mut terms = terms(choices, allowance, priority);
                    terms.lane.flow = FlowId(serial % 3);
                    terms.weight = 1 + family;
                    add(&mut scheduler, serial, prompt, terms);
                    serial += 1;
                }
                Act::Step { prefill } => {
                    let plan = scheduler.plan(|_| prefill);
                    prop_assert!(!plan.items.is_empty() || !has_work(&scheduler), "nothing planned, yet there is work");
                    let tokens: usize = plan.items.iter().map(|item| item.count).sum();
                    prop_assert!(tokens <= max_step_tokens);
                    prop_assert!(plan.items.iter().filter(|item| item.draws > 0).count() <= rows);
                    for request in &requests {
                        let items = plan.items.iter().filter(|item| item.id.request == *request);
                        let draws: u64 = items.map(|item| u64::from(item.draws)).sum();
                        prop_assert!(draws <= scheduler.allowance(*request), "drawn beyond the allowance");
                    }
                    compute(&mut scheduler, &plan, &mut started);
                    // The cache can hold no more than this; the engine caps a choice's length so.
                    let full: Vec<SequenceId> = scheduler.sequences.values()
                        .filter(|sequence| sequence.known.len() > num_blocks * BLOCK_TOKENS).map(|sequence| sequence.id).collect();
                    full.into_iter().for_each(|id| scheduler.remove(id));
                }
                Act::Grant { which, tokens } if which < requests.len() => scheduler.grant(requests[which], tokens),
                Act::End { which } if which < requests.len() => scheduler.remove_request(requests[which]),
                Act::EndChoice { which, choice } if which < requests.len() && started.contains(&requests[which]) => {
                    scheduler.remove(SequenceId { request: requests[which], choice });
                }
                Act::FailStep => {
                    let plan = scheduler.plan(|_| 16);
                    plan.items.iter().for_each(|item| scheduler.remove_request(item.id.request));
                }
                _ => {}
            }
            prop_assert_eq!(scheduler.check(), Ok(()));
        }
        for request in scheduler.requests.keys().copied().collect::<Vec<_>>() {
            scheduler.remove_request(request);
        }
        prop_assert_eq!(scheduler.block_counts().owned, 0);
        prop_assert!(scheduler.last_turn.is_empty());
        prop_assert_eq!(scheduler.fairness.len(), 0, "flows without work are forgotten");
    }
}
