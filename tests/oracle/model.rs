//! The oracle: one list of everything ever charged; each answer comes from looking through all of it.
//!
//! It shares no logic with what it judges, only the words of questions and answers. It is slow, and meant to be obvious.

use std::collections::{HashMap, HashSet};

use millgate::governance::limits::{Period, Resource, Zone};
use millgate::governance::ports::{Bill, Charge, Count, CounterKey, Need, Refusing, Reserved, Retry, WindowKind};
use millgate::governance::{Clock, ManualClock};
use uuid::Uuid;

use super::calendar::Almanac;

/// Both clocks.
#[derive(Clone, Copy)]
pub(super) struct Moment {
    pub(super) wall_us: i64,
    pub(super) steady_us: i64,
}

impl Moment {
    pub(super) fn of(clock: &ManualClock) -> Self {
        Self { wall_us: clock.now_us(), steady_us: clock.steady_us() }
    }
}

/// Something counted once, on one counter.
struct Entry {
    counter: CounterKey,
    at_us: i64,
    /// The number of its calendar period.
    period: Option<i64>,
    reserved: u64,
    /// What stays after settlement.
    kept: Option<u64>,
}

/// One grant of an open reservation.
struct Block {
    prompt_tokens: u64,
    completion_tokens: u64,
    requests: u64,
    cost_nano_usd: u64,
    entries: Vec<usize>,
    answer: Reserved,
}

/// An open reservation.
struct Open {
    plan: Plan,
    /// The periods it pays in, fixed at admission.
    pays_in: Vec<Option<i64>>,
    blocks: Vec<Block>,
}

/// Limits to be charged together, as a caller worked them out at some instant.
#[derive(Clone)]
pub(super) struct Plan {
    pub(super) charges: Vec<(CounterKey, Option<u64>)>,
    /// When it was worked out: its calendar periods are that instant's and the next.
    pub(super) planned_wall_us: i64,
}

impl Plan {
    pub(super) fn of(charges: &[Charge], planned_wall_us: i64) -> Self {
        let charges = charges.iter().map(|charge| (charge.key.clone(), charge.hard)).collect();
        Self { charges, planned_wall_us }
    }
}

/// What a misused operation gets.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Misused;

#[derive(Default)]
pub(super) struct Oracle {
    entries: Vec<Entry>,
    open: HashMap<Uuid, Open>,
    settled: HashSet<Uuid>,
    almanac: Almanac,
}

impl Oracle {
    pub(super) fn reserve(&mut self, id: Uuid, plan: &Plan, need: Need, now: Moment) -> Result<Reserved, Misused> {
        if let Some(open) = self.open.get(&id) {
            return Ok(open.blocks[0].answer.clone());
        }
        if self.settled.contains(&id) {
            return Err(Misused);
        }
        let pays_in: Vec<Option<i64>> = plan.charges.iter().map(|(key, _)| self.period(key, plan, now)).collect();
        let mut open = Open { plan: plan.clone(), pays_in, blocks: Vec::new() };
        let answer = self.charge(&mut open, need, now);
        if !open.blocks.is_empty() {
            self.open.insert(id, open);
        }
        Ok(answer)
    }

    pub(super) fn extend(&mut self, id: Uuid, sequence: u32, need: Need, now: Moment) -> Result<Reserved, Misused> {
        let mut open = self.open.remove(&id).ok_or(Misused)?;
        let answer = match open.blocks.get(sequence as usize) {
            Some(block) => Ok(block.answer.clone()),
            None if sequence as usize == open.blocks.len() => Ok(self.charge(&mut open, need, now)),
            None => Err(Misused),
        };
        self.open.insert(id, open);
        answer
    }

    pub(super) fn settle(&mut self, id: Uuid, bill: Bill) {
        let Some(open) = self.open.remove(&id) else { return };
        self.settled.insert(id);
        let (mut prompt_left, mut completion_left) = (bill.usage.prompt_tokens, bill.usage.completion_tokens);
        let (mut requests_left, mut cost_left) = (bill.requests, bill.cost_nano_usd);
        for block in &open.blocks {
            // The earliest grants were used up first, so the latest are given back first.
            let prompt = block.prompt_tokens.min(prompt_left);
            let completion = block.completion_tokens.min(completion_left);
            let (requests, cost) = (block.requests.min(requests_left), block.cost_nano_usd.min(cost_left));
            (prompt_left, completion_left) = (prompt_left - prompt, completion_left - completion);
            (requests_left, cost_left) = (requests_left - requests, cost_left - cost);
            for entry in &block.entries {
                let entry = &mut self.entries[*entry];
                entry.kept = Some(match entry.counter.resource {
                    Resource::Requests => requests,
                    Resource::Tokens => prompt + completion,
                    Resource::PromptTokens => prompt,
                    Resource::CompletionTokens => completion,
                    Resource::Cost => cost,
                    Resource::Concurrent => 0,
                });
            }
        }
    }

    pub(super) fn probe(&mut self, plan: &Plan, need: Need, now: Moment) -> Reserved {
        let pays_in: Vec<Option<i64>> = plan.charges.iter().map(|(key, _)| self.period(key, plan, now)).collect();
        self.decide(plan, &pays_in, need, now)
    }

    pub(super) fn peek(&mut self, plan: &Plan, now: Moment) -> Vec<Count> {
        plan.charges.iter().map(|(key, _)| self.count(key, plan, now)).collect()
    }

    /// Used before this process, at `at_us` or in the calendar period of that instant.
    pub(super) fn restore(&mut self, counter: CounterKey, used: u64, at_us: i64) {
        let period = match &counter.window {
            WindowKind::Calendar(period, zone) => Some(self.almanac.number(*period, zone, at_us)),
            _ => None,
        };
        self.entries.push(Entry { counter, at_us, period, reserved: used, kept: Some(used) });
    }

    /// Everything on `key` charged less than `length_us` ago.
    pub(super) fn within(&self, key: &CounterKey, length_us: i64, now: Moment) -> u64 {
        let recent = |entry: &&Entry| entry.counter == *key && entry.at_us > now.steady_us - length_us;
        self.entries.iter().filter(recent).map(Entry::amount).sum()
    }

    pub(super) fn open_ids(&self) -> Vec<Uuid> {
        let mut ids: Vec<Uuid> = self.open.keys().copied().collect();
        ids.sort_unstable();
        ids
    }

    /// When the plan of an open reservation was made.
    pub(super) fn planned_us(&self, id: Uuid) -> i64 {
        self.open[&id].plan.planned_wall_us
    }

    /// Grants of an open reservation so far, and its prompt and completion tokens.
    pub(super) fn granted(&self, id: Uuid) -> (u32, u64, u64) {
        let blocks = &self.open[&id].blocks;
        let completion = blocks.iter().map(|block| block.completion_tokens).sum();
        (u32::try_from(blocks.len()).expect("few"), blocks[0].prompt_tokens, completion)
    }

    fn charge(&mut self, open: &mut Open, need: Need, now: Moment) -> Reserved {
        let answer = self.decide(&open.plan, &open.pays_in, need, now);
        let Reserved::Granted { completion_tokens, .. } = answer else { return answer };
        let mut entries = Vec::new();
        for ((key, _), period) in open.plan.charges.iter().zip(&open.pays_in) {
            entries.push(self.entries.len());
            self.entries.push(Entry {
                counter: key.clone(),
                at_us: now.steady_us,
                period: *period,
                reserved: asked(key.resource, need, completion_tokens),
                kept: None,
            });
        }
        let counts = self.peek(&open.plan, now);
        let answer = Reserved::Granted { at_us: now.steady_us, completion_tokens, counts: counts.into() };
        open.blocks.push(Block {
            prompt_tokens: need.prompt_tokens,
            completion_tokens,
            requests: need.requests,
            cost_nano_usd: asked(Resource::Cost, need, completion_tokens),
            entries,
            answer: answer.clone(),
        });
        answer
    }

    fn decide(&mut self, plan: &Plan, pays_in: &[Option<i64>], need: Need, now: Moment) -> Reserved {
        let (mut refusing, mut most) = (Vec::new(), need.completion_most);
        for (index, ((key, hard), period)) in plan.charges.iter().zip(pays_in).enumerate() {
            let Some(amount) = *hard else { continue };
            if asked(key.resource, need, need.completion_most) == 0 {
                // Nothing is asked of it, so it has no say.
                continue;
            }
            let requested = asked(key.resource, need, need.completion_least);
            let total = self.total(key, *period, now);
            if requested > amount {
                refusing.push(Refusing { charge: index, requested, retry: Retry::Never });
            } else if total + requested > amount {
                let retry = self.retry(key, *period, amount - requested, now);
                refusing.push(Refusing { charge: index, requested, retry });
            } else {
                // The most that still fits, by halving.
                let (mut fits, mut too_many) = (need.completion_least, most + 1);
                while fits + 1 < too_many {
                    let middle = fits + (too_many - fits) / 2;
                    if total + asked(key.resource, need, middle) <= amount {
                        fits = middle;
                    } else {
                        too_many = middle;
                    }
                }
                most = fits;
            }
        }
        let counts = self.peek(plan, now);
        if refusing.is_empty() {
            Reserved::Granted { at_us: now.steady_us, completion_tokens: most, counts: counts.into() }
        } else {
            Reserved::Refused { refusing, counts: counts.into() }
        }
    }

    /// Tries every instant at which something leaves, in order, until no more than `room` is left.
    fn retry(&mut self, key: &CounterKey, period: Option<i64>, room: u64, now: Moment) -> Retry {
        match &key.window {
            WindowKind::Now => Retry::Estimate(1_000_000),
            WindowKind::Calendar(kind, zone) => {
                let number = period.expect("calendar charges have a period");
                match self.almanac.end_us(*kind, zone, number) - now.wall_us {
                    left if left <= 0 => Retry::Never,
                    left => Retry::After(left),
                }
            }
            WindowKind::Sliding(length_us) => {
                let own = self.entries.iter().filter(|entry| entry.counter == *key);
                let mut leaving: Vec<i64> = own.map(|entry| leaves_us(entry.at_us, *length_us)).collect();
                leaving.sort_unstable();
                leaving.dedup();
                leaving.retain(|at| *at > now.steady_us);
                let fits = |at: &i64| self.total(key, None, Moment { steady_us: *at, ..now }) <= room;
                Retry::After(leaving.into_iter().find(fits).expect("an empty window has room") - now.steady_us)
            }
        }
    }

    fn total(&self, key: &CounterKey, period: Option<i64>, now: Moment) -> u64 {
        self.counting(key, period, now).map(Entry::amount).sum()
    }

    fn count(&mut self, key: &CounterKey, plan: &Plan, now: Moment) -> Count {
        let period = self.period(key, plan, now);
        let held = self.counting(key, period, now).filter(|entry| entry.kept.is_none()).map(Entry::amount).sum();
        let used = self.total(key, period, now) - held;
        let whole_us = match (&key.window, period) {
            (WindowKind::Calendar(kind, zone), Some(number)) => self.almanac.end_us(*kind, zone, number) - now.wall_us,
            (WindowKind::Sliding(length_us), _) => {
                let counting = self.counting(key, None, now).filter(|entry| entry.amount() > 0);
                counting.map(|entry| leaves_us(entry.at_us, *length_us) - now.steady_us).max().unwrap_or(0)
            }
            _ => 0,
        };
        Count { used, held, reset_after_us: whole_us.max(0) }
    }

    fn counting<'a>(
        &'a self,
        key: &'a CounterKey,
        period: Option<i64>,
        now: Moment,
    ) -> impl Iterator<Item = &'a Entry> + 'a {
        self.entries.iter().filter(move |entry| {
            entry.counter == *key
                && match &key.window {
                    WindowKind::Sliding(length_us) => now.steady_us < leaves_us(entry.at_us, *length_us),
                    WindowKind::Calendar(..) => entry.period == period,
                    WindowKind::Now => entry.kept.is_none(),
                }
        })
    }

    /// Of the two periods that a plan knows, the one for now.
    fn period(&mut self, key: &CounterKey, plan: &Plan, now: Moment) -> Option<i64> {
        let WindowKind::Calendar(period, zone) = &key.window else { return None };
        let (period, zone): (Period, &Zone) = (*period, zone);
        let planned = self.almanac.number(period, zone, plan.planned_wall_us);
        let present = self.almanac.number(period, zone, now.wall_us);
        Some(if present <= planned { planned } else { Almanac::next(period, planned) })
    }
}

impl Entry {
    fn amount(&self) -> u64 {
        self.kept.unwrap_or(self.reserved)
    }
}

/// What a counter of `resource` is asked for when `completion` tokens are.
fn asked(resource: Resource, need: Need, completion: u64) -> u64 {
    match resource {
        Resource::Requests => need.requests,
        Resource::Tokens => need.prompt_tokens + completion,
        Resource::PromptTokens => need.prompt_tokens,
        Resource::CompletionTokens => completion,
        Resource::Concurrent => need.sequences,
        // Every prompt token at whichever price is higher, rounded up to whole nano-dollars.
        Resource::Cost => {
            let dearest = u128::from(need.price.prompt_pico_usd.max(need.price.cached_pico_usd));
            let tokens = u128::from(completion) * u128::from(need.price.completion_pico_usd);
            let pico = u128::from(need.prompt_tokens) * dearest + tokens;
            u64::try_from(pico / 1000 + u128::from(pico % 1000 > 0)).expect("far from the end")
        }
    }
}

/// A length is cut into sixty grains (or fewer, of a microsecond); what was charged in a grain counts until a whole length
/// has passed since the grain's end.
fn leaves_us(at_us: i64, length_us: i64) -> i64 {
    let grain_us = (length_us + 59) / 60;
    let grains = (length_us + grain_us - 1) / grain_us;
    let end_of_grain_us = (at_us.div_euclid(grain_us) + 1) * grain_us;
    end_of_grain_us + grains * grain_us
}
