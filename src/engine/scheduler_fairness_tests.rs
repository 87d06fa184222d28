//! The scheduler shared by many flows: whatever the load, bounds of waiting and of unequal service hold.

use proptest::prelude::*;

use super::*;
use crate::engine::fairness::{AGE_STEPS, AGED_TOKENS};
use crate::engine::request::FlowId;

/// Tokens that fit beside decode rows in these tests.
const CHUNK: usize = 16;

/// A model and its users in miniature: every draw gives a token, and a request ends after as many as it wants.
struct Sim {
    scheduler: Scheduler,
    next_request: u64,
    /// Completion tokens that each request still wants.
    wanted: BTreeMap<u64, u64>,
    has_started: BTreeSet<u64>,
    /// What each flow was served, in cost units.
    served: BTreeMap<Lane, u64>,
    plans: Vec<Vec<Item>>,
}

#[derive(Debug, Clone, Copy)]
struct Load {
    lane: Lane,
    weight: u32,
    prompt: usize,
    tokens: u64,
}

fn lane(band: u8, flow: u64) -> Lane {
    Lane { band, flow: FlowId(flow) }
}

impl Sim {
    fn new(num_blocks: usize, max_step_tokens: usize, max_running: usize, has_cache: bool) -> Self {
        let limits = Limits { num_blocks, max_step_tokens, max_output_rows: max_running, max_running };
        Self {
            scheduler: Scheduler::new(limits, has_cache.then(|| PrefixHasher::new("m", Vec::new()))),
            next_request: 0,
            wanted: BTreeMap::new(),
            has_started: BTreeSet::new(),
            served: BTreeMap::new(),
            plans: Vec::new(),
        }
    }

    fn add(&mut self, load: Load) -> u64 {
        let request = self.next_request;
        self.next_request += 1;
        let id = SequenceId { request, choice: 0 };
        let terms = Terms {
            choices: 1,
            allowance: u64::MAX,
            max_tokens: usize::MAX,
            lane: load.lane,
            weight: load.weight,
            salt: CacheSalt([0; 16]),
        };
        let prompt = (0..load.prompt as u32).map(|at| at + request as u32 * 1000).collect();
        self.scheduler.add(terms, Sequence::new(id, prompt, false));
        self.wanted.insert(request, load.tokens);
        request
    }

    /// Keeps a number of requests of a kind open.
    fn refill(&mut self, load: Load, open: usize) {
        let of_lane =
            |sim: &Self| sim.wanted.keys().filter(|request| sim.scheduler.requests[request].lane == load.lane).count();
        for _ in of_lane(self)..open {
            self.add(load);
        }
    }

    fn enter(&mut self, load: Load) {
        self.add(load);
    }

    fn steps(&mut self, count: usize) {
        for _ in 0..count {
            self.step();
        }
    }

    fn step(&mut self) -> &[Item] {
        let plan = self.scheduler.plan(|_| CHUNK);
        let before: Vec<usize> = plan.items.iter().map(|item| self.scheduler.sequences[&item.id].paid_prompt).collect();
        self.scheduler.launch(&plan.items);
        self.scheduler.land(&plan.items);
        for (item, before) in plan.items.iter().zip(before) {
            let request = item.id.request;
            let lane = self.scheduler.requests[&request].lane;
            let paid = (self.scheduler.sequences[&item.id].paid_prompt - before) as u64;
            *self.served.entry(lane).or_default() += paid * PROMPT_COST;
            if item.draws == 0 {
                continue;
            }
            if self.has_started.insert(request) {
                self.scheduler.fork(request);
            }
            self.scheduler.append(item.id, 7);
            *self.served.entry(lane).or_default() += COMPLETION_COST;
            let left = self.wanted.get_mut(&request).expect("open");
            *left -= 1;
            if *left == 0 {
                self.wanted.remove(&request);
                self.scheduler.remove_request(request);
            }
        }
        self.scheduler.check().expect("the books agree");
        self.plans.push(plan.items);
        self.plans.last().expect("just pushed")
    }
}

fn load() -> impl Strategy<Value = Load> {
    (0_u8..3, 0_u64..4, 1_u32..9, 1_usize..150, 1_u64..40).prop_map(|(band, flow, weight, prompt, tokens)| Load {
        lane: lane(band, flow),
        weight,
        prompt,
        tokens,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn two_flows_that_always_want_more_are_served_in_the_ratio_of_their_weights(
        weights in (1_u32..9, 1_u32..9),
        prompts in (1_usize..60, 1_usize..60),
        tokens in (1_u64..20, 1_u64..20),
        max_running in 1_usize..7,
        has_cache in any::<bool>(),
    ) {
        let mut sim = Sim::new(200, 64, max_running, has_cache);
        let loads = [
            Load { lane: lane(1, 1), weight: weights.0, prompt: prompts.0, tokens: tokens.0 },
            Load { lane: lane(1, 2), weight: weights.1, prompt: prompts.1, tokens: tokens.1 },
        ];
        let largest = loads.map(|load| load.prompt as u64 * PROMPT_COST + load.tokens * COMPLETION_COST);
        for _ in 0..120 {
            loads.iter().for_each(|&load| sim.refill(load, max_running + 2));
            sim.step();
            let served = loads.map(|load| sim.served.get(&load.lane).copied().unwrap_or(0) as f64 / f64::from(load.weight));
            // A flow is ahead by what it had running when it was last its turn, and by no more.
            let bound = (0..2).map(|at| (max_running as u64 * largest[at]) as f64 / f64::from(loads[at].weight));
            let bound = bound.fold(0.0, f64::max) + 1.0;
            prop_assert!((served[0] - served[1]).abs() <= bound, "{served:?} differ by more than {bound}");
        }
    }

    #[test]
    fn a_request_of_the_highest_band_takes_the_steps_it_takes_alone_whatever_is_below(
        below in prop::collection::vec(load(), 1..40),
        before in 0_usize..40,
        prompt in 1_usize..200,
        tokens in 1_u64..20,
        num_blocks in 20_usize..80,
        max_step_tokens in 20_usize..64,
        max_running in 1_usize..9,
    ) {
        let mut sim = Sim::new(num_blocks, max_step_tokens, max_running, true);
        below.iter().for_each(|&load| sim.enter(load));
        sim.steps(before);
        let request = sim.add(Load { lane: lane(9, 1), weight: 1, prompt, tokens });
        let mut steps = 0;
        while sim.wanted.contains_key(&request) {
            sim.step();
            steps += 1;
            prop_assert!(steps < 1000);
        }
        // A fifth of each step keeps those below going, and one of them may be ahead with a chunk of its own.
        let part = max_step_tokens - max_step_tokens / 5 - CHUNK.min(max_step_tokens - max_step_tokens / 5 - 1);
        let is_somebody_ahead = before as u64 + 30 >= AGE_STEPS;
        let part = if is_somebody_ahead { part } else { max_step_tokens - max_step_tokens / 5 };
        prop_assert!((steps as u64) < prompt.div_ceil(part) as u64 + tokens, "{steps} steps");
    }

    #[test]
    fn everything_ends_the_same_input_gives_the_same_plans_and_no_step_is_empty(
        loads in prop::collection::vec((0_usize..60, load()), 1..25),
        num_blocks in 6_usize..30,
        max_step_tokens in 1_usize..64,
        max_running in 1_usize..7,
        has_cache in any::<bool>(),
    ) {
        let run = || {
            let mut sim = Sim::new(num_blocks, max_step_tokens, max_running, has_cache);
            for step in 0..20_000 {
                loads.iter().filter(|(arrival, _)| *arrival == step).for_each(|(_, load)| sim.enter(*load));
                let has_work = !sim.wanted.is_empty();
                let planned = sim.step().len();
                assert!(planned > 0 || !has_work, "work is there and nothing is computed");
                if !has_work && step > 60 {
                    return (sim.plans, sim.scheduler.fairness.len());
                }
            }
            panic!("some request never ends");
        };
        let (plans, remembered) = run();
        prop_assert_eq!(remembered, 0);
        prop_assert_eq!(run().0, plans);
    }
}

proptest! {
    // Each of these runs for hundreds of steps.
    #![proptest_config(ProptestConfig { cases: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_band_is_without_a_turn_for_longer_than_the_bound_whoever_is_above_it(
        low in prop::collection::vec((0_u8..3, 1_usize..60, 1_u64..200), 1..4),
        high in (1_usize..120, 1_u64..30),
        num_blocks in 20_usize..60,
        max_step_tokens in 1_usize..64,
        max_running in 1_usize..6,
    ) {
        let mut sim = Sim::new(num_blocks, max_step_tokens, max_running, true);
        let above = Load { lane: lane(9, 1), weight: 1, prompt: high.0, tokens: high.1 };
        let longest = low.iter().map(|&(_, prompt, tokens)| prompt + tokens as usize).max().unwrap();
        // One band after the other is ahead for so long: its tokens, and the chunks of its prompt or of what is computed again.
        let turn = AGED_TOKENS as usize + longest.div_ceil(CHUNK.min(max_step_tokens)) + 2;
        let bound = AGE_STEPS as usize + 3 * turn;
        let mut waited: BTreeMap<u8, usize> = BTreeMap::new();
        for _ in 0..bound + 50 {
            sim.refill(above, max_running + 1);
            for (flow, &(band, prompt, tokens)) in (0..).zip(&low) {
                sim.refill(Load { lane: lane(band, flow), weight: 1, prompt, tokens }, 1);
            }
            let bands: BTreeSet<u8> = low.iter().map(|low| low.0).collect();
            sim.step();
            for band in bands {
                let waited = waited.entry(band).or_default();
                *waited += 1;
                let last = sim.plans.last().unwrap();
                if last.iter().any(|item| sim.scheduler.requests.get(&item.id.request).is_none_or(|terms| terms.lane.band == band)) {
                    *waited = 0;
                }
                prop_assert!(*waited <= bound, "band {band} waited {waited} steps of at most {bound}");
            }
        }
    }
}

#[test]
fn a_second_user_of_a_band_gets_its_part_of_the_places_at_once_and_no_more() {
    let mut sim = Sim::new(400, 256, 8, true);
    let hog = Load { lane: lane(0, 1), weight: 1, prompt: 20, tokens: 1000 };
    (0..64).for_each(|_| sim.enter(hog));
    sim.steps(20);
    let other = Load { lane: lane(0, 2), weight: 1, prompt: 20, tokens: 1000 };
    (0..64).for_each(|_| sim.enter(other));
    sim.steps(20);
    let held =
        |sim: &Sim| sim.scheduler.active().filter(|id| sim.scheduler.requests[&id.request].lane == other.lane).count();
    assert_eq!(held(&sim), 4);
    let preemptions = sim.scheduler.preemptions();
    sim.steps(500);
    assert_eq!((held(&sim), sim.scheduler.preemptions()), (4, preemptions), "places do not go back and forth");
}
