//! When a day, a week or a month begins and ends in a time zone, summer time included.

use jiff::civil::Weekday;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan, Zoned};

use super::limits::{Period, Zone};

/// One calendar period and the one after it.
///
/// # Units
/// Microseconds since the Unix epoch. The current period is `[start_us, end_us)`, the next `[end_us, next_end_us)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// First instant of the current period.
    pub start_us: i64,
    /// First instant of the next one.
    pub end_us: i64,
    /// First instant of the one after that.
    pub next_end_us: i64,
}

impl Bounds {
    /// The period among the two that holds `now_us`; outside both, the nearer one.
    pub fn at(&self, now_us: i64) -> (i64, i64) {
        if now_us < self.end_us { (self.start_us, self.end_us) } else { (self.end_us, self.next_end_us) }
    }

    /// True while `now_us` lies in the current period.
    pub fn is_current(&self, now_us: i64) -> bool {
        self.start_us <= now_us && now_us < self.end_us
    }
}

/// The period of `zone` that holds `now_us`, and the next.
///
/// Instants that no calendar can express (beyond the year 9999) give one endless period.
pub fn bounds(period: Period, zone: &Zone, now_us: i64) -> Bounds {
    try_bounds(period, zone, now_us).unwrap_or(Bounds { start_us: i64::MIN, end_us: i64::MAX, next_end_us: i64::MAX })
}

fn try_bounds(period: Period, zone: &Zone, now_us: i64) -> Result<Bounds, jiff::Error> {
    let tz = TimeZone::get(zone.name())?;
    let today = Timestamp::from_microsecond(now_us)?.to_zoned(tz.clone()).date();
    let first = match period {
        Period::Day => today,
        Period::Week => today.checked_sub(i64::from(today.weekday().since(Weekday::Monday)).days())?,
        Period::Month => today.first_of_month(),
    };
    let step = match period {
        Period::Day => 1.day(),
        Period::Week => 1.week(),
        Period::Month => 1.month(),
    };
    let second = first.checked_add(step)?;
    let third = second.checked_add(step)?;
    // Midnight may not exist on a summer-time day; jiff then takes the first instant that does.
    let instant = |date: jiff::civil::Date| -> Result<i64, jiff::Error> {
        let zoned: Zoned = date.to_zoned(tz.clone())?;
        Ok(zoned.timestamp().as_microsecond())
    };
    Ok(Bounds { start_us: instant(first)?, end_us: instant(second)?, next_end_us: instant(third)? })
}

/// A moment as people and programs write it: RFC 3339, or seconds since the Unix epoch; in microseconds.
pub fn parse_moment(text: &str) -> Option<i64> {
    let seconds = || text.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    let moment: Timestamp = text.parse().ok().filter(|_| has_real_offset(text)).or_else(seconds)?;
    // RFC 3339 knows no year before the first.
    (moment.as_second() >= FIRST_SECOND).then(|| moment.as_microsecond())
}

/// The first of January of the year 1, in seconds since the Unix epoch.
const FIRST_SECOND: i64 = -62_135_596_800;

/// Whether the hours of an offset are some that a clock has; the parser takes up to 25 of them.
fn has_real_offset(text: &str) -> bool {
    let time = text.find(['T', 't', ' ']).map_or("", |at| &text[at..]);
    let hours = time.rfind(['+', '-']).and_then(|at| time.get(at + 1..at + 3)).and_then(|hours| hours.parse().ok());
    hours.is_none_or(|hours: u8| hours < 24)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn us(text: &str) -> i64 {
        text.parse::<Timestamp>().expect(text).as_microsecond()
    }

    fn of(period: Period, zone: &str, now: &str) -> Bounds {
        bounds(period, &zone.parse().expect(zone), us(now))
    }

    #[test]
    fn a_moment_is_rfc_3339_or_seconds_and_its_offset_is_one_that_there_is() {
        let noon = Some(us("2026-07-14T12:00:00Z"));
        for text in ["2026-07-14T12:00:00Z", "2026-07-14T14:00:00+02:00", "2026-07-13T12:01:00-23:59", "1784030400"] {
            assert_eq!(parse_moment(text), noon, "{text}");
        }
        assert_eq!(parse_moment("-62135596800"), Some(us("0001-01-01T00:00:00Z")));
        for text in ["-62135596801", "2026-07-14T12:00:00+25:00", "2026-07-14T12:00:00-24:00", "2026-07-14", "soon", ""]
        {
            assert_eq!(parse_moment(text), None, "{text}");
        }
    }

    #[test]
    fn a_day_in_paris_is_not_a_day_in_utc() {
        let day = of(Period::Day, "Europe/Paris", "2026-07-14T22:30:00Z");
        assert_eq!((day.start_us, day.end_us), (us("2026-07-14T22:00:00Z"), us("2026-07-15T22:00:00Z")));
    }

    #[test]
    fn the_days_on_which_the_clocks_change_have_23_and_25_hours() {
        let hours = |day: Bounds| (day.end_us - day.start_us) / 3_600_000_000;
        assert_eq!(hours(of(Period::Day, "Europe/Paris", "2026-03-29T10:00:00Z")), 23);
        assert_eq!(hours(of(Period::Day, "Europe/Paris", "2026-10-25T10:00:00Z")), 25);
    }

    #[test]
    fn a_day_without_midnight_begins_with_its_first_instant() {
        // Summer time in Beirut begins at midnight: 00:00 does not exist.
        let day = of(Period::Day, "Asia/Beirut", "2026-03-29T10:00:00Z");
        assert_eq!(day.start_us, us("2026-03-28T22:00:00Z"));
    }

    #[test]
    fn weeks_begin_on_monday_and_months_on_the_first() {
        let week = of(Period::Week, "UTC", "2026-11-22T23:59:59Z");
        assert_eq!((week.start_us, week.end_us), (us("2026-11-16T00:00:00Z"), us("2026-11-23T00:00:00Z")));
        let month = of(Period::Month, "UTC", "2026-01-31T12:00:00Z");
        assert_eq!((month.end_us, month.next_end_us), (us("2026-02-01T00:00:00Z"), us("2026-03-01T00:00:00Z")));
    }

    proptest! {
        #[test]
        fn periods_tile_time(now in 0..4_000_000_000_000_000i64, zone in 0..4usize, period in 0..3usize) {
            let zone: Zone = ["UTC", "Europe/Paris", "Asia/Kathmandu", "America/St_Johns"][zone].parse().expect("zone");
            let period = [Period::Day, Period::Week, Period::Month][period];
            let here = bounds(period, &zone, now);
            prop_assert!(here.is_current(now));
            let next = bounds(period, &zone, here.end_us);
            prop_assert_eq!((next.start_us, next.end_us), (here.end_us, here.next_end_us));
            prop_assert_eq!(bounds(period, &zone, here.end_us - 1), here);
        }
    }
}
