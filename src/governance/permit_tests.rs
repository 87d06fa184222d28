//! Interleavings of permits, tried by shuttle: settled, dropped, or cut off on the way, each request ends in exactly one row.

use std::collections::HashMap;
use std::future::poll_fn;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::Poll;

use async_trait::async_trait;
use shuttle::future::{JoinHandle, block_on, spawn, yield_now};
use shuttle::rand::{Rng, thread_rng};
use uuid::Uuid;

use super::audit::{AuditFilter, AuditRow};
use super::believed::Believed;
use super::clock::{Clock, ManualClock};
use super::config::Config;
use super::governor::Core;
use super::identity::Identities;
use super::limits::Limit;
use super::permit::{Ask, Permit};
use super::policy::Principal;
use super::ports::{
    Bill, Charge, Commit, Count, CounterError, Counters, Edit, JournalEntry, KeyFilter, LimiterTotals, Need, Notice,
    PolicyTables, Records, Reserved, Restored, RollUpDifference, RowRange, StoreError, SubjectSum, Sums, UsageQuery,
    UsageSum, Writing,
};
use super::records::{
    KeyId, KeyRecord, LOCAL_ISSUER, LedgerRecord, ModelRecord, Published, ReservationRecord, SigningKeyRecord, Status,
    TierOrigin, TierRecord, Usage, UserId, UserRecord,
};
use super::reservation::CompletionCap;
use super::settler;
use crate::store::MemoryCounters;

const SCHEDULES: usize = 1000;
const NOON_US: i64 = 1_795_435_200_000_000;

/// A disk that writes when its task gets to run.
#[derive(Default)]
struct Disk {
    rows: Mutex<Vec<LedgerRecord>>,
    /// Reservations that came after the row of their request: nothing would ever take them away.
    left_over: Mutex<Vec<Uuid>>,
    due: Mutex<Vec<Writing>>,
    is_over: AtomicBool,
}

impl Disk {
    async fn write(self: Arc<Self>) {
        while !self.is_over.load(Ordering::SeqCst) {
            let due = std::mem::take(&mut *self.due.lock().expect("no panic"));
            due.into_iter().for_each(|writing| writing.resolve(Ok(())));
            yield_now().await;
        }
    }
}

/// Counters that let others run before and after each operation, as distant ones would.
struct Distant(MemoryCounters);

#[async_trait]
impl Counters for Distant {
    async fn reserve(&self, id: Uuid, charges: &Arc<[Charge]>, need: Need) -> Result<Reserved, CounterError> {
        yield_now().await;
        let answer = self.0.reserve(id, charges, need).await;
        yield_now().await;
        answer
    }

    async fn extend(&self, id: Uuid, sequence: u32, need: Need) -> Result<Reserved, CounterError> {
        yield_now().await;
        let answer = self.0.extend(id, sequence, need).await;
        yield_now().await;
        answer
    }

    async fn settle(&self, id: Uuid, bill: Bill) -> Result<(), CounterError> {
        yield_now().await;
        let answer = self.0.settle(id, bill).await;
        yield_now().await;
        answer
    }

    async fn peek(&self, charges: &[Charge]) -> Result<Vec<Count>, CounterError> {
        self.0.peek(charges).await
    }

    async fn probe(&self, charges: &[Charge], need: Need) -> Result<Reserved, CounterError> {
        self.0.probe(charges, need).await
    }

    async fn totals(&self) -> Result<LimiterTotals, CounterError> {
        self.0.totals().await
    }

    fn blank(&self, clock: Arc<dyn Clock>) -> Arc<dyn Counters> {
        self.0.blank(clock)
    }

    async fn restore(&self, rows: Vec<Restored>) -> Result<(), CounterError> {
        self.0.restore(rows).await
    }
}

/// One user in one tier, and everything that serves them.
struct Scene {
    core: Arc<Core>,
    counters: Arc<Distant>,
    disk: Arc<Disk>,
    who: Principal,
}

type Tasks = Vec<JoinHandle<()>>;

fn tables() -> PolicyTables {
    let tier = TierRecord {
        name: "tight".into(),
        display_name: "Tight".into(),
        description: String::new(),
        level: 1,
        groups: vec!["system:authenticated".into()],
        limits: ["100 tokens / 1m", "9 requests / 1h", "2 concurrent"].map(|text| text.parse().expect(text)).to_vec(),
        weight: 100,
        origin: TierOrigin::Local,
        position: 0,
    };
    let model = ModelRecord {
        name: "demo".into(),
        display_name: "Demo".into(),
        source: "builtin:demo".into(),
        published: Published::All,
        settings: "{}".into(),
        created_at_us: 0,
    };
    PolicyTables { version: 1, tiers: vec![tier], models: vec![model], ..PolicyTables::default() }
}

impl Scene {
    /// With the settler and the disk at work.
    fn new() -> (Arc<Self>, Tasks) {
        let (clock, disk) = (Arc::new(ManualClock::at(NOON_US)), Arc::new(Disk::default()));
        let counters = Arc::new(Distant(MemoryCounters::new(clock.clone())));
        let user = UserRecord {
            id: UserId(Uuid::from_u128(1)),
            issuer: LOCAL_ISSUER.into(),
            subject: "ann".into(),
            name: "ann".into(),
            active: true,
            created_at_us: 0,
            groups: Vec::new(),
            token_epoch: 0,
            groups_at_us: None,
        };
        let config = Config { instance: "house".into(), ..Config::default() };
        let identities = Identities::new(tables(), NOON_US, [0; 32], &config);
        let who = identities.principal(&tables(), &user, &[], NOON_US);
        let (core, queue) =
            Core::assemble(disk.clone(), counters.clone(), clock, config, identities, Believed::default());
        let tasks = vec![spawn(settler::run(queue, core.clone())), spawn(disk.clone().write())];
        (Arc::new(Self { core, counters, disk, who }), tasks)
    }

    async fn admit(&self, id: u128) -> Option<Permit> {
        let ask = Ask {
            request_id: Uuid::from_u128(id),
            client_request_id: None,
            model: "demo".into(),
            endpoint: "completions",
            prompt_tokens: 10,
            sequences: 1,
            cap: CompletionCap::Explicit(20),
        };
        Permit::admit(&self.core, &self.who, ask).await.ok()
    }

    /// Everything settled and written, and every task at its end.
    async fn close(&self, tasks: Tasks) -> (Vec<LedgerRecord>, Vec<(u64, u64)>, usize) {
        self.core.settler.flush().await;
        self.core.stop_settler.cancel();
        self.disk.is_over.store(true, Ordering::SeqCst);
        for task in tasks {
            task.await.expect("no task panics");
        }
        let plan = self.who.policy.plan(Some("demo"), NOON_US);
        let counts = self.counters.0.peek(&plan.charges).await.expect("in memory");
        let rows = self.disk.rows.lock().expect("no panic").clone();
        (rows, counts.iter().map(|count| (count.used, count.held)).collect(), self.counters.0.open_holds())
    }
}

/// Polls a future so many times at most, then drops it where it stands.
async fn cut_after<F: Future>(polls: u32, future: F) -> Option<F::Output> {
    let (mut future, mut left) = (Box::pin(future), polls);
    poll_fn(move |context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        future.as_mut().poll(context).map(Some)
    })
    .await
}

fn used(completion_tokens: u64) -> Usage {
    Usage { prompt_tokens: 10, cached_tokens: 0, completion_tokens }
}

/// One request to some end; what its row must say, if there must be one.
async fn some_request(scene: Arc<Scene>, id: u128) -> Option<(Status, Usage)> {
    let mut random = thread_rng();
    let (end, polls, last) = (random.gen_range(0..4), random.gen_range(1..6), used(random.gen_range(0..21)));
    if end == 0 {
        // Cut off while it is being admitted; a permit that came in time is dropped, having used nothing.
        return cut_after(polls, scene.admit(id)).await.flatten().map(|_| (Status::Aborted, Usage::default()));
    }
    let permit = scene.admit(id).await?;
    permit.progress(used(1));
    let waiting = random.gen_range(0..2) == 1;
    let waiting = waiting.then(|| spawn(permit.durable()));
    yield_now().await;
    let ended = some_end(permit, end, polls, last).await;
    if let Some(waiting) = waiting {
        let durable = waiting.await.expect("no wait panics");
        assert!(matches!(durable, Ok(()) | Err(StoreError::Closed)), "written, or settled before: {durable:?}");
    }
    Some(ended)
}

async fn some_end(permit: Permit, end: u32, polls: u32, last: Usage) -> (Status, Usage) {
    match end {
        1 => {
            permit.progress(last);
            drop(permit);
            (Status::Aborted, last)
        }
        2 => {
            permit.settle(last, Status::Completed).await.expect("written");
            (Status::Completed, last)
        }
        _ => {
            cut_after(polls, permit.settle(last, Status::LimitReached)).await;
            (Status::LimitReached, last)
        }
    }
}

#[test]
fn however_a_request_ends_it_is_settled_and_written_exactly_once() {
    let play = async || {
        let (scene, tasks) = Scene::new();
        let requests: Vec<_> = (1..=4).map(|id| (id, spawn(some_request(scene.clone(), id)))).collect();
        let mut expected = HashMap::new();
        for (id, request) in requests {
            if let Some(row) = request.await.expect("no request panics") {
                expected.insert(Uuid::from_u128(id), row);
            }
        }
        let (rows, counts, open) = scene.close(tasks).await;
        let written: HashMap<_, _> = rows.iter().map(|row| (row.request.id, (row.status, row.usage))).collect();
        assert_eq!(written, expected);
        assert_eq!(rows.len(), written.len(), "no row twice");
        assert!(scene.disk.left_over.lock().expect("no panic").is_empty(), "no reservation outlives its request");
        let tokens: u64 = rows.iter().map(|row| row.usage.total_tokens()).sum();
        let [of_tokens, of_requests, in_flight] = counts[..] else { panic!("three counters") };
        assert_eq!((of_tokens, in_flight, open), ((tokens, 0), (0, 0), 0), "limiter and ledger agree, nothing is held");
        // An admission that was cut off after it was charged has spent its request and has no row.
        assert!(of_requests.1 == 0 && (rows.len() as u64..=4).contains(&of_requests.0), "{of_requests:?}");
    };
    shuttle::check_random(move || block_on(play()), SCHEDULES);
}

fn unused<T>() -> Result<T, StoreError> {
    Err(StoreError::Closed)
}

/// Admission and settlement ask nothing of the store but its journal.
#[async_trait]
impl Records for Disk {
    fn submit(&self, entry: JournalEntry) -> Commit {
        let mut rows = self.rows.lock().expect("no panic");
        match entry {
            JournalEntry::Close(row) => rows.push(row),
            JournalEntry::Open(late) if rows.iter().any(|row| row.request.id == late.request.id) => {
                self.left_over.lock().expect("no panic").push(late.request.id);
            }
            _ => {}
        }
        let writing = Writing::default();
        let commit = writing.commit();
        self.due.lock().expect("no panic").push(writing);
        commit
    }

    async fn policy_version(&self) -> Result<u64, StoreError> {
        unused()
    }

    async fn policy(&self) -> Result<PolicyTables, StoreError> {
        unused()
    }

    async fn key(&self, _: &KeyId) -> Result<Option<(KeyRecord, UserRecord)>, StoreError> {
        unused()
    }

    async fn keys(&self, _: &KeyFilter) -> Result<Vec<KeyRecord>, StoreError> {
        unused()
    }

    async fn live_keys(&self, _: UserId, _: i64) -> Result<u64, StoreError> {
        unused()
    }

    async fn bootstrap_keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        unused()
    }

    async fn user(&self, _: UserId) -> Result<Option<UserRecord>, StoreError> {
        unused()
    }

    async fn user_by_subject(&self, _: &str, _: &str) -> Result<Option<UserRecord>, StoreError> {
        unused()
    }

    async fn user_by_name(&self, _: &str) -> Result<Option<UserRecord>, StoreError> {
        unused()
    }

    async fn signing_keys(&self) -> Result<Vec<SigningKeyRecord>, StoreError> {
        unused()
    }

    async fn users(&self, _: Option<&str>, _: u32) -> Result<Vec<UserRecord>, StoreError> {
        unused()
    }

    async fn groups(&self, _: Option<&str>, _: u32) -> Result<Vec<String>, StoreError> {
        unused()
    }

    async fn is_group_known(&self, _: &str) -> Result<bool, StoreError> {
        unused()
    }

    async fn change(&self, _: u64, _: Edit) -> Result<u64, StoreError> {
        unused()
    }

    async fn open_reservations(&self) -> Result<Vec<ReservationRecord>, StoreError> {
        unused()
    }

    async fn ledger_since(&self, _: i64) -> Result<Vec<LedgerRecord>, StoreError> {
        unused()
    }

    async fn ledger_between(&self, _: RowRange) -> Result<Vec<LedgerRecord>, StoreError> {
        unused()
    }

    async fn roll_up_differences(&self, _: i64, _: i64) -> Result<Vec<RollUpDifference>, StoreError> {
        unused()
    }

    async fn totals(&self) -> Result<Sums, StoreError> {
        unused()
    }

    async fn due_notices(&self, _: i64, _: u32) -> Result<Vec<Notice>, StoreError> {
        unused()
    }

    async fn notices(&self, _: Option<(i64, Uuid)>, _: u32) -> Result<Vec<Notice>, StoreError> {
        unused()
    }

    async fn limits_of_keys(&self) -> Result<Vec<Limit>, StoreError> {
        unused()
    }

    async fn charged_between(&self, _: i64, _: i64) -> Result<Vec<SubjectSum>, StoreError> {
        unused()
    }

    async fn usage(&self, _: &UsageQuery) -> Result<Vec<UsageSum>, StoreError> {
        unused()
    }

    async fn ledger_row(&self, _: Uuid) -> Result<Option<LedgerRecord>, StoreError> {
        unused()
    }

    async fn active_members(&self, _: &str) -> Result<Vec<UserId>, StoreError> {
        unused()
    }

    async fn forget_ephemeral_keys(&self, _: i64, _: i64) -> Result<u64, StoreError> {
        unused()
    }

    async fn audit(&self, _: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        unused()
    }

    async fn audit_after(&self, _: i64, _: u32) -> Result<Vec<AuditRow>, StoreError> {
        unused()
    }

    async fn touch_keys(&self, _: Vec<(KeyId, i64)>) -> Result<(), StoreError> {
        unused()
    }

    async fn close(&self) {}
}
