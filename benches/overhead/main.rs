//! What governance adds to a request over HTTP: the same instant model behind nothing, behind authentication, behind limits,
//! and behind the whole server with its ledger on the disk; closed loops of 1, 100 and 1,000 streams on loopback.
//!
//! ```text
//! cargo bench --bench overhead                                        the ladder
//! cargo bench --bench overhead -- --url http://127.0.0.1:4000 --key sk-x --model m    the same load on another server
//! ```
//! Client and server share this machine's cores, so every figure includes the client's own work: compare rungs, not
//! absolutes, or see with `--apart` what the server alone took of the processor. Rungs are measured in turn, round after round; the table shows the median round and the spread of rounds.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

mod instant;
mod load;
mod processor;
mod rungs;

use std::time::Duration;

use clap::Parser;
use tokio::runtime::Handle;

use load::{Load, Target, Timing};
use processor::client_runtime;
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
    /// Give the client threads of its own, and tell the server's processor time a request
    #[arg(long)]
    apart: bool,
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
    let args = Args::parse();
    let runtime = tokio::runtime::Runtime::new().expect("a runtime");
    let apart = args.apart.then(client_runtime);
    let client = apart.as_ref().unwrap_or(&runtime).handle();
    runtime.block_on(measure(&args, client));
}

async fn measure(args: &Args, client: &Handle) {
    let load = Load {
        seconds: Duration::from_secs(args.seconds),
        tokens: args.tokens,
        is_streamed: !args.plain,
        is_apart: args.apart,
    };
    match (&args.url, &args.key, &args.model) {
        (Some(url), Some(key), Some(model)) => {
            let target = Target { name: url.clone(), url: url.clone(), key: key.clone(), model: model.clone() };
            report(args, client, load, &[target]).await;
        }
        _ => {
            let ladder = Ladder::start().await;
            let mut targets = ladder.targets();
            targets.retain(|target| target.name.contains(&args.only));
            report(args, client, load, &targets).await;
            ladder.stop().await;
        }
    }
}

async fn report(args: &Args, client: &Handle, load: Load, targets: &[Target]) {
    println!(
        "{:<34} {:>8} {:>9} {:>9} {:>9} {:>9} {:>11} {:>17} {:>12}",
        "behind", "streams", "p50 ms", "p99 ms", "+p50 ms", "+p99 ms", "requests/s", "(of the rounds)", "server us"
    );
    for streams in &args.streams {
        let mut rounds: Vec<Vec<Timing>> = vec![Vec::new(); targets.len()];
        // The first round warms connections, caches and the allocator, and is thrown away.
        for round in 0..=args.rounds {
            for (target, timings) in targets.iter().zip(&mut rounds) {
                let (target, streams) = (target.clone(), *streams);
                let round_of_load = client.spawn(async move { load.run(&target, streams).await });
                let timing = round_of_load.await.expect("a round ends without a panic");
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
                "{:<34} {:>8} {:>9.3} {:>9.3} {:>9.3} {:>9.3} {:>11.0} {:>17} {:>12}",
                target.name,
                streams,
                median.p50_ms,
                median.p99_ms,
                median.p50_ms - floor.p50_ms,
                median.p99_ms - floor.p99_ms,
                median.per_second,
                format!("({:.0} to {:.0})", timings[0].per_second, timings[timings.len() - 1].per_second),
                median.server_us.map_or_else(|| "-".to_owned(), |us| format!("{us:.1}")),
            );
        }
    }
}
