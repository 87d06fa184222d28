//! One counter of each kind, and the table that holds them.

use std::collections::{HashMap, HashSet};

use crate::governance::calendar::Bounds;
use crate::governance::limits::Resource;
use crate::governance::ports::{Charge, Count, CounterKey, Extent, Need, Refusing, Reserved, Retry, WindowKind};
use crate::governance::window::{SlidingWindow, Wait};

/// Both clocks, read at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) wall_us: i64,
    pub(super) steady_us: i64,
}

/// How long a client is asked to wait for somebody else's answer to end.
const CONCURRENCY_RETRY_US: i64 = 1_000_000;

/// Where a charge was counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ticket {
    /// A sub-window.
    Window(i64),
    /// The calendar period `[start, end)`.
    Period(i64, i64),
    /// In flight.
    Now,
}

/// One calendar period of one counter.
#[derive(Debug, Clone, Copy)]
pub(super) struct PeriodCount {
    start_us: i64,
    end_us: i64,
    used: u64,
    held: u64,
}

/// What one key counts.
#[derive(Debug)]
pub(super) enum Counter {
    Window(SlidingWindow),
    Calendar(Vec<PeriodCount>),
    Now { held: u64 },
}

impl Counter {
    fn new(kind: &WindowKind) -> Self {
        match kind {
            WindowKind::Sliding(length_us) => Self::Window(SlidingWindow::new(*length_us)),
            WindowKind::Calendar(..) => Self::Calendar(Vec::new()),
            WindowKind::Now => Self::Now { held: 0 },
        }
    }

    /// Where a charge made now would be counted.
    pub(super) fn ticket(&mut self, bounds: Option<Bounds>, now: Now) -> Ticket {
        match (self, bounds) {
            (Self::Calendar(periods), Some(bounds)) => {
                let (start_us, end_us) = bounds.at(now.wall_us);
                // Keeps open reservations of the period before; forgets those that nothing holds.
                periods.retain(|period| period.start_us == start_us || period.held > 0 || period.end_us > now.wall_us);
                Ticket::Period(start_us, end_us)
            }
            (Self::Window(_), _) => Ticket::Window(0),
            _ => Ticket::Now,
        }
    }

    fn period(periods: &mut Vec<PeriodCount>, start_us: i64, end_us: i64) -> &mut PeriodCount {
        let at = periods.iter().position(|period| period.start_us == start_us).unwrap_or_else(|| {
            periods.push(PeriodCount { start_us, end_us, used: 0, held: 0 });
            periods.len() - 1
        });
        &mut periods[at]
    }

    /// What is counted now where `ticket` points.
    fn total(&mut self, ticket: Ticket, now: Now) -> u64 {
        match (self, ticket) {
            (Self::Window(window), _) => {
                window.forget(now.steady_us);
                window.charged()
            }
            (Self::Calendar(periods), Ticket::Period(start_us, end_us)) => {
                let period = Self::period(periods, start_us, end_us);
                period.used + period.held
            }
            (Self::Calendar(_), _) => 0,
            (Self::Now { held }, _) => *held,
        }
    }

    fn retry(&mut self, ticket: Ticket, need: u64, amount: u64, now: Now) -> Result<(), Retry> {
        if need > amount {
            return Err(Retry::Never);
        }
        if self.total(ticket, now) <= amount - need {
            return Ok(());
        }
        Err(match (self, ticket) {
            (Self::Window(window), _) => match window.check(need, amount, now.steady_us) {
                Ok(()) => return Ok(()),
                Err(Wait::After(us)) => Retry::After(us),
                Err(Wait::Never) => Retry::Never,
            },
            // A stream that outlived its period cannot get more of it; the new period is not its own.
            (Self::Calendar(_), Ticket::Period(_, end_us)) if end_us <= now.wall_us => Retry::Never,
            (Self::Calendar(_), Ticket::Period(_, end_us)) => Retry::After(end_us - now.wall_us),
            _ => Retry::Estimate(CONCURRENCY_RETRY_US),
        })
    }

    /// Counts `amount` as held; a window's ticket becomes the sub-window.
    fn hold(&mut self, ticket: &mut Ticket, amount: u64, now: Now) {
        match (self, &mut *ticket) {
            (Self::Window(window), ticket) => *ticket = Ticket::Window(window.hold(amount, now.steady_us)),
            (Self::Calendar(periods), Ticket::Period(start_us, end_us)) => {
                Self::period(periods, *start_us, *end_us).held += amount;
            }
            (Self::Now { held }, _) => *held += amount,
            (Self::Calendar(_), _) => {}
        }
    }

    /// Ends a hold of `reserved`: `kept` stays counted.
    pub(super) fn settle(&mut self, ticket: Ticket, reserved: u64, kept: u64) {
        match (self, ticket) {
            (Self::Window(window), Ticket::Window(ticket)) => window.settle(ticket, reserved, kept),
            (Self::Calendar(periods), Ticket::Period(start_us, _)) => {
                if let Some(period) = periods.iter_mut().find(|period| period.start_us == start_us) {
                    period.held = period.held.saturating_sub(reserved);
                    period.used += kept;
                }
            }
            (Self::Now { held }, _) => *held = held.saturating_sub(reserved),
            _ => {}
        }
    }

    /// Its state, for standings.
    pub(super) fn count(&mut self, bounds: Option<Bounds>, now: Now) -> Count {
        match self {
            Self::Window(window) => {
                window.forget(now.steady_us);
                let held = window.held();
                Count {
                    used: window.charged() - held,
                    held,
                    reset_after_us: window.whole_again_us().map_or(0, |at| (at - now.steady_us).max(0)),
                }
            }
            Self::Calendar(periods) => {
                let Some((start_us, end_us)) = bounds.map(|bounds| bounds.at(now.wall_us)) else {
                    return Count::default();
                };
                let found = periods.iter().find(|period| period.start_us == start_us);
                Count {
                    used: found.map_or(0, |period| period.used),
                    held: found.map_or(0, |period| period.held),
                    reset_after_us: end_us.saturating_sub(now.wall_us).max(0),
                }
            }
            Self::Now { held } => Count { used: 0, held: *held, reset_after_us: 0 },
        }
    }

    pub(super) fn restore(&mut self, used: u64, at_us: i64, bounds: Option<Bounds>) {
        match (self, bounds) {
            (Self::Window(window), _) => window.restore(used, at_us),
            (Self::Calendar(periods), Some(bounds)) => {
                Self::period(periods, bounds.start_us, bounds.end_us).used += used;
            }
            _ => {}
        }
    }

    fn is_idle(&mut self, now: Now) -> bool {
        match self {
            Self::Window(window) => {
                window.forget(now.steady_us);
                window.is_empty()
            }
            Self::Calendar(periods) => periods.iter().all(|period| period.end_us <= now.wall_us && period.held == 0),
            Self::Now { held } => *held == 0,
        }
    }
}

/// What a block charges on a counter of `resource`.
pub(super) fn charged(extent: &Extent, need: &Need, resource: Resource) -> u64 {
    match resource {
        Resource::Requests => extent.requests,
        Resource::Tokens => extent.prompt_tokens + extent.completion_tokens,
        Resource::PromptTokens => extent.prompt_tokens,
        Resource::CompletionTokens => extent.completion_tokens,
        Resource::Concurrent => need.sequences,
        Resource::Cost => 0,
    }
}

/// All counters; a slot's number stays valid while a reservation refers to it.
#[derive(Debug, Default)]
pub(super) struct Table {
    numbers: HashMap<CounterKey, usize>,
    slots: Vec<Option<Counter>>,
    free: Vec<usize>,
    sweep_at: usize,
}

/// The fewest counters worth looking through for idle ones.
const SWEEP_MIN: usize = 1024;

impl Table {
    /// The number of a counter, made if need be.
    pub(super) fn index(&mut self, key: &CounterKey) -> usize {
        if let Some(number) = self.numbers.get(key) {
            return *number;
        }
        let counter = Some(Counter::new(&key.window));
        let number = match self.free.pop() {
            Some(number) => {
                self.slots[number] = counter;
                number
            }
            None => {
                self.slots.push(counter);
                self.slots.len() - 1
            }
        };
        self.numbers.insert(key.clone(), number);
        number
    }

    pub(super) fn find(&mut self, key: &CounterKey) -> Option<&mut Counter> {
        let number = *self.numbers.get(key)?;
        self.slots[number].as_mut()
    }

    pub(super) fn get(&mut self, number: usize) -> &mut Counter {
        self.slots[number].as_mut().expect("a counter that a number refers to is not swept")
    }

    /// Whether all charges would pass, and with how many completion tokens.
    pub(super) fn check(
        &mut self,
        charges: &[Charge],
        counters: &[usize],
        tickets: &[Ticket],
        need: Need,
        now: Now,
    ) -> Reserved {
        let mut refusing = Vec::new();
        let mut most = need.completion_most;
        for (i, charge) in charges.iter().enumerate() {
            let Some(amount) = charge.hard else { continue };
            let fixed = need.fixed(charge.key.resource);
            let elastic = Need::is_elastic(charge.key.resource);
            let least = fixed + if elastic { need.completion_least } else { 0 };
            if least == 0 && !elastic {
                // It takes nothing here: a counter that was filled under a higher amount is not its business.
                continue;
            }
            let counter = self.get(counters[i]);
            match counter.retry(tickets[i], least, amount, now) {
                Err(retry) => refusing.push(Refusing { charge: i, requested: least, retry }),
                Ok(()) if elastic => most = most.min(amount - fixed - counter.total(tickets[i], now)),
                Ok(()) => {}
            }
        }
        let counts = self.counts(charges, counters, now);
        if refusing.is_empty() {
            Reserved::Granted { at_us: now.steady_us, completion_tokens: most, counts }
        } else {
            Reserved::Refused { refusing, counts }
        }
    }

    /// Charges all or none.
    pub(super) fn charge(
        &mut self,
        charges: &[Charge],
        counters: &[usize],
        tickets: &mut [Ticket],
        need: Need,
        now: Now,
    ) -> Reserved {
        let answer = self.check(charges, counters, tickets, need, now);
        let Reserved::Granted { at_us, completion_tokens, .. } = answer else {
            return answer;
        };
        for (i, charge) in charges.iter().enumerate() {
            let resource = charge.key.resource;
            let amount = need.fixed(resource) + if Need::is_elastic(resource) { completion_tokens } else { 0 };
            self.get(counters[i]).hold(&mut tickets[i], amount, now);
        }
        Reserved::Granted { at_us, completion_tokens, counts: self.counts(charges, counters, now) }
    }

    fn counts(&mut self, charges: &[Charge], counters: &[usize], now: Now) -> Vec<Count> {
        charges.iter().zip(counters).map(|(charge, counter)| self.get(*counter).count(charge.bounds, now)).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Looking for idle counters costs as much as making them did: amortised constant.
    pub(super) fn is_sweep_due(&self) -> bool {
        self.numbers.len() >= self.sweep_at.max(SWEEP_MIN)
    }

    pub(super) fn sweep(&mut self, held: &HashSet<usize>, now: Now) {
        let Self { numbers, slots, free, .. } = self;
        numbers.retain(|_, number| {
            let idle = slots[*number].as_mut().is_none_or(|counter| counter.is_idle(now));
            if idle && !held.contains(number) {
                slots[*number] = None;
                free.push(*number);
                return false;
            }
            true
        });
        self.sweep_at = self.numbers.len() * 2;
    }
}
