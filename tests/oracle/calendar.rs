//! Calendar periods as numbers: days, Mondays and months counted from 1970, found from a zone's offset alone.

use std::collections::HashMap;

use jiff::Timestamp;
use jiff::tz::TimeZone;
use millgate::governance::limits::{Period, Zone};

const DAY_US: i64 = 86_400_000_000;

/// Finds periods; remembers the ends it has searched for.
#[derive(Default)]
pub(super) struct Almanac {
    zones: HashMap<String, TimeZone>,
    ends: HashMap<(Period, String, i64), i64>,
}

impl Almanac {
    /// The number of the period that holds an instant: a day, a Monday's day, or a month, since 1970.
    pub(super) fn number(&mut self, period: Period, zone: &Zone, wall_us: i64) -> i64 {
        let tz = self
            .zones
            .entry(zone.name().to_owned())
            .or_insert_with(|| TimeZone::get(zone.name()).expect("zones of tests exist"));
        let instant = Timestamp::from_microsecond(wall_us).expect("years of tests are near");
        let local_us = wall_us + i64::from(tz.to_offset(instant).seconds()) * 1_000_000;
        let day = local_us.div_euclid(DAY_US);
        match period {
            Period::Day => day,
            // Day 0 was a Thursday.
            Period::Week => day - (day + 3).rem_euclid(7),
            Period::Month => {
                let date = tz.to_datetime(instant).date();
                i64::from(date.year()) * 12 + i64::from(date.month()) - 1
            }
        }
    }

    /// The number of the period after `number`.
    pub(super) fn next(period: Period, number: i64) -> i64 {
        match period {
            Period::Day | Period::Month => number + 1,
            Period::Week => number + 7,
        }
    }

    /// The first instant that lies behind the period: searched for, not computed.
    pub(super) fn end_us(&mut self, period: Period, zone: &Zone, number: i64) -> i64 {
        let key = (period, zone.name().to_owned(), number);
        if let Some(end) = self.ends.get(&key) {
            return *end;
        }
        let about = match period {
            Period::Day | Period::Week => number * DAY_US,
            Period::Month => ((number - 1970 * 12) * 30 + (number - 1970 * 12) * 7 / 16) * DAY_US,
        };
        let (mut inside, mut behind) = (about - 3 * DAY_US, about + 40 * DAY_US);
        while behind - inside > 1 {
            let middle = inside + (behind - inside) / 2;
            if self.number(period, zone, middle) > number {
                behind = middle;
            } else {
                inside = middle;
            }
        }
        self.ends.insert(key, behind);
        behind
    }
}
