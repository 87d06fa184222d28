//! What every implementation of `Records` and `Counters` promises, run over each of them.

use std::sync::Arc;

use millgate::governance::calendar;
use millgate::governance::limits::{Limit, Window};
use millgate::governance::ports::{
    Bill, Change, Charge, CounterKey, Counters, Edit, Extent, JournalEntry, KeyCursor, KeyFilter, KeySort, Need,
    Records, Reserved, Restored, Retry, StoreError, UsageGroup, UsageQuery,
};
use millgate::governance::pricing::Price;
use millgate::governance::records::{
    KeyRecord, LOCAL_ISSUER, LedgerRecord, Membership, MembershipSource, PreviousSecret, RequestRecord,
    ReservationRecord, SetBy, UserRecord,
};
use millgate::governance::{Author, ManualClock, Status, Usage, UserId, keys, tiers};
use millgate::store::{Config, MemoryCounters, SqliteRecords};
use tempfile::TempDir;
use uuid::Uuid;

use crate::governance_house::{MINUTE_US, NOON_US, open_store, used};

/// Changes made by the server itself.
fn edit(changes: Vec<Change>) -> Edit {
    Edit { author: Author::server(), at_us: NOON_US, changes }
}

fn user(name: &str) -> UserRecord {
    UserRecord {
        id: UserId(Uuid::now_v7()),
        issuer: LOCAL_ISSUER.into(),
        subject: name.into(),
        name: name.into(),
        active: true,
        created_at_us: 1,
        token_epoch: 0,
        groups_at_us: None,
        groups: vec![Membership { group: "g".into(), source: MembershipSource::Local }],
    }
}

fn key(user: &UserRecord, created_at_us: i64) -> KeyRecord {
    let fresh = keys::mint().expect("randomness");
    KeyRecord {
        id: fresh.id,
        digest: fresh.digest,
        previous: Some(PreviousSecret { digest: [7; 32], until_us: 9 }),
        user: user.id,
        name: "k".into(),
        description: Some("d".into()),
        labels: [("team".to_owned(), "é\"x".to_owned())].into(),
        models: Some(vec!["m".into()]),
        limits: vec!["5 tokens / day Europe/Paris per key soft".parse().expect("a limit")],
        terms_by: SetBy::Administrator,
        parent: None,
        is_ephemeral: false,
        is_bootstrap: false,
        created_at_us,
        expires_at_us: Some(100),
        revoked_at_us: None,
        last_used_at_us: None,
    }
}

fn request(user: &UserRecord, admitted_at_us: i64) -> RequestRecord {
    RequestRecord {
        id: Uuid::now_v7(),
        client_request_id: Some("client's".into()),
        user: user.id,
        user_name: user.name.clone(),
        key: None,
        tier: "free".into(),
        model: "m".into(),
        endpoint: "/v1/completions".into(),
        admitted_at_us,
        price_version: None,
        attribution: Arc::default(),
    }
}

fn row(request: RequestRecord, usage: Usage, status: Status) -> LedgerRecord {
    let charged = Extent {
        at_us: request.admitted_at_us,
        requests: 1,
        prompt_tokens: usage.prompt_tokens,
        completion_tokens: usage.completion_tokens,
        cost_nano_usd: 0,
    };
    LedgerRecord {
        settled_at_us: request.admitted_at_us + 5,
        request: Arc::new(request),
        usage,
        cost_nano_usd: 0,
        status,
        charged: vec![charged],
    }
}

async fn keeps_what_it_is_given(records: &dyn Records) {
    let ann = user("ann");
    let (first, second) = (key(&ann, 10), key(&ann, 20));
    let version = records.policy_version().await.expect("version");
    let changes = vec![Change::PutUser(ann.clone()), Change::PutKey(first.clone()), Change::PutKey(second.clone())];
    let next = records.change(version, edit(changes)).await.expect("changed");
    assert_eq!(next, version + 1);
    assert_eq!(records.key(&first.id).await.expect("key"), Some((first.clone(), ann.clone())));
    assert_eq!(records.user_by_subject(LOCAL_ISSUER, "ann").await.expect("user"), Some(ann.clone()));
    assert_eq!(records.users(None, 10).await.expect("users"), std::slice::from_ref(&ann));
    assert_eq!(records.groups(None, 10).await.expect("groups"), ["g"]);
    assert!(records.is_group_known("g").await.expect("known") && !records.is_group_known("h").await.expect("known"));
    assert!(records.groups(Some("g"), 10).await.expect("groups").is_empty());
    let page = |after: Option<&KeyRecord>| KeyFilter {
        user: Some(ann.id),
        after: after.map(|key| KeyCursor::at(key, KeySort::CreatedAt)),
        limit: 1,
        ..KeyFilter::default()
    };
    assert_eq!(records.keys(&page(None)).await.expect("keys"), std::slice::from_ref(&second));
    assert_eq!(records.keys(&page(Some(&second))).await.expect("keys"), std::slice::from_ref(&first));
    assert_eq!(records.live_keys(ann.id, 99).await.expect("count"), 2);
    assert_eq!(records.live_keys(ann.id, 100).await.expect("count"), 0, "expiry is exclusive");
    records.touch_keys(vec![(first.id.clone(), 42)]).await.expect("touched");
    assert_eq!(records.policy_version().await.expect("version"), next, "use is no change");
    let tiers: Vec<Change> = tiers::defaults().into_iter().map(Change::PutTier).collect();
    records.change(next, edit(tiers)).await.expect("tiers");
    let tables = records.policy().await.expect("policy");
    let mut expected = tiers::defaults();
    expected.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!((tables.version, tables.tiers), (next + 1, expected));
}

async fn changes_all_or_nothing_and_only_at_the_expected_version(records: &dyn Records) {
    let ann = user("ann");
    let version = records.policy_version().await.expect("version");
    records.change(version, edit(vec![Change::PutUser(ann.clone())])).await.expect("changed");
    let stale = records.change(version, edit(vec![Change::PutUser(user("bob"))])).await;
    assert!(matches!(stale, Err(StoreError::Changed { found, .. }) if found == version + 1));
    let clash = vec![Change::PutUser(user("cid")), Change::PutUser(user("ann"))];
    let clash = records.change(version + 1, edit(clash)).await;
    assert!(matches!(clash, Err(StoreError::Exists { .. })), "{clash:?}");
    assert_eq!(records.policy_version().await.expect("version"), version + 1);
    assert_eq!(records.users(None, 10).await.expect("users"), [ann], "nothing of the failed ones");
}

async fn journal_becomes_ledger_exactly_once(records: &dyn Records) {
    let ann = user("ann");
    let request_a = request(&ann, NOON_US);
    let extent = Extent { at_us: NOON_US, requests: 1, prompt_tokens: 3, completion_tokens: 9, cost_nano_usd: 11 };
    let reservation =
        ReservationRecord { request: Arc::new(request_a.clone()), extents: vec![extent], progress: Usage::default() };
    records.submit(JournalEntry::Open(reservation.clone())).await.expect("opened");
    assert_eq!(records.open_reservations().await.expect("open"), std::slice::from_ref(&reservation));
    let extents = vec![extent, Extent { at_us: NOON_US + 1, completion_tokens: 5, ..Extent::default() }];
    drop(records.submit(JournalEntry::Extend { id: request_a.id, extents: extents.clone() }));
    let progress = Usage { prompt_tokens: 3, cached_tokens: 2, completion_tokens: 4 };
    records.submit(JournalEntry::Progress { id: request_a.id, usage: progress }).await.expect("progress");
    let open = records.open_reservations().await.expect("open");
    assert_eq!((&open[0].extents, open[0].progress), (&extents, progress));
    let closed = row(request_a.clone(), progress, Status::Completed);
    for _ in 0..2 {
        records.submit(JournalEntry::Close(closed.clone())).await.expect("closed");
    }
    drop(records.submit(JournalEntry::Progress { id: request_a.id, usage: used(9, 9) }));
    // Opened and closed in one group: only the ledger row is left.
    let request_b = request(&ann, NOON_US + MINUTE_US);
    let reservation = ReservationRecord { request: Arc::new(request_b.clone()), ..reservation };
    drop(records.submit(JournalEntry::Open(reservation)));
    records.submit(JournalEntry::Close(row(request_b.clone(), used(1, 1), Status::Aborted))).await.expect("closed");
    assert!(records.open_reservations().await.expect("open").is_empty());
    assert_eq!(records.ledger_row(request_a.id).await.expect("row"), Some(closed));
    assert_eq!(records.ledger_since(0).await.expect("rows").len(), 2);
    assert_eq!(records.ledger_since(NOON_US + 6).await.expect("rows").len(), 1);
}

async fn what_was_settled_since_is_found_however_long_it_ran(records: &dyn Records) {
    let ann = user("ann");
    // The clock was set back; no time; a microsecond before a minute; a minute; a day.
    for ran_us in [-5 * MINUTE_US, 0, MINUTE_US - 1, MINUTE_US, 24 * 60 * MINUTE_US] {
        for settled_at_us in [NOON_US - 1, NOON_US, NOON_US + 1] {
            let closed = row(request(&ann, settled_at_us - ran_us), used(1, 1), Status::Completed);
            records.submit(JournalEntry::Close(LedgerRecord { settled_at_us, ..closed })).await.expect("closed");
        }
    }
    for (from_us, expected) in [(NOON_US - 1, 15), (NOON_US, 10), (NOON_US + 1, 5), (NOON_US + 2, 0)] {
        let found = records.ledger_since(from_us).await.expect("rows");
        assert_eq!(found.len(), expected);
        assert!(found.iter().all(|row| row.settled_at_us >= from_us));
        assert!(found.is_sorted_by_key(|row| row.settled_at_us));
    }
    assert_eq!(records.ledger_since(i64::MIN).await.expect("rows").len(), 15, "however long ago");
}

async fn sums_are_exact(records: &dyn Records) {
    let (ann, bob) = (user("ann"), user("bob"));
    let mut waits = Vec::new();
    for i in 0..500u64 {
        let who = if i % 3 == 0 { &ann } else { &bob };
        let at = NOON_US + i64::try_from(i).expect("small") * 1_000_000;
        let model = if i % 2 == 0 { "m" } else { "n" };
        let request = RequestRecord { model: model.into(), ..request(who, at) };
        waits.push(records.submit(JournalEntry::Close(row(request, used(i, 2 * i), Status::Completed))));
    }
    for wait in waits {
        wait.await.expect("written");
    }
    let all = UsageQuery { start_us: 0, end_us: i64::MAX, ..UsageQuery::default() };
    let total = |from: u64, to: u64| (from..to).sum::<u64>();
    let sums = records.usage(&all).await.expect("usage");
    assert_eq!((sums[0].requests, sums[0].usage), (500, used(total(0, 500), 2 * total(0, 500))));
    let part = UsageQuery { start_us: NOON_US + 10_000_000, end_us: NOON_US + 20_000_000, ..all.clone() };
    assert_eq!(
        records.usage(&part).await.expect("usage")[0].usage.prompt_tokens,
        total(10, 20),
        "the end is exclusive"
    );
    let grouped = UsageQuery { group_by: vec![UsageGroup::User, UsageGroup::Model], ..all.clone() };
    let grouped = records.usage(&grouped).await.expect("usage");
    let groups: Vec<_> = grouped.iter().map(|sum| sum.group.join("/")).collect();
    assert_eq!(groups, ["ann/m", "ann/n", "bob/m", "bob/n"]);
    assert_eq!(grouped.iter().map(|sum| sum.requests).sum::<u64>(), 500);
    let own = UsageQuery { user: Some(ann.id), ..all };
    assert_eq!(records.usage(&own).await.expect("usage")[0].requests, 167);
    let subjects = records.charged_between(NOON_US, NOON_US + 500 * 1_000_000).await.expect("sums");
    assert_eq!(subjects.len(), 4);
    assert_eq!(subjects.iter().map(|sum| sum.usage.total_tokens()).sum::<u64>(), 3 * total(0, 500));
}

async fn sqlite() -> (TempDir, SqliteRecords) {
    let dir = TempDir::new().expect("a directory");
    let records = open_store(dir.path()).await;
    (dir, records)
}

#[tokio::test]
async fn sqlite_keeps_what_it_is_given() {
    let (_dir, records) = sqlite().await;
    keeps_what_it_is_given(&records).await;
}

#[tokio::test]
async fn sqlite_changes_all_or_nothing_and_only_at_the_expected_version() {
    let (_dir, records) = sqlite().await;
    changes_all_or_nothing_and_only_at_the_expected_version(&records).await;
}

#[tokio::test]
async fn sqlite_turns_journal_into_ledger_exactly_once() {
    let (_dir, records) = sqlite().await;
    journal_becomes_ledger_exactly_once(&records).await;
}

#[tokio::test]
async fn sqlite_finds_what_was_settled_since_however_long_it_ran() {
    let (_dir, records) = sqlite().await;
    what_was_settled_since_is_found_however_long_it_ran(&records).await;
}

#[tokio::test]
async fn sqlite_writes_three_pages_for_an_answer_that_is_complete_at_once() {
    const HEADER: u64 = 32;
    const FRAME: u64 = 24 + 4096;
    let (dir, records) = sqlite().await;
    let ann = user("ann");
    let log = dir.path().join("millgate.db-wal");
    let mut frames = Vec::new();
    for i in 0..64 {
        let before = std::fs::metadata(&log).map_or(HEADER, |log| log.len().max(HEADER));
        let closed = row(request(&ann, NOON_US + i), used(3, 4), Status::Completed);
        records.submit(JournalEntry::Close(closed)).await.expect("written");
        frames.push((std::fs::metadata(&log).expect("a log").len() - before) / FRAME);
    }
    frames.sort_unstable();
    assert_eq!(frames[32], 3, "its row, its place among admissions, the roll-ups: {frames:?}");
}

#[tokio::test]
async fn sqlite_sums_are_exact() {
    let (_dir, records) = sqlite().await;
    sums_are_exact(&records).await;
}

#[tokio::test]
async fn sqlite_roll_ups_equal_the_ledger() {
    let (dir, records) = sqlite().await;
    sums_are_exact(&records).await;
    records.close().await;
    let url = format!("sqlite://{}", dir.path().join("millgate.db").display());
    let pool = sqlx::SqlitePool::connect(&url).await.expect("the file");
    let query =
        "SELECT bucket, SUM(requests), SUM(prompt_tokens), SUM(completion_tokens) FROM usage_rollups GROUP BY bucket";
    let sums: Vec<(String, i64, i64, i64)> = sqlx::query_as(query).fetch_all(&pool).await.expect("sums");
    assert_eq!(sums.len(), 3);
    for (bucket, requests, prompt, completion) in sums {
        assert_eq!((requests, prompt, completion), (500, 124_750, 249_500), "{bucket}");
    }
}

#[cfg(unix)]
#[tokio::test]
async fn a_data_directory_made_here_is_nobody_elses_to_read() {
    use std::os::unix::fs::PermissionsExt;
    let outside = tempfile::tempdir().expect("a directory");
    let data_dir = outside.path().join("deep/data");
    let config = Config { data_dir: data_dir.clone(), ..Config::default() };
    let records = SqliteRecords::open(&config).await.expect("opens");
    assert_eq!(std::fs::metadata(&data_dir).expect("there").permissions().mode() & 0o777, 0o700);
    records.close().await;
}

#[tokio::test]
async fn a_data_directory_belongs_to_one_process_at_a_time() {
    let (dir, records) = sqlite().await;
    let config = Config { data_dir: dir.path().to_owned(), ..Config::default() };
    assert!(matches!(SqliteRecords::open(&config).await.err(), Some(StoreError::InUse(_))));
    records.close().await;
    drop(records);
    SqliteRecords::open(&config).await.expect("free again");
}

#[tokio::test]
async fn a_locked_database_is_an_error_value_and_owed_rows_are_written_later() {
    let dir = TempDir::new().expect("a directory");
    let config = Config { data_dir: dir.path().to_owned(), busy_timeout: std::time::Duration::ZERO, readers: 1 };
    let records = SqliteRecords::open(&config).await.expect("the store");
    let url = format!("sqlite://{}", dir.path().join("millgate.db").display());
    let intruder = sqlx::SqlitePool::connect(&url).await.expect("the file");
    let mut lock = intruder.acquire().await.expect("a connection");
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *lock).await.expect("locked");
    let ann = user("ann");
    let closed = row(request(&ann, NOON_US), used(3, 4), Status::Completed);
    let error = records.submit(JournalEntry::Close(closed.clone())).await.expect_err("locked");
    assert!(matches!(error, StoreError::Unavailable { .. }), "{error}");
    assert!(records.change(0, edit(vec![Change::PutUser(ann)])).await.is_err());
    sqlx::query("ROLLBACK").execute(&mut *lock).await.expect("released");
    let other = row(request(&user("bob"), NOON_US), used(1, 1), Status::Completed);
    records.submit(JournalEntry::Close(other)).await.expect("written");
    assert_eq!(records.ledger_row(closed.request.id).await.expect("row"), Some(closed));
    assert_eq!(records.ledger_since(0).await.expect("rows").len(), 2);
}

#[tokio::test]
async fn a_closed_store_refuses_instead_of_hanging() {
    let (_dir, records) = sqlite().await;
    records.close().await;
    let closed = row(request(&user("ann"), NOON_US), used(3, 4), Status::Completed);
    assert!(matches!(records.submit(JournalEntry::Close(closed)).await, Err(StoreError::Closed)));
    assert!(records.policy_version().await.is_err());
}

fn charge(text: &str, now_us: i64) -> Charge {
    let limit: Limit = text.parse().expect("a limit");
    let bounds = match &limit.window {
        Window::Calendar(period, zone) => Some(calendar::bounds(*period, zone, now_us)),
        _ => None,
    };
    let key = CounterKey::for_subject(&limit, UserId(Uuid::nil()), None, "free").expect("a counter");
    Charge { key, hard: Some(limit.amount), bounds }
}

fn charges(texts: &[&str]) -> Arc<[Charge]> {
    texts.iter().map(|text| charge(text, NOON_US)).collect()
}

fn need(prompt_tokens: u64, least: u64, most: u64) -> Need {
    Need {
        requests: 1,
        prompt_tokens,
        sequences: 1,
        completion_least: least,
        completion_most: most,
        price: Price::default(),
    }
}

/// What an answer that was no error is charged.
fn bill(prompt_tokens: u64, completion_tokens: u64) -> Bill {
    Bill { requests: 1, usage: used(prompt_tokens, completion_tokens), cost_nano_usd: 0 }
}

fn granted(answer: &Reserved) -> Option<u64> {
    match answer {
        Reserved::Granted { completion_tokens, .. } => Some(*completion_tokens),
        Reserved::Refused { .. } => None,
    }
}

async fn totals(counters: &dyn Counters, charges: &[Charge]) -> Vec<(u64, u64)> {
    counters.peek(charges).await.expect("peek").iter().map(|count| (count.used, count.held)).collect()
}

async fn all_or_nothing_and_elastic(counters: &dyn Counters) {
    let list = charges(&["100 tokens / 1m", "50 completion_tokens / 1h", "3 requests / day", "2 concurrent"]);
    let (a, b, c) = (Uuid::now_v7(), Uuid::now_v7(), Uuid::now_v7());
    assert_eq!(granted(&counters.reserve(a, &list, need(30, 1, 256)).await.expect("a")), Some(50));
    assert_eq!(totals(counters, &list).await, [(0, 80), (0, 50), (0, 1), (0, 1)]);
    let refused = counters.reserve(b, &list, need(19, 2, 5)).await.expect("b");
    let Reserved::Refused { refusing, .. } = refused else { panic!("{refused:?}") };
    assert_eq!(refusing.iter().map(|one| one.charge).collect::<Vec<_>>(), [0, 1], "every limit that refuses is named");
    assert_eq!(totals(counters, &list).await, [(0, 80), (0, 50), (0, 1), (0, 1)]);
    counters.settle(a, bill(30, 10)).await.expect("settled");
    assert_eq!(totals(counters, &list).await, [(40, 0), (10, 0), (1, 0), (0, 0)]);
    assert_eq!(granted(&counters.reserve(b, &list, need(10, 1, 20)).await.expect("b")), Some(20));
    assert_eq!(granted(&counters.extend(b, 1, need_more(5)).await.expect("more")), Some(5));
    assert_eq!(granted(&counters.reserve(c, &list, need(101, 0, 0)).await.expect("c")), None);
    counters.settle(b, bill(0, 0)).await.expect("settled");
    assert_eq!(totals(counters, &list).await, [(40, 0), (10, 0), (2, 0), (0, 0)]);
}

fn need_more(tokens: u64) -> Need {
    Need { completion_least: tokens, completion_most: tokens, ..Need::default() }
}

async fn repeated_calls_count_once(counters: &dyn Counters) {
    let list = charges(&["100 tokens / 1m"]);
    let id = Uuid::now_v7();
    let first = counters.reserve(id, &list, need(10, 10, 10)).await.expect("reserved");
    assert_eq!(counters.reserve(id, &list, need(10, 10, 10)).await.expect("again"), first);
    let more = counters.extend(id, 1, need_more(5)).await.expect("extended");
    assert_eq!(counters.extend(id, 1, need_more(5)).await.expect("again"), more);
    assert_eq!(totals(counters, &list).await, [(0, 25)]);
    counters.settle(id, bill(10, 12)).await.expect("settled");
    counters.settle(id, bill(10, 12)).await.expect("again");
    assert_eq!(totals(counters, &list).await, [(22, 0)]);
    assert!(counters.reserve(id, &list, need(10, 10, 10)).await.is_err(), "a settled reservation does not come back");
    assert!(counters.extend(Uuid::now_v7(), 1, need_more(5)).await.is_err());
    assert_eq!(totals(counters, &list).await, [(22, 0)]);
}

async fn waits_are_exact(counters: &dyn Counters, clock: &ManualClock) {
    let list = charges(&["100 tokens / 1m", "500 tokens / day"]);
    counters.reserve(Uuid::now_v7(), &list, need(80, 0, 0)).await.expect("reserved");
    let probe = || counters.probe(&list, need(21, 0, 0));
    let Reserved::Refused { refusing, .. } = probe().await.expect("probe") else { panic!("not refused") };
    let Retry::After(wait) = refusing[0].retry else { panic!("{refusing:?}") };
    clock.advance_us(wait - 1);
    assert!(granted(&probe().await.expect("probe")).is_none());
    clock.advance_us(1);
    assert!(granted(&probe().await.expect("probe")).is_some());
    let never = counters.probe(&list, need(101, 0, 0)).await.expect("probe");
    assert!(matches!(never, Reserved::Refused { refusing, .. } if refusing[0].retry == Retry::Never));
}

async fn restored_usage_counts(counters: &dyn Counters) {
    let list = charges(&["100 tokens / 1m", "500 tokens / day"]);
    let rows = list
        .iter()
        .map(|charge| Restored { key: charge.key.clone(), used: 60, at_us: NOON_US - 1_000_000, bounds: charge.bounds })
        .collect();
    counters.restore(rows).await.expect("restored");
    assert_eq!(totals(counters, &list).await, [(60, 0), (60, 0)]);
    assert!(granted(&counters.probe(&list, need(41, 0, 0)).await.expect("probe")).is_none());
}

fn memory() -> (Arc<ManualClock>, MemoryCounters) {
    let clock = Arc::new(ManualClock::at(NOON_US));
    (clock.clone(), MemoryCounters::new(clock))
}

#[tokio::test]
async fn memory_charges_all_or_nothing_and_grants_what_is_left() {
    all_or_nothing_and_elastic(&memory().1).await;
}

#[tokio::test]
async fn memory_counts_repeated_calls_once() {
    repeated_calls_count_once(&memory().1).await;
}

#[tokio::test]
async fn memory_tells_exact_waits() {
    let (clock, counters) = memory();
    waits_are_exact(&counters, &clock).await;
}

#[tokio::test]
async fn memory_counts_restored_usage() {
    restored_usage_counts(&memory().1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn fifty_tasks_with_five_tokens_each_share_a_hundred_exactly() {
    let counters = Arc::new(memory().1);
    let list = charges(&["100 tokens / 1m"]);
    let barrier = Arc::new(tokio::sync::Barrier::new(50));
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..50 {
        let (counters, list, barrier) = (counters.clone(), list.clone(), barrier.clone());
        tasks.spawn(async move {
            barrier.wait().await;
            granted(&counters.reserve(Uuid::now_v7(), &list, need(5, 0, 0)).await.expect("an answer")).is_some()
        });
    }
    let passed = tasks.join_all().await.into_iter().filter(|passed| *passed).count();
    assert_eq!(passed, 20);
}

#[tokio::test]
async fn idle_counters_are_forgotten_and_busy_ones_are_not() {
    let (clock, counters) = memory();
    let limit: Limit = "100 tokens / 1m".parse().expect("a limit");
    let of = |user: u128| -> Arc<[Charge]> {
        let key = CounterKey::for_subject(&limit, UserId(Uuid::from_u128(user)), None, "free").expect("a counter");
        Arc::from([Charge { key, hard: Some(100), bounds: None }])
    };
    let held = Uuid::now_v7();
    counters.reserve(held, &of(0), need(7, 0, 0)).await.expect("held");
    for user in 1..5000u128 {
        let id = Uuid::now_v7();
        counters.reserve(id, &of(user), need(1, 0, 0)).await.expect("reserved");
        counters.settle(id, bill(1, 0)).await.expect("settled");
        clock.advance_us(MINUTE_US / 100);
    }
    assert!(counters.known() < 3000, "{} counters are kept", counters.known());
    counters.settle(held, bill(7, 0)).await.expect("the held one is still there");
}

#[cfg(unix)]
#[tokio::test]
async fn new_files_of_the_store_are_readable_by_their_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;
    let folder = tempfile::tempdir().expect("a folder");
    let records =
        SqliteRecords::open(&Config { data_dir: folder.path().to_owned(), ..Config::default() }).await.expect("opens");
    records.change(0, edit(vec![Change::PutUser(user("ann"))])).await.expect("written");
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder.path()).expect("readable") {
        let entry = entry.expect("readable");
        assert_eq!(entry.metadata().expect("there").permissions().mode() & 0o077, 0, "{:?}", entry.file_name());
        names.push(entry.file_name().into_string().expect("text"));
    }
    names.sort();
    assert_eq!(names, ["lock", "millgate.db", "millgate.db-shm", "millgate.db-wal"]);
    records.close().await;
}
