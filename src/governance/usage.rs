//! Usage reports: what is asked, what a line says, and how a stretch of time is cut into roll-ups and single rows.

use std::sync::Arc;

use super::attribution::Attribution;
use super::calendar;
use super::limits::{Period, Zone};
use super::records::{KeyId, Usage, UserId};

/// A minute in microseconds.
pub const MINUTE_US: i64 = 60_000_000;
/// Lines of one report at most; who wants more asks for a shorter time or fewer groups.
pub const LINES_MAX: usize = 10_000;

/// What a usage report is grouped by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UsageGroup {
    /// By user.
    User,
    /// By key id.
    Key,
    /// By tier name.
    Tier,
    /// By model name.
    Model,
    /// By group of the user; a request counts once for each.
    Group,
    /// By the value of a label of the key; empty for keys without it.
    Label(String),
}

/// Where a report comes from; both give the same sums.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum UsageSource {
    /// Roll-ups where they fit, ledger rows at the edges.
    #[default]
    RollUps,
    /// Ledger rows alone: slow, and the proof that roll-ups are right.
    Rows,
}

/// Which rows a usage report adds up.
///
/// # Units
/// Microseconds since the Unix epoch, by admission; start inclusive, end exclusive. Refusals are known by the minute and
/// belong to where their minute begins.
#[derive(Debug, Clone, Default)]
pub struct UsageQuery {
    /// First instant.
    pub start_us: i64,
    /// First instant that is not included.
    pub end_us: i64,
    /// Lines for each stretch of time; `None`: the whole time is one.
    pub buckets: Option<Buckets>,
    /// One line for each combination; empty: one line for each stretch of time.
    pub group_by: Vec<UsageGroup>,
    /// Only of this user.
    pub user: Option<UserId>,
    /// Only with this key.
    pub key: Option<KeyId>,
    /// Only in this tier.
    pub tier: Option<String>,
    /// Only for this model.
    pub model: Option<String>,
    /// How the sums are made.
    pub source: UsageSource,
}

/// One line of a usage report.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct UsageSum {
    /// First instant of its stretch of time.
    pub start_us: i64,
    /// First instant after it.
    pub end_us: i64,
    /// One value for each [`UsageGroup`] asked for, in that order; users by name.
    pub group: Vec<String>,
    /// The user's id, in reports by user.
    pub user: Option<UserId>,
    /// Requests that were charged.
    pub requests: u64,
    /// Requests that were admitted and answered with an error; nothing was charged.
    pub failures: u64,
    /// Tokens charged.
    pub usage: Usage,
    /// Money charged.
    pub cost_nano_usd: u64,
    /// Requests that a limit refused.
    pub refusals: u64,
}

/// How often somebody was refused by a limit within a minute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusalCount {
    /// First instant of the minute.
    pub start_us: i64,
    /// Whose requests.
    pub user: UserId,
    /// Their name.
    pub user_name: String,
    /// With which key.
    pub key: Option<KeyId>,
    /// In which tier.
    pub tier: String,
    /// For which model; empty when it was not known yet.
    pub model: String,
    /// The user's groups and the key's labels.
    pub attribution: Arc<Attribution>,
    /// The limit in words.
    pub limit: Arc<str>,
    /// The reason for machines.
    pub reason: String,
    /// How many.
    pub refusals: u64,
}

/// The length of the stretches of time of a report.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BucketLength {
    /// Minutes of UTC.
    Minute,
    /// Hours of UTC.
    Hour,
    /// Days of a time zone: 23 or 25 hours long when the clocks change.
    Day,
}

impl BucketLength {
    /// How many a report has at most.
    pub fn most(self) -> usize {
        match self {
            Self::Minute => 1440,
            Self::Hour => 24 * 31,
            Self::Day => 400,
        }
    }

    /// The word used in addresses.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Minute => "1m",
            Self::Hour => "1h",
            Self::Day => "1d",
        }
    }

    /// The first instant of the bucket after the one of `at_us`.
    fn next(self, zone: &Zone, at_us: i64) -> i64 {
        let step = |length_us: i64| floor(at_us, length_us).saturating_add(length_us);
        match self {
            Self::Minute => step(MINUTE_US),
            Self::Hour => step(60 * MINUTE_US),
            Self::Day => calendar::bounds(Period::Day, zone, at_us).end_us,
        }
    }
}

/// Consecutive stretches of time: each but the first and the last is a whole minute, hour or day.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Buckets {
    /// Their beginnings, and the end of the last.
    edges: Vec<i64>,
}

impl Buckets {
    /// Cuts `[start_us, end_us)` where minutes, hours or days begin; `None`: these would be more than [`BucketLength::most`].
    pub fn new(length: BucketLength, zone: &Zone, start_us: i64, end_us: i64) -> Option<Self> {
        let mut edges = vec![start_us];
        let mut at_us = start_us;
        while at_us < end_us {
            if edges.len() > length.most() {
                return None;
            }
            at_us = length.next(zone, at_us).min(end_us);
            edges.push(at_us);
        }
        Some(Self { edges })
    }

    /// Beginning and end of each.
    pub fn iter(&self) -> impl Iterator<Item = (i64, i64)> {
        self.edges.windows(2).map(|pair| (pair[0], pair[1]))
    }

    /// The one that `at_us` lies in.
    pub fn of(&self, at_us: i64) -> Option<(i64, i64)> {
        let after = self.edges.partition_point(|edge| *edge <= at_us);
        Some((*self.edges.get(after.checked_sub(1)?)?, *self.edges.get(after)?))
    }
}

/// What a piece of a report is added up from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PieceSource {
    /// Roll-ups of this length; days are days of UTC.
    RollUps(BucketLength),
    /// Ledger rows, all in one bucket of the report.
    Rows,
}

/// A stretch of time and what it is added up from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// From what.
    pub source: PieceSource,
    /// First instant.
    pub start_us: i64,
    /// First instant after it.
    pub end_us: i64,
}

impl UsageQuery {
    /// The pieces that together are exactly the time asked for, each once, the longest roll-ups first choice.
    pub fn pieces(&self) -> Vec<Piece> {
        let levels: &[BucketLength] = match self.source {
            UsageSource::RollUps => &[BucketLength::Day, BucketLength::Hour, BucketLength::Minute],
            UsageSource::Rows => &[],
        };
        let mut pieces = Vec::new();
        match &self.buckets {
            None => cover(self.start_us, self.end_us, levels, &mut pieces),
            Some(buckets) => {
                for (start_us, end_us) in buckets.iter() {
                    cover(start_us, end_us, levels, &mut pieces);
                }
            }
        }
        pieces
    }

    /// The stretch of time of the report that `at_us` belongs to.
    pub fn bucket_of(&self, at_us: i64) -> (i64, i64) {
        let bucket = self.buckets.as_ref().and_then(|buckets| buckets.of(at_us));
        bucket.unwrap_or((self.start_us, self.end_us))
    }
}

fn cover(start_us: i64, end_us: i64, levels: &[BucketLength], pieces: &mut Vec<Piece>) {
    if start_us >= end_us {
        return;
    }
    let Some((level, finer)) = levels.split_first() else {
        pieces.push(Piece { source: PieceSource::Rows, start_us, end_us });
        return;
    };
    let length_us = match level {
        BucketLength::Minute => MINUTE_US,
        BucketLength::Hour => 60 * MINUTE_US,
        BucketLength::Day => 24 * 60 * MINUTE_US,
    };
    let last = floor(end_us, length_us);
    let first = floor(start_us.saturating_add(length_us - 1), length_us);
    if first >= last {
        return cover(start_us, end_us, finer, pieces);
    }
    cover(start_us, first, finer, pieces);
    let source = PieceSource::RollUps(*level);
    match pieces.last_mut() {
        // Roll-ups of neighbouring buckets are read together: each says by its beginning to which it belongs.
        Some(before) if before.source == source && before.end_us == first => before.end_us = last,
        _ => pieces.push(Piece { source, start_us: first, end_us: last }),
    }
    cover(last, end_us, finer, pieces);
}

fn floor(at_us: i64, length_us: i64) -> i64 {
    at_us.div_euclid(length_us) * length_us
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR_US: i64 = 60 * MINUTE_US;
    const DAY_US: i64 = 24 * HOUR_US;

    fn us(text: &str) -> i64 {
        text.parse::<jiff::Timestamp>().expect(text).as_microsecond()
    }

    fn hours(zone: &str, start: &str, end: &str) -> Vec<i64> {
        let buckets = Buckets::new(BucketLength::Day, &zone.parse().expect(zone), us(start), us(end)).expect("few");
        buckets.iter().map(|(from, to)| (to - from) / HOUR_US).collect()
    }

    #[test]
    fn days_are_as_long_as_they_are_where_they_are_lived() {
        assert_eq!(hours("Europe/Paris", "2026-03-27T23:00:00Z", "2026-03-30T22:00:00Z"), [24, 23, 24]);
        assert_eq!(hours("Europe/Paris", "2026-10-24T22:00:00Z", "2026-10-25T23:00:00Z"), [25]);
        assert_eq!(hours("UTC", "2026-03-28T20:00:00Z", "2026-03-29T01:00:00Z"), [4, 1], "cut to what was asked");
    }

    #[test]
    fn a_report_with_too_many_lines_of_time_is_none() {
        let utc = Zone::utc();
        assert!(Buckets::new(BucketLength::Minute, &utc, 0, DAY_US).is_some());
        assert!(Buckets::new(BucketLength::Minute, &utc, 0, DAY_US + 1).is_none());
        assert!(Buckets::new(BucketLength::Minute, &utc, 0, i64::MAX).is_none());
        assert_eq!(Buckets::new(BucketLength::Hour, &utc, 5, 5).map(|buckets| buckets.iter().count()), Some(0));
    }

    #[test]
    fn whole_days_come_from_days_and_edges_from_what_is_finer() {
        let query = UsageQuery { start_us: HOUR_US - 90_000_000, end_us: 3 * DAY_US + 1, ..UsageQuery::default() };
        let pieces: Vec<_> = query.pieces().iter().map(|piece| (piece.source, piece.end_us - piece.start_us)).collect();
        assert_eq!(
            pieces,
            [
                (PieceSource::Rows, 30_000_000),
                (PieceSource::RollUps(BucketLength::Minute), MINUTE_US),
                (PieceSource::RollUps(BucketLength::Hour), 23 * HOUR_US),
                (PieceSource::RollUps(BucketLength::Day), 2 * DAY_US),
                (PieceSource::Rows, 1),
            ]
        );
        let everything = UsageQuery { end_us: i64::MAX, ..UsageQuery::default() };
        assert!(everything.pieces().len() <= 7);
    }

    #[test]
    fn a_month_of_days_of_another_zone_is_read_in_few_pieces() {
        let zone: Zone = "Europe/Paris".parse().expect("Paris");
        let (start_us, end_us) = (us("2026-05-31T22:00:00Z"), us("2026-06-30T22:00:00Z"));
        let buckets = Buckets::new(BucketLength::Day, &zone, start_us, end_us);
        let query = UsageQuery { start_us, end_us, buckets, ..UsageQuery::default() };
        assert_eq!(query.pieces().len(), 1, "one stretch of hours");
    }

    proptest! {
        #[test]
        fn pieces_tile_the_time_and_each_lies_in_one_bucket_or_says_its_own(
            start in 0..3 * DAY_US, length in 0..2 * DAY_US, kind in 0..4usize, zone in 0..3usize,
        ) {
            let zone: Zone = ["UTC", "Asia/Kathmandu", "America/New_York"][zone].parse().expect("zone");
            let kind = [None, Some(BucketLength::Minute), Some(BucketLength::Hour), Some(BucketLength::Day)][kind];
            let buckets = kind.and_then(|kind| Buckets::new(kind, &zone, start, start + length));
            let query = UsageQuery { start_us: start, end_us: start + length, buckets, ..UsageQuery::default() };
            let mut at = start;
            for piece in query.pieces() {
                prop_assert_eq!(piece.start_us, at);
                prop_assert!(piece.end_us > at);
                at = piece.end_us;
                if piece.source == PieceSource::Rows {
                    prop_assert_eq!(query.bucket_of(piece.start_us), query.bucket_of(piece.end_us - 1));
                }
            }
            prop_assert_eq!(at, start + length);
        }
    }
}
