//! `strftime_now` of chat templates: the date that some models are told.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::{Error, ErrorKind};

/// Where a template gets the time from.
pub(super) type Clock = fn() -> SystemTime;

/// The machine's clock.
#[expect(
    clippy::disallowed_methods,
    reason = "a template that asks for today's date gets it here, tests pass their own"
)]
pub(super) fn system_clock() -> SystemTime {
    SystemTime::now()
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

/// A moment in UTC, taken apart.
struct Moment {
    year: i64,
    /// 1 to 12.
    month: usize,
    /// 1 to 31.
    day: i64,
    /// 0 is Sunday.
    weekday: usize,
    /// 1 to 366.
    day_of_year: i64,
    hour: i64,
    minute: i64,
    second: i64,
}

/// Writes `now` in UTC as C's `strftime` would in the C locale.
///
/// # Errors
/// Names a directive that is not supported.
pub(super) fn format(now: SystemTime, format: &str) -> Result<String, Error> {
    let seconds = now.duration_since(UNIX_EPOCH).map_or(0, |elapsed| i64::try_from(elapsed.as_secs()).unwrap_or(0));
    let moment = Moment::from_unix(seconds);
    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        match chars.next() {
            // Glibc's "no padding": what Python's templates use for `%-d`.
            Some('-') => {
                let padded = moment.directive(chars.next())?;
                let bare = padded.trim_start_matches('0');
                out.push_str(if bare.is_empty() { "0" } else { bare });
            }
            directive => out.push_str(&moment.directive(directive)?),
        }
    }
    Ok(out)
}

impl Moment {
    /// # Source
    /// Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
    fn from_unix(seconds: i64) -> Self {
        let days = seconds.div_euclid(86_400);
        let clock = seconds.rem_euclid(86_400);
        let shifted = days + 719_468;
        let era = shifted.div_euclid(146_097);
        let day_of_era = shifted.rem_euclid(146_097);
        let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
        // Counted from the first of March, so that the leap day is the last of its year.
        let from_march = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
        let month_from_march = (5 * from_march + 2) / 153;
        let day = from_march - (153 * month_from_march + 2) / 5 + 1;
        let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
        let year = year_of_era + era * 400 + i64::from(month <= 2);
        let is_leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
        let before_march = 59 + i64::from(is_leap);
        let day_of_year = if month <= 2 { from_march - 305 } else { from_march + before_march + 1 };
        Self {
            year,
            month: usize::try_from(month).expect("a month is 1 to 12"),
            day,
            weekday: usize::try_from((days + 4).rem_euclid(7)).expect("a remainder of 7"),
            day_of_year: if month <= 2 { day_of_year.max(1) } else { day_of_year },
            hour: clock / 3_600,
            minute: clock / 60 % 60,
            second: clock % 60,
        }
    }

    fn directive(&self, directive: Option<char>) -> Result<String, Error> {
        let month = MONTHS[self.month - 1];
        let weekday = WEEKDAYS[self.weekday];
        let half_day_hour = (self.hour + 11) % 12 + 1;
        Ok(match directive {
            Some('Y') => self.year.to_string(),
            Some('y') => format!("{:02}", self.year.rem_euclid(100)),
            Some('m') => format!("{:02}", self.month),
            Some('B') => month.to_owned(),
            Some('b' | 'h') => month[..3].to_owned(),
            Some('d') => format!("{:02}", self.day),
            Some('e') => format!("{:2}", self.day),
            Some('j') => format!("{:03}", self.day_of_year),
            Some('A') => weekday.to_owned(),
            Some('a') => weekday[..3].to_owned(),
            Some('w') => self.weekday.to_string(),
            Some('H') => format!("{:02}", self.hour),
            Some('I') => format!("{half_day_hour:02}"),
            Some('M') => format!("{:02}", self.minute),
            Some('S') => format!("{:02}", self.second),
            Some('p') => if self.hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('F') => format!("{}-{:02}-{:02}", self.year, self.month, self.day),
            Some('T') => format!("{:02}:{:02}:{:02}", self.hour, self.minute, self.second),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            other => {
                let name = other.map_or(String::new(), String::from);
                return Err(Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know `%{name}`")));
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn at(seconds: u64, pattern: &str) -> String {
        format(UNIX_EPOCH + Duration::from_secs(seconds), pattern).unwrap()
    }

    #[test]
    fn dates_agree_with_the_calendar() {
        assert_eq!(at(0, "%A %d %B %Y %j %H:%M:%S"), "Thursday 01 January 1970 001 00:00:00");
        assert_eq!(at(951_782_400, "%F %j %a"), "2000-02-29 060 Tue");
        assert_eq!(at(951_868_800, "%F %j"), "2000-03-01 061");
        assert_eq!(at(978_220_800, "%d %b %y %j"), "31 Dec 00 366");
        assert_eq!(at(1_767_225_599, "%F %T %j %I %p"), "2025-12-31 23:59:59 365 11 PM");
        assert_eq!(at(1_767_225_600, "%-d/%-m %e %%"), "1/1  1 %");
        assert_eq!(at(4_107_542_400, "%F %j"), "2100-03-01 060");
    }

    #[test]
    fn an_unknown_directive_is_named() {
        let error = format(UNIX_EPOCH, "%Q").unwrap_err();
        assert!(error.to_string().contains("%Q"), "{error}");
        assert!(format(UNIX_EPOCH, "100%").is_err());
    }
}
