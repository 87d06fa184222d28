//! A random history, played on counters and on the oracle at once; it ends at the first answer in which they differ.

use std::sync::Arc;

use millgate::governance::limits::{Resource, Window};
use millgate::governance::ports::{Bill, Charge, Counters, Need, Reserved, Restored, Retry, WindowKind};
use millgate::governance::pricing::Price;
use millgate::governance::{Limit, ManualClock, Usage, UserId, calendar};
use uuid::Uuid;

use super::model::{Misused, Moment, Oracle, Plan};
use super::random::Random;
use super::world::World;

const SECOND_US: i64 = 1_000_000;
const HOUR_US: i64 = 3600 * SECOND_US;
/// A plan knows its own calendar period and the next: it is never used when both are over.
const PLAN_MAX_AGE_US: i64 = 20 * HOUR_US;

/// Nothing; fractions of a nano-dollar; free answers; cached tokens that cost more than others.
const PRICES: [Price; 4] = [
    Price { prompt_pico_usd: 0, cached_pico_usd: 0, completion_pico_usd: 0 },
    Price { prompt_pico_usd: 1_337, cached_pico_usd: 669, completion_pico_usd: 2_749 },
    Price { prompt_pico_usd: 2_000, cached_pico_usd: 0, completion_pico_usd: 0 },
    Price { prompt_pico_usd: 1, cached_pico_usd: 900, completion_pico_usd: 333 },
];

/// One history under way.
pub(super) struct History<'a> {
    counters: &'a dyn Counters,
    clock: &'a ManualClock,
    oracle: Oracle,
    random: Random,
    world: World,
    /// How far the wall clock was set away from the steady one.
    set_by_us: i64,
    /// Waits told lately: the clock likes to stop exactly at their ends.
    waits_us: Vec<i64>,
    recent: Vec<(Uuid, Plan, Arc<[Charge]>, Need)>,
    ids: u128,
}

impl<'a> History<'a> {
    /// Fresh counters that tell the time by `clock`, and a seed.
    pub(super) fn new(counters: &'a dyn Counters, clock: &'a ManualClock, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let world = World::random(&mut random);
        clock.advance_us(world.start_us);
        Self {
            counters,
            clock,
            oracle: Oracle::default(),
            random,
            world,
            set_by_us: 0,
            waits_us: Vec::new(),
            recent: Vec::new(),
            ids: 0,
        }
    }

    /// Plays so many operations, then settles what is open.
    ///
    /// # Errors
    /// What was asked, and both answers.
    pub(super) async fn play(mut self, operations: u64) -> Result<(), String> {
        for number in 0..operations {
            self.step().await.map_err(|what| format!("operation {number}: {what}"))?;
            self.compare_states().await.map_err(|what| format!("after operation {number}: {what}"))?;
        }
        for id in self.oracle.open_ids() {
            self.settle(id).await?;
        }
        self.compare_states().await.map_err(|what| format!("at the end: {what}"))
    }

    async fn step(&mut self) -> Result<(), String> {
        self.pass_time();
        match self.random.within(0, 99) {
            0..30 => self.reserve().await,
            30..34 => self.repeat_reserve().await,
            34..52 => self.extend().await,
            52..74 => match self.any_open() {
                Some(id) => self.settle(id).await,
                None => self.reserve().await,
            },
            74..76 => self.settle_again().await,
            76..79 => match self.any_open() {
                // Charged, and then the admission was cancelled.
                Some(id) => self.settle_with(id, Usage::default().into()).await,
                None => Ok(()),
            },
            79..90 => self.probe().await,
            90..93 => self.restore().await,
            93..97 => {
                self.world.edit(&mut self.random);
                Ok(())
            }
            97..99 => {
                self.set_wall_clock();
                Ok(())
            }
            _ => self.crowd().await,
        }
    }

    fn now(&self) -> Moment {
        Moment::of(self.clock)
    }

    fn pass_time(&mut self) {
        let random = &mut self.random;
        let pause = match random.within(0, 99) {
            0..40 => 0,
            40..50 => 1,
            50..65 => random.us(0, SECOND_US),
            65..75 => random.us(0, 20 * SECOND_US),
            75..82 => random.us(0, 90 * SECOND_US),
            82..84 => random.us(0, 5 * HOUR_US),
            84..85 if random.percent(20) => random.us(0, 80 * HOUR_US),
            _ => match self.waits_us.pop() {
                Some(wait) if wait < 40 * HOUR_US => (wait - random.us(0, 1)).max(0),
                _ => 0,
            },
        };
        self.clock.advance_us(pause);
    }

    /// An hour at most either way, as a correction of the clock or a wrong zone would do.
    fn set_wall_clock(&mut self) {
        let wanted = if self.random.percent(50) { 0 } else { self.random.us(-HOUR_US, HOUR_US) };
        self.clock.jump_wall_us(wanted - self.set_by_us);
        self.set_by_us = wanted;
    }

    fn fresh_id(&mut self) -> Uuid {
        self.ids += 1;
        Uuid::from_u128(self.ids)
    }

    fn any_open(&mut self) -> Option<Uuid> {
        let open = self.oracle.open_ids();
        (!open.is_empty()).then(|| *self.random.pick(&open))
    }

    /// The charges of somebody's request, from a plan that may be a little old.
    fn plan(&mut self) -> (Plan, Arc<[Charge]>) {
        let caller = World::anybody(&mut self.random);
        let age_us = if self.random.percent(20) { self.random.us(0, PLAN_MAX_AGE_US) } else { 0 };
        let planned_us = self.now().wall_us - age_us;
        let charges = self.world.charges(caller, planned_us);
        (Plan::of(&charges, planned_us), charges)
    }

    fn admission(&mut self) -> Need {
        let random = &mut self.random;
        let huge = if random.percent(3) { 1 << 40 } else { 0 };
        let sequences = random.within(1, 3);
        let (least, most) = if random.percent(50) {
            let cap = random.within(1, 80) * sequences + huge;
            (cap, cap)
        } else {
            (sequences, sequences * random.within(1, 256))
        };
        Need {
            requests: 1,
            prompt_tokens: random.within(1, 60),
            sequences,
            completion_least: least,
            completion_most: most,
            price: *random.pick(&PRICES),
        }
    }

    async fn reserve(&mut self) -> Result<(), String> {
        let (id, (plan, charges), need) = (self.fresh_id(), self.plan(), self.admission());
        self.reserve_as(id, &plan, &charges, need).await?;
        if self.oracle.open_ids().contains(&id) {
            self.assert_strict(&plan, need, self.now());
        }
        self.recent.push((id, plan, charges, need));
        if self.recent.len() > 30 {
            self.recent.remove(0);
        }
        Ok(())
    }

    /// The same reservation once more: open, settled, or refused before.
    async fn repeat_reserve(&mut self) -> Result<(), String> {
        if self.recent.is_empty() {
            return Ok(());
        }
        let (id, plan, charges, need) = self.random.pick(&self.recent).clone();
        if self.now().wall_us - plan.planned_wall_us > PLAN_MAX_AGE_US {
            return Ok(());
        }
        self.reserve_as(id, &plan, &charges, need).await
    }

    async fn reserve_as(&mut self, id: Uuid, plan: &Plan, charges: &Arc<[Charge]>, need: Need) -> Result<(), String> {
        let now = self.now();
        let expected = self.oracle.reserve(id, plan, need, now);
        let found = self.counters.reserve(id, charges, need).await.map_err(|_| Misused);
        self.same(&format!("reserve {id} {need:?} {charges:?}"), &expected, &found)
    }

    async fn extend(&mut self) -> Result<(), String> {
        let Some(id) = self.any_open() else { return Ok(()) };
        if self.now().wall_us - self.oracle.planned_us(id) > PLAN_MAX_AGE_US {
            // No generation lives so long.
            return Ok(());
        }
        let (blocks, ..) = self.oracle.granted(id);
        let (id, sequence) = match self.random.within(0, 19) {
            0 => (Uuid::nil(), 1),
            1 => (id, blocks + 1),
            2..5 => (id, self.random.within(0, u64::from(blocks) - 1).try_into().expect("few")),
            _ => (id, blocks),
        };
        let least = self.random.within(0, 3);
        let most = least * self.random.within(1, 60);
        let price = *self.random.pick(&PRICES);
        let need = Need { completion_least: least, completion_most: most, price, ..Need::default() };
        let expected = self.oracle.extend(id, sequence, need, self.now());
        let found = self.counters.extend(id, sequence, need).await.map_err(|_| Misused);
        self.same(&format!("extend {id} {sequence} {need:?}"), &expected, &found)
    }

    async fn settle(&mut self, id: Uuid) -> Result<(), String> {
        let (_, prompt, completion) = self.oracle.granted(id);
        // Now and then more than was granted: the surplus must go nowhere.
        let beyond = if self.random.percent(3) { 9 } else { 0 };
        let used = Usage {
            prompt_tokens: if self.random.percent(80) { prompt } else { self.random.within(0, prompt) } + beyond,
            cached_tokens: 0,
            completion_tokens: self.random.within(0, completion) + beyond,
        };
        // Mostly what the tokens cost at some price, now and then nothing at all: an answer that failed.
        let bill = if self.random.percent(10) {
            Bill::default()
        } else {
            Bill { requests: 1, usage: used, cost_nano_usd: self.random.pick(&PRICES).cost_nano_usd(used) }
        };
        self.settle_with(id, bill).await
    }

    async fn settle_again(&mut self) -> Result<(), String> {
        let Some(id) = self.recent.first().map(|(id, ..)| *id) else { return Ok(()) };
        self.settle_with(id, Usage { prompt_tokens: 1, cached_tokens: 0, completion_tokens: 1 }.into()).await
    }

    async fn settle_with(&mut self, id: Uuid, bill: Bill) -> Result<(), String> {
        self.oracle.settle(id, bill);
        self.counters.settle(id, bill).await.map_err(|error| format!("settle {id} {bill:?}: {error}"))
    }

    async fn probe(&mut self) -> Result<(), String> {
        let ((plan, charges), need) = (self.plan(), self.admission());
        let expected = self.oracle.probe(&plan, need, self.now());
        let found = self.counters.probe(&charges, need).await.map_err(|error| error.to_string())?;
        self.same(&format!("probe {need:?} {charges:?}"), &expected, &found)
    }

    /// Usage of an earlier process comes back.
    async fn restore(&mut self) -> Result<(), String> {
        let (_, charges) = self.plan();
        let now = self.now();
        let mut rows = Vec::new();
        for charge in charges.iter() {
            let (used, ago_us) = (self.random.within(0, 40), self.random.us(0, 2 * HOUR_US));
            let (at_us, bounds) = match &charge.key.window {
                WindowKind::Now => continue,
                WindowKind::Sliding(_) => (now.steady_us - ago_us, None),
                WindowKind::Calendar(period, zone) => (now.wall_us, Some(calendar::bounds(*period, zone, now.wall_us))),
            };
            self.oracle.restore(charge.key.clone(), used, at_us);
            rows.push(Restored { key: charge.key.clone(), used, at_us, bounds });
        }
        self.counters.restore(rows).await.map_err(|error| error.to_string())
    }

    /// Strangers come and go, so many that idle counters are cleared away.
    async fn crowd(&mut self) -> Result<(), String> {
        let limit = Limit::new(Resource::Tokens, 10, "1s").expect("a limit");
        assert!(matches!(limit.window, Window::Sliding(_)));
        if !self.random.percent(20) {
            return Ok(());
        }
        for _ in 0..1100 {
            let (id, stranger) = (self.fresh_id(), UserId(Uuid::from_u128(1000 + self.ids)));
            let key = millgate::governance::ports::CounterKey::for_subject(&limit, stranger, None, "tier");
            let charge = Charge { key: key.expect("a counter"), hard: Some(10), bounds: None };
            let need = Need { requests: 1, prompt_tokens: 3, ..Need::default() };
            let counters = self.counters;
            counters.reserve(id, &Arc::from([charge]), need).await.map_err(|error| error.to_string())?;
            counters.settle(id, Usage::default().into()).await.map_err(|error| error.to_string())?;
        }
        Ok(())
    }

    /// Every counter of everybody, not only of who asked.
    async fn compare_states(&mut self) -> Result<(), String> {
        let now = self.now();
        for caller in World::everybody() {
            let charges = self.world.charges(caller, now.wall_us);
            let expected = self.oracle.peek(&Plan::of(&charges, now.wall_us), now);
            let found = self.counters.peek(&charges).await.map_err(|error| error.to_string())?;
            if expected != found {
                return Err(format!("states of {charges:?}\n  oracle   {expected:?}\n  counters {found:?}"));
            }
        }
        Ok(())
    }

    /// The promise in its plainest words: in the length that ends now there is not more than the amount.
    fn assert_strict(&self, plan: &Plan, need: Need, now: Moment) {
        for (key, hard) in &plan.charges {
            let takes = need.charged(key.resource, need.completion_most) > 0;
            if let (WindowKind::Sliding(length_us), Some(amount), true) = (&key.window, hard, takes) {
                let within = self.oracle.within(key, *length_us, now);
                assert!(within <= *amount, "{within} of {amount} within {length_us} us on {key:?}");
            }
        }
    }

    fn same<T: Waits>(&mut self, asked: &str, oracle: &T, counters: &T) -> Result<(), String> {
        self.waits_us.extend(oracle.waits_us());
        if oracle == counters {
            return Ok(());
        }
        Err(format!("{asked}\n  oracle   {oracle:?}\n  counters {counters:?}"))
    }
}

/// Exact waits in an answer.
trait Waits: PartialEq + std::fmt::Debug {
    fn waits_us(&self) -> Vec<i64>;
}

impl Waits for Reserved {
    fn waits_us(&self) -> Vec<i64> {
        let Self::Refused { refusing, .. } = self else { return Vec::new() };
        refusing.iter().filter_map(|one| if let Retry::After(us) = one.retry { Some(us) } else { None }).collect()
    }
}

impl Waits for Result<Reserved, Misused> {
    fn waits_us(&self) -> Vec<i64> {
        self.as_ref().map(Waits::waits_us).unwrap_or_default()
    }
}
