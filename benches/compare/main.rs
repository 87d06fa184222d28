//! Millgate beside llama.cpp's server: the same GGUF file, the same client, in turn.
//!
//! ```text
//! cargo bench --bench compare -- --rival ~/llama.cpp/build/bin --model qwen3-q8_0.gguf
//! cargo bench --bench compare -- --rival ~/llama.cpp/build/bin --model qwen3-q8_0.gguf --only decode,prefill --rounds 5 --json
//! ```
//! Each row starts a fresh server an arm and round, the order alternating; `millgate bench` asks both. The table shows
//! medians, the rounds' range, the ratio of the medians, turned so that above 1 is better for Millgate, and the ratio
//! that is aimed at with weights of the file's format.
//! Nothing else should run on the machine meanwhile. Nothing is downloaded.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a benchmark prints its table and how far it is")]

mod arm;
mod ask;
mod rows;
mod table;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use millgate_kernels::WeightFormat;
use millgate_models::{Checkpoint, Source};

use arm::{Arm, Serving};
use rows::{Measure, ROWS, Row};
use table::Outcome;

/// Compares Millgate with llama.cpp's server on this machine.
#[derive(Debug, Parser)]
struct Args {
    /// Folder of the rival's programs: holds `llama-server`
    #[arg(long, value_name = "FOLDER")]
    rival: PathBuf,
    /// GGUF file that both serve
    #[arg(long, value_name = "FILE")]
    model: PathBuf,
    /// Threads that each may compute with
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Rounds of each row; the table shows medians
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Only the rows whose name begins with one of these: decode, prefill, 8k, 16k, shared, start, memory
    #[arg(long, value_delimiter = ',', value_name = "NAMES")]
    only: Vec<String>,
    /// More options for `llama-server`, as one word each
    #[arg(long, value_name = "OPTION", allow_hyphen_values = true)]
    rival_option: Vec<String>,
    /// Print JSON instead of the table
    #[arg(long)]
    json: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

impl Args {
    fn wants(&self, row: &Row) -> bool {
        self.only.is_empty() || self.only.iter().any(|name| row.name.starts_with(name.as_str()))
    }

    fn arms(&self) -> [Arm; 2] {
        let ours = Arm::Millgate { threads: self.threads };
        let program = self.rival.join("llama-server");
        [ours, Arm::Rival { program, threads: self.threads, options: self.rival_option.clone() }]
    }
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    // The client speaks no TLS here, but wants to be told which one it would.
    rustls::crypto::ring::default_provider().install_default().ok();
    let arms = args.arms();
    let format = format(&args.model)?;
    let mut outcomes = Vec::new();
    for row in ROWS.iter().filter(|row| args.wants(row)) {
        let mut outcome = Outcome { row: *row, bar: row.bar.for_format(format), ours: Vec::new(), rival: Vec::new() };
        for round in 0..args.rounds {
            for turn in 0..2 {
                let arm = &arms[(round as usize + turn) % 2];
                let value =
                    measure(arm, &args, row).await.with_context(|| format!("{} on {}", row.name, arm.name()))?;
                eprintln!("{} round {}: {} {value:.1} {}", row.name, round + 1, arm.name(), row.unit);
                outcome.of(arm).push(value);
            }
        }
        outcomes.push(outcome);
    }
    if args.json {
        println!("{}", serde_json::to_string_pretty(&table::json(&outcomes))?);
    } else {
        print!("{}", table::text(&outcomes));
    }
    Ok(())
}

/// The format of most weights.
fn format(model: &Path) -> Result<WeightFormat> {
    let checkpoint = Checkpoint::open_local(&Source::Gguf(model.to_owned())).context("open the model")?;
    checkpoint.summary().formats.first().map(|count| count.format).context("the model has no weight matrices")
}

/// One cell: a fresh server, asked once as the row says.
async fn measure(arm: &Arm, args: &Args, row: &Row) -> Result<f64> {
    let serving = Serving::start(arm, &args.model, &row.work).await?;
    let first_token = serving.first_token().await?;
    let value = match row.measure {
        Measure::Start => first_token.as_secs_f64() * 1000.0,
        Measure::LoadedMemory => serving.resident_mb()?,
        Measure::Memory => {
            serving.bench(&row.work)?;
            serving.resident_mb()?
        }
        Measure::Report(figure) => figure(&serving.bench(&row.work)?),
    };
    serving.stop()?;
    Ok(value)
}
