//! Usage reports are exact: roll-ups and single rows give the same sums, whatever stretch of time and grouping is asked for.

use std::collections::BTreeMap;
use std::sync::Arc;

use millgate::governance::attribution::Attribution;
use millgate::governance::limits::Zone;
use millgate::governance::ports::{Extent, JournalEntry, Records};
use millgate::governance::records::{LedgerRecord, RequestRecord};
use millgate::governance::usage::{
    BucketLength, Buckets, MINUTE_US, RefusalCount, UsageGroup, UsageQuery, UsageSource, UsageSum,
};
use millgate::governance::{KeyId, Status, Usage, UserId};
use proptest::prelude::*;
use tempfile::TempDir;
use uuid::Uuid;

use crate::governance_house::open_store;

const HOUR_US: i64 = 60 * MINUTE_US;
const DAY_US: i64 = 24 * HOUR_US;
/// 2026-03-28 00:00 UTC: the day before the clocks change in Paris.
const START_US: i64 = 1_774_656_000_000_000;

fn user(number: usize) -> UserId {
    UserId(Uuid::from_u128(7 + number as u128))
}

/// Ann is in two groups, Bob in one of them, Cid in none; two of three keys have a label.
fn attribution(number: usize) -> Arc<Attribution> {
    let groups: &[&str] = [&["blue", "red"][..], &["red"], &[]][number % 3];
    let labels = [Some("a"), Some("b"), None][number % 3].map(|team| ("team".to_owned(), team.to_owned()));
    Arc::new(Attribution::new(groups.iter().map(|group| (*group).to_owned()).collect(), labels.into_iter().collect()))
}

fn row(number: usize, at_us: i64, tokens: u64) -> LedgerRecord {
    let status = if tokens % 7 == 6 { Status::Failed } else { Status::Completed };
    let usage = match status {
        Status::Failed => Usage::default(),
        _ => Usage { prompt_tokens: tokens, cached_tokens: tokens / 2, completion_tokens: 3 * tokens },
    };
    let cost_nano_usd = usage.total_tokens() * 11;
    LedgerRecord {
        request: Arc::new(RequestRecord {
            id: Uuid::now_v7(),
            client_request_id: None,
            user: user(number),
            user_name: ["ann", "bob", "cid"][number].to_owned(),
            key: (number < 2).then(|| KeyId::from(["k1", "k2"][number])),
            tier: ["free", "premium"][number % 2].to_owned(),
            model: ["m", "n"][(tokens % 2) as usize].to_owned(),
            endpoint: "/v1/completions".into(),
            admitted_at_us: at_us,
            price_version: Some(1),
            attribution: attribution(number),
        }),
        usage,
        cost_nano_usd,
        status,
        settled_at_us: at_us + 5,
        charged: vec![Extent { at_us, requests: 1, cost_nano_usd, ..Extent::default() }],
    }
}

fn refusal(number: usize, at_us: i64) -> RefusalCount {
    RefusalCount {
        start_us: at_us.div_euclid(MINUTE_US) * MINUTE_US,
        user: user(number),
        user_name: ["ann", "bob", "cid"][number].to_owned(),
        key: None,
        tier: "free".into(),
        model: String::new(),
        attribution: attribution(number),
        limit: "free: 1 requests / 1m".into(),
        reason: "requests_exceeded".into(),
        refusals: 1,
    }
}

async fn store(rows: &[(usize, i64, u64)]) -> (TempDir, impl Records) {
    let dir = TempDir::new().expect("a directory");
    let records = open_store(dir.path()).await;
    let mut waits = Vec::new();
    for (number, at_us, tokens) in rows {
        waits.push(records.submit(JournalEntry::Close(row(*number, *at_us, *tokens))));
        if tokens % 3 == 0 {
            waits.push(records.submit(JournalEntry::Refused(vec![refusal(*number, *at_us)])));
        }
    }
    for wait in waits {
        wait.await.expect("written");
    }
    (dir, records)
}

fn question() -> impl Strategy<Value = UsageQuery> {
    let at = prop_oneof![
        (0..4i64).prop_map(|days| days * DAY_US),
        (0..96i64).prop_map(|hours| hours * HOUR_US),
        0..4 * DAY_US,
    ];
    let groups = prop::sample::subsequence(
        vec![
            UsageGroup::User,
            UsageGroup::Key,
            UsageGroup::Tier,
            UsageGroup::Model,
            UsageGroup::Group,
            UsageGroup::Label("team".into()),
        ],
        0..4,
    );
    (at.clone(), at, groups, 0..4usize, 0..3usize, 0..4usize).prop_map(|(a, b, group_by, bucket, zone, filter)| {
        let (start_us, end_us) = (START_US + a.min(b), START_US + a.max(b));
        let zone: Zone = ["UTC", "Europe/Paris", "Asia/Kathmandu"][zone].parse().expect("zone");
        let length = [None, Some(BucketLength::Minute), Some(BucketLength::Hour), Some(BucketLength::Day)][bucket];
        UsageQuery {
            start_us,
            end_us,
            buckets: length.and_then(|length| Buckets::new(length, &zone, start_us, end_us)),
            group_by,
            user: (filter == 1).then(|| user(0)),
            tier: (filter == 2).then(|| "free".into()),
            key: (filter == 3).then(|| KeyId::from("k1")),
            ..UsageQuery::default()
        }
    })
}

/// The requests and cost that the report must add up to, by brute force; a request counts once for each of its lines.
fn expected(rows: &[(usize, i64, u64)], asked: &UsageQuery) -> (u64, u64) {
    let by_group = asked.group_by.contains(&UsageGroup::Group);
    let within = rows.iter().map(|(number, at_us, tokens)| row(*number, *at_us, *tokens)).filter(|row| {
        let request = &row.request;
        (asked.start_us..asked.end_us).contains(&request.admitted_at_us)
            && asked.user.is_none_or(|user| user == request.user)
            && asked.tier.as_ref().is_none_or(|tier| *tier == request.tier)
            && asked.key.as_ref().is_none_or(|key| Some(key) == request.key.as_ref())
    });
    within.fold((0, 0), |(requests, cost), row| {
        let lines = if by_group { row.request.attribution.groups.len().max(1) as u64 } else { 1 };
        (requests + lines * u64::from(row.status.is_charged()), cost + lines * row.cost_nano_usd)
    })
}

fn lines(sums: &[UsageSum]) -> BTreeMap<(i64, Vec<String>), &UsageSum> {
    sums.iter().map(|sum| ((sum.start_us, sum.group.clone()), sum)).collect()
}

async fn compare(rows: Vec<(usize, i64, u64)>, questions: Vec<UsageQuery>) {
    let (_dir, records) = store(&rows).await;
    for asked in questions {
        let rolled_up = records.usage(&asked).await.expect("roll-ups");
        let single = records.usage(&UsageQuery { source: UsageSource::Rows, ..asked.clone() }).await.expect("rows");
        assert_eq!(lines(&rolled_up), lines(&single), "{asked:?}");
        let sum = rolled_up.iter().fold((0, 0), |sum, one| (sum.0 + one.requests, sum.1 + one.cost_nano_usd));
        assert_eq!(sum, expected(&rows, &asked), "{asked:?}");
    }
    records.close().await;
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(8))]
    #[test]
    fn roll_ups_and_rows_add_up_to_the_same(
        rows in prop::collection::vec((0..3usize, 0..4 * DAY_US, 0..50u64), 20..120),
        questions in prop::collection::vec(question(), 30),
    ) {
        let rows = rows.into_iter().map(|(number, at_us, tokens)| (number, START_US + at_us, tokens)).collect();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(compare(rows, questions));
    }
}

#[tokio::test]
async fn the_day_on_which_the_clocks_change_has_the_requests_of_twenty_three_hours() {
    let rows: Vec<_> = (0..96).map(|hour| (0, START_US + hour * HOUR_US + 1, 2)).collect();
    let (_dir, records) = store(&rows).await;
    let zone: Zone = "Europe/Paris".parse().expect("Paris");
    let (start_us, end_us) = (START_US - HOUR_US, START_US + 3 * DAY_US - 2 * HOUR_US);
    let buckets = Buckets::new(BucketLength::Day, &zone, start_us, end_us);
    let asked = UsageQuery { start_us, end_us, buckets, ..UsageQuery::default() };
    let requests: Vec<u64> = records.usage(&asked).await.expect("usage").iter().map(|sum| sum.requests).collect();
    assert_eq!(requests, [23, 23, 24], "one hour of the first day lies before the first request; the second is short");
}

#[tokio::test]
async fn two_users_of_one_name_are_two_lines() {
    let dir = TempDir::new().expect("a directory");
    let records = open_store(dir.path()).await;
    for number in 0..2 {
        let mut row = row(number, START_US, 2);
        Arc::make_mut(&mut row.request).user_name = "ann".into();
        records.submit(JournalEntry::Close(row)).await.expect("written");
    }
    let asked = UsageQuery { start_us: 0, end_us: i64::MAX, group_by: vec![UsageGroup::User], ..UsageQuery::default() };
    let sums = records.usage(&asked).await.expect("usage");
    let found: Vec<_> = sums.iter().map(|sum| (sum.group[0].as_str(), sum.user)).collect();
    assert_eq!(found, [("ann", Some(user(0))), ("ann", Some(user(1)))]);
}
