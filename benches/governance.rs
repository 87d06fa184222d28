//! What governing one request costs: a cached credential, an admission over six limits, a settlement; and with the disk.
//!
//! Run: `cargo bench --bench governance`. It begins with a table of single decisions (percentiles) and of decisions a second
//! on one and two threads. The group "with ledger" settles many requests at once, as a busy server does: one sync of the
//! disk serves all that wait for it. `benches/rivals` sets the first line beside other limiters.

mod decision;
mod stage;

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use futures::future::join_all;
use millgate::governance::ports::{Counters, Reserved};
use millgate::governance::{Clock, Credential, Status, SystemClock};
use millgate::store::MemoryCounters;
use tokio::runtime::Runtime;
use uuid::Uuid;

use decision::{Decider, Speed, measure};
use stage::{HERE, InMemory, LIMITS, NEED, Stage, USED, WithLedger, ask, charges};

/// As the server's own binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

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
    group.bench_function("authenticate, cached, a token instead of a key", |b| {
        let made = runtime.block_on(stage.governor.create_token(&stage.who, None, None)).expect("a token");
        let token = Credential::parse(made.token.reveal());
        b.iter(|| runtime.block_on(stage.governor.authenticate(&token, HERE)).expect("valid"));
    });
    group.bench_function("peek over six limits", |b| {
        b.iter(|| runtime.block_on(stage.governor.peek(&stage.who, Some("m"), 2048)).expect("plenty left"));
    });
    group.finish();
}

fn counters(c: &mut Criterion, runtime: &Runtime) {
    let clock = Arc::new(SystemClock::new());
    let charges = charges(&LIMITS, 7, clock.now_us());
    let counters = MemoryCounters::new(clock);
    let mut group = c.benchmark_group("governance");
    group.throughput(Throughput::Elements(1));
    group.bench_function("decide and settle over six limits, counters alone", |b| {
        b.iter(|| {
            runtime.block_on(async {
                let id = Uuid::now_v7();
                let answer = counters.reserve(id, &charges, NEED).await.expect("an answer");
                assert!(matches!(answer, Reserved::Granted { completion_tokens: 200, .. }));
                counters.settle(id, USED.into()).await.expect("settled");
            });
        });
    });
    group.finish();
}

/// Percentiles of single decisions and decisions a second: not criterion's to tell.
#[expect(clippy::print_stdout, reason = "the table is what this program is for")]
fn decisions(runtime: &Runtime, stage: &Arc<Stage>) {
    const LENGTH: Duration = Duration::from_secs(2);
    let clock = Arc::new(SystemClock::new());
    let now_us = clock.now_us();
    let counters = Arc::new(MemoryCounters::new(clock));
    let in_memory =
        |user| -> Box<dyn Decider> { Box::new(InMemory::new(stage, &counters, charges(&LIMITS, user, now_us))) };
    let with_ledger = || -> Box<dyn Decider> { Box::new(WithLedger::new(stage)) };
    println!("{:<52} {:>9} {:>9} {:>9} {:>12}", "", "p50", "p99", "p99.9", "rounds/s");
    let show = |name: &str, speed: Speed| {
        let Speed { p50, p99, p999, rounds_per_second } = speed;
        let [p50, p99, p999] = [p50, p99, p999].map(|time| format!("{} ns", time.as_nanos()));
        println!("{name:<52} {p50:>9} {p99:>9} {p999:>9} {rounds_per_second:>12.0}");
    };
    show("in memory, one thread", measure(vec![in_memory(1)], LENGTH));
    show("in memory, two threads, one user", measure(vec![in_memory(1), in_memory(1)], LENGTH));
    show("in memory, two threads, two users", measure(vec![in_memory(1), in_memory(2)], LENGTH));
    // The ledger's rows pile up behind it: short, and drained before the next.
    let short = LENGTH / 10;
    show("with journal and ledger behind, one thread", measure(vec![with_ledger()], short));
    runtime.block_on(stage.governor.drain());
    show("with journal and ledger behind, two threads", measure(vec![with_ledger(), with_ledger()], short));
    runtime.block_on(stage.governor.drain());
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
    let stage = Arc::new(runtime.block_on(Stage::new()));
    decisions(&runtime, &stage);
    in_memory(c, &runtime, &stage);
    counters(c, &runtime);
    without_waiting(c, &runtime, &stage);
    with_ledger(c, &runtime, &stage);
    runtime.block_on(stage.governor.shutdown());
}

criterion_group!(benches, governance);
criterion_main!(benches);
