//! Four limiters, one workload: how fast they decide, and by how many tokens they overshoot a limit under load.
//!
//! Run: `cargo run --release --manifest-path benches/rivals/Cargo.toml`. Decisions are over six limits (Millgate's include
//! authentication); the load is 64 clients at once on a limit of 20,000 tokens in two seconds.

#[path = "../../decision.rs"]
mod decision;
mod load;
#[path = "../../stage.rs"]
mod stage;
mod subjects;

use std::sync::Arc;
use std::time::Duration;

use decision::{Decider, measure};
use subjects::{Kind, Subject};

/// As the server's own binary.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const LENGTH: Duration = Duration::from_secs(3);

fn main() {
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let stage = Arc::new(runtime.block_on(stage::Stage::new()));
    println!(
        "{:<38} {:>9} {:>9} {:>12} {:>12} {:>10} {:>10}",
        "", "p50", "p99", "1 thread/s", "2 threads/s", "answered", "overshot"
    );
    for kind in Kind::ALL {
        let one = measure(deciders(kind, &stage, 1), LENGTH);
        let two = measure(deciders(kind, &stage, 2), LENGTH);
        let load = load::run(&Subject::limited(kind));
        println!(
            "{:<38} {:>6} ns {:>6} ns {:>12.0} {:>12.0} {:>10} {:>10}",
            kind.name(),
            one.p50.as_nanos(),
            one.p99.as_nanos(),
            one.rounds_per_second,
            two.rounds_per_second,
            load.answered,
            load.overshot
        );
    }
    runtime.block_on(stage.governor.shutdown());
}

fn deciders(kind: Kind, stage: &Arc<stage::Stage>, threads: usize) -> Vec<Box<dyn Decider>> {
    let subject = Arc::new(Subject::roomy(kind, stage));
    (0..threads).map(|_| subject.clone().decider()).collect()
}
