//! What governance adds to a request over HTTP: the same instant model behind nothing, behind authentication, behind limits,
//! and behind the whole server with its ledger on the disk; closed loops of 1, 100 and 1,000 streams on loopback.
//!
//! ```text
//! cargo bench --bench overhead                                        the ladder
//! cargo bench --bench overhead -- --url http://127.0.0.1:4000 --key sk-x --model m    the same load on another server
//! ```
//! Client and server share this machine's cores, so every figure includes the client's own work: compare rungs, not
//! absolutes. The last two columns tell what server and client took of the processor a request. Rungs are measured in turn,
//! round after round; the table shows the median round and the spread of rounds.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

mod answer;
mod instant;
mod load;
mod processor;
mod rungs;

use std::time::Duration;

use clap::Parser;

use load::{Load, Target, Timing};
use rungs::Ladder;

/// The program's own allocator, or the figures are not the program's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Measures what governance adds to a request.
#[derive(Debug, Parser)]
struct Args {
    /// Streams at the same time, one column each
    #[arg(long, value_delimiter = ',', default_value = "1,100,1000")]
    streams: Vec<usize>,
    /// Seconds a cell and round
    #[arg(long, default_value_t = 3)]
    seconds: u64,
    /// Rounds; the median one is shown
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Tokens an answer
    #[arg(long, default_value_t = 4)]
    tokens: u32,
    /// Ask for whole answers instead of streams
    #[arg(long)]
    plain: bool,
    /// Only the rungs whose name holds this
    #[arg(long, value_name = "TEXT", default_value = "")]
    only: String,
    /// Measure this server instead of the ladder
    #[arg(long, requires_all = ["key", "model"])]
    url: Option<String>,
    /// Its key
    #[arg(long)]
    key: Option<String>,
    /// Its model
    #[arg(long)]
    model: Option<String>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() {
    answer::check();
    let args = Args::parse();
    let load = Load { seconds: Duration::from_secs(args.seconds), tokens: args.tokens, is_streamed: !args.plain };
    if let (Some(url), Some(key), Some(model)) = (&args.url, &args.key, &args.model) {
        let target = Target { name: url.clone(), url: url.clone(), key: key.clone(), model: model.clone() };
        report(&args, load, &[target]);
        return;
    }
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let ladder = runtime.block_on(Ladder::start());
    let mut targets = ladder.targets();
    targets.retain(|target| target.name.contains(&args.only));
    report(&args, load, &targets);
    runtime.block_on(ladder.stop());
}

fn report(args: &Args, load: Load, targets: &[Target]) {
    println!(
        "{:<34} {:>8} {:>9} {:>9} {:>9} {:>9} {:>11} {:>17} {:>10} {:>10}",
        "behind",
        "streams",
        "p50 ms",
        "p99 ms",
        "+p50 ms",
        "+p99 ms",
        "requests/s",
        "(of the rounds)",
        "server us",
        "client us"
    );
    for streams in &args.streams {
        let mut rounds: Vec<Vec<Timing>> = vec![Vec::new(); targets.len()];
        // The first round warms connections, caches and the allocator, and is thrown away.
        for round in 0..=args.rounds {
            for (target, timings) in targets.iter().zip(&mut rounds) {
                let timing = load.run(target, *streams);
                if round > 0 {
                    timings.push(timing);
                }
            }
        }
        let mut floor: Option<Timing> = None;
        for (target, timings) in targets.iter().zip(&mut rounds) {
            timings.sort_by(|a, b| a.per_second.total_cmp(&b.per_second));
            let median = timings[timings.len() / 2];
            let floor = floor.get_or_insert(median);
            println!(
                "{:<34} {:>8} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>11.0} {:>17} {:>10.1} {:>10.1}",
                target.name,
                streams,
                median.p50_ms,
                median.p99_ms,
                median.p50_ms - floor.p50_ms,
                median.p99_ms - floor.p99_ms,
                median.per_second,
                format!("({:.0} to {:.0})", timings[0].per_second, timings[timings.len() - 1].per_second),
                median.server_us,
                median.client_us,
            );
        }
    }
}
