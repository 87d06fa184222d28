//! One counter of each kind: a sliding window, calendar periods, what is in flight.

use crate::governance::calendar::Bounds;
use crate::governance::ports::{Count, Retry, WindowKind};
use crate::governance::window::{SlidingWindow, Wait};

/// Both clocks, read at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Now {
    pub(super) wall_us: i64,
    pub(super) steady_us: i64,
}

/// A calendar period is kept so long after its end, so that a wall clock set back finds what was used in it.
const PERIOD_KEPT_US: i64 = 24 * 3600 * 1_000_000;

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

impl PeriodCount {
    /// True when nothing holds it and the wall clock will not come back to it.
    fn is_over(&self, now: Now) -> bool {
        self.held == 0 && self.end_us.saturating_add(PERIOD_KEPT_US) <= now.wall_us
    }
}

/// What one key counts.
#[derive(Debug)]
pub(super) enum Counter {
    Window(SlidingWindow),
    Calendar(Vec<PeriodCount>),
    Now { held: u64 },
}

impl Counter {
    pub(super) fn new(kind: &WindowKind) -> Self {
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
                periods.retain(|period| period.start_us == start_us || !period.is_over(now));
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
    pub(super) fn total(&mut self, ticket: Ticket, now: Now) -> u64 {
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

    /// When a refused charge of `need`, at most `amount`, would pass.
    pub(super) fn retry(&mut self, ticket: Ticket, need: u64, amount: u64, now: Now) -> Retry {
        match (self, ticket) {
            (Self::Window(window), _) => match window.check(need, amount, now.steady_us) {
                Ok(()) => Retry::After(0),
                Err(Wait::After(us)) => Retry::After(us),
                Err(Wait::Never) => Retry::Never,
            },
            // A stream that outlived its period cannot get more of it; the new period is not its own.
            (Self::Calendar(_), Ticket::Period(_, end_us)) if end_us <= now.wall_us => Retry::Never,
            (Self::Calendar(_), Ticket::Period(_, end_us)) => Retry::After(end_us - now.wall_us),
            _ => Retry::Estimate(CONCURRENCY_RETRY_US),
        }
    }

    /// Counts `amount` as held; a window's ticket becomes the sub-window.
    pub(super) fn hold(&mut self, ticket: &mut Ticket, amount: u64, now: Now) {
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

    /// True when forgetting it changes no answer.
    pub(super) fn is_idle(&mut self, now: Now) -> bool {
        match self {
            Self::Window(window) => {
                window.forget(now.steady_us);
                window.is_empty()
            }
            Self::Calendar(periods) => periods.iter().all(|period| period.is_over(now)),
            Self::Now { held } => *held == 0,
        }
    }
}
