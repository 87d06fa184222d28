//! What governing one request costs: a cached credential, an admission over six limits, a settlement; and with the disk.
//!
//! Run: `cargo bench --bench governance`. The group "with ledger" settles many requests at once, as a busy server does: one
//! sync of the disk serves all that wait for it.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::future::join_all;
use millgate::governance::ports::{Charge, CounterKey, Counters, Need, Reserved};
use millgate::governance::{
    Ask, CompletionCap, Config, Credential, DeclaredModel, Governor, Limit, NewKey, Principal, Status, SystemClock,
    TierPatch, Usage, UserId,
};
use millgate::store::{Config as StoreConfig, MemoryCounters, SqliteRecords};
use tempfile::TempDir;
use tokio::runtime::Runtime;
use uuid::Uuid;

const LIMITS: [&str; 6] = [
    "1000000000 requests / 1m",
    "1000000000000 tokens / 1m",
    "1000000000000 tokens / 1h",
    "1000000000000 tokens / day Europe/Paris",
    "1000000000000 completion_tokens / month",
    "1000000 concurrent",
];
const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

struct Stage {
    governor: Governor,
    credential: Credential,
    who: Principal,
    _dir: TempDir,
}

async fn stage() -> Stage {
    let dir = TempDir::new().expect("a directory");
    let store = StoreConfig { data_dir: dir.path().to_owned(), ..StoreConfig::default() };
    let records = Arc::new(SqliteRecords::open(&store).await.expect("the store"));
    let clock = Arc::new(SystemClock::new());
    let counters = Arc::new(MemoryCounters::new(clock.clone()));
    let (governor, first) =
        Governor::start(records, counters, clock, Config::default()).await.expect("governance starts");
    let key = first.admin_key.expect("a first key");
    let admin = governor.authenticate(&Credential::parse(key.reveal()), HERE).await.expect("the key works");
    let limits = LIMITS.iter().map(|text| text.parse().expect("a limit")).collect();
    let patch = TierPatch { limits: Some(limits), ..TierPatch::default() };
    governor.update_tier(&admin, "enterprise", patch).await.expect("the tier changes");
    let model = DeclaredModel { name: "m".into(), display_name: None, source: "none".into(), published: None };
    governor.declare_models(&[model]).await.expect("a model");
    let issued =
        governor.create_key(&admin, NewKey { name: "bench".into(), ..NewKey::default() }).await.expect("a key");
    let credential = Credential::parse(issued.secret.reveal());
    let who = governor.authenticate(&credential, HERE).await.expect("the key works");
    Stage { governor, credential, who, _dir: dir }
}

fn ask() -> Ask {
    Ask {
        request_id: Uuid::now_v7(),
        client_request_id: None,
        model: "m".into(),
        endpoint: "/v1/chat/completions",
        prompt_tokens: 100,
        sequences: 1,
        cap: CompletionCap::Explicit(200),
    }
}

const USED: Usage = Usage { prompt_tokens: 100, cached_tokens: 0, completion_tokens: 150 };

fn in_memory(c: &mut Criterion, runtime: &Runtime, stage: &Stage) {
    let mut group = c.benchmark_group("governance");
    group.throughput(Throughput::Elements(1));
    group.bench_function("credential from the header to a principal", |b| {
        let key = millgate::governance::keys::mint().expect("randomness");
        b.iter(|| black_box(Credential::parse(black_box(key.text.reveal()))));
    });
    group.bench_function("authenticate, cached", |b| {
        b.iter(|| runtime.block_on(stage.governor.authenticate(&stage.credential, HERE)).expect("valid"));
    });
    group.bench_function("peek over six limits", |b| {
        b.iter(|| runtime.block_on(stage.governor.peek(&stage.who, Some("m"), 2048)).expect("plenty left"));
    });
    group.finish();
}

fn charges() -> Arc<[Charge]> {
    LIMITS
        .iter()
        .map(|text| {
            let limit: Limit = text.parse().expect("a limit");
            let bounds = match &limit.window {
                millgate::governance::limits::Window::Calendar(period, zone) => {
                    Some(millgate::governance::calendar::bounds(*period, zone, 1_795_435_200_000_000))
                }
                _ => None,
            };
            let key = CounterKey::for_subject(&limit, UserId(Uuid::from_u128(7)), None, "free").expect("a counter");
            Charge { key, hard: Some(limit.amount), bounds }
        })
        .collect()
}

fn counters(c: &mut Criterion, runtime: &Runtime) {
    let counters = MemoryCounters::new(Arc::new(SystemClock::new()));
    let charges = charges();
    let need = Need { requests: 1, prompt_tokens: 100, sequences: 1, completion_least: 200, completion_most: 200 };
    let mut group = c.benchmark_group("governance");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decide and settle over six limits, counters alone", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let id = Uuid::now_v7();
                let answer = counters.reserve(id, &charges, need).await.expect("an answer");
                assert!(matches!(answer, Reserved::Granted { completion_tokens: 200, .. }));
                counters.settle(id, USED).await.expect("settled");
            });
        });
    });
    group.finish();
}

/// One whole request, without waiting for the disk: what the path of a request pays in CPU time.
fn without_waiting(c: &mut Criterion, runtime: &Runtime, stage: &Stage) {
    let mut group = c.benchmark_group("governance");
    group.throughput(Throughput::Elements(1));
    group.bench_function("authenticate, admit, settle; not waiting for the disk", |b| {
        b.iter_custom(|rounds| {
            let spent = runtime.block_on(async {
                let start = Instant::now();
                for _ in 0..rounds {
                    let who = stage.governor.authenticate(&stage.credential, HERE).await.expect("valid");
                    let permit = stage.governor.admit(&who, ask()).await.expect("admitted");
                    permit.progress(USED);
                    drop(permit);
                }
                start.elapsed()
            });
            runtime.block_on(stage.governor.drain());
            spent
        });
    });
    group.finish();
}

/// Many requests at once, each waiting until its reservation and its ledger row are on the disk.
fn with_ledger(c: &mut Criterion, runtime: &Runtime, stage: &Stage) {
    let mut group = c.benchmark_group("governance with ledger");
    group.sample_size(10).measurement_time(Duration::from_secs(8));
    for at_once in [1usize, 64, 1024] {
        group.throughput(Throughput::Elements(at_once as u64));
        group.bench_function(format!("{at_once} requests at once, all on the disk"), |b| {
            b.iter(|| {
                runtime.block_on(join_all((0..at_once).map(|_| async {
                    let who = stage.governor.authenticate(&stage.credential, HERE).await.expect("valid");
                    let permit = stage.governor.admit(&who, ask()).await.expect("admitted");
                    permit.durable().await.expect("durable");
                    permit.settle(USED, Status::Completed).await.expect("settled");
                })))
            });
        });
    }
    group.finish();
}

fn governance(c: &mut Criterion) {
    let runtime = Runtime::new().expect("a runtime");
    let stage = runtime.block_on(stage());
    in_memory(c, &runtime, &stage);
    counters(c, &runtime);
    without_waiting(c, &runtime, &stage);
    with_ledger(c, &runtime, &stage);
    runtime.block_on(stage.governor.shutdown());
}

criterion_group!(benches, governance);
criterion_main!(benches);
