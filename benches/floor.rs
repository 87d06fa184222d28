//! Whole steps of a model on the CPU, without a server, as a share of the least time this machine could take.
//!
//! ```text
//! cargo bench --bench floor -- qwen3-q8_0.gguf
//! cargo bench --bench floor -- qwen3-q8_0.gguf "decode 32" "prefill 512"
//! ```
//! The floor of a decode step: the weights at the speed of memory or their products at the peak of the dot product of
//! their format, whichever takes longer, and the keys and values at the speed of memory. The floor of a prompt: those
//! products, and attention at the peak of bf16 or f32, whichever is higher here. Peaks are measured in the same run.
//! Words choose the lines whose names begin with them; `--level avx512` takes slower instructions than the machine has.
#![expect(clippy::print_stdout, reason = "a benchmark prints its table")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use millgate_kernels::{Level, Pool, WeightFormat};
use millgate_models::{
    Batch, Checkpoint, Device, GpuReserve, KvDtypeChoice, LoadOptions, Model, Silent, Source, Summary,
};

#[path = "../models/benches/batches.rs"]
mod batches;
#[path = "../kernels/benches/clock.rs"]
mod clock;
#[path = "../kernels/benches/peaks.rs"]
mod peaks;

use batches::{add, blocks};
use peaks::Peaks;

/// Tokens each stream has in the cache when its counted steps begin.
const CONTEXT: usize = 128;
/// Decode steps that count, after some that do not.
const COUNTED: usize = 24;
const WARM: usize = 4;
/// Prompts that count, after one that does not.
const PROMPTS: usize = 3;
/// Tokens of a prompt in one step: what the server takes by default.
const STEP_TOKENS: usize = 512;
const STREAMS: [usize; 4] = [1, 8, 16, 32];
const LENGTHS: [usize; 2] = [512, 4_096];

fn main() -> Result<()> {
    let mut arguments: Vec<String> = std::env::args().skip(1).collect();
    let level = match arguments.iter().position(|word| word == "--level") {
        Some(at) => named(&arguments.drain(at..(at + 2).min(arguments.len())).collect::<Vec<_>>())?,
        None => Level::of_this_machine(),
    };
    let mut words = arguments.into_iter().filter(|word| !word.starts_with("--"));
    let model = words.next().context("usage: cargo bench --bench floor -- MODEL [\"decode 8\" \"prefill 512\" …]")?;
    let wanted: Vec<String> = words.collect();
    let is_wanted = |name: &str| wanted.is_empty() || wanted.iter().any(|word| name.starts_with(word.as_str()));
    let threads = Pool::for_this_machine().threads();
    let pool = Arc::new(Pool::with_level(threads, level).with_context(|| format!("this machine has no {level:?}"))?);
    let peaks = Peaks::measure(&pool);
    println!(
        "{:?}, {} threads: read {:.1} GB/s, f32 {:.0}, bf16 dot {:.0}, bf16 tiles {:.0} GFLOP/s, int8 dot {:.0} GOP/s",
        pool.level(),
        pool.threads(),
        peaks.read,
        peaks.f32,
        peaks.bf16,
        peaks.bf16_tiles,
        peaks.int8
    );
    let checkpoint = Checkpoint::open_local(&model.parse::<Source>()?)?;
    let summary = checkpoint.summary();
    println!("{summary}");
    let mut model = checkpoint.load(&options(pool), &Silent)?;
    let floor = Floor::of(&summary, model.spec().weight_bytes, &peaks);
    println!(
        "{:<16}{:>12}{:>24}{:>12}{:>8}{:>12}",
        "step", "ms", "fastest to slowest", "floor, ms", "share", "tokens/s"
    );
    for streams in STREAMS {
        let name = format!("decode {streams} streams");
        if is_wanted(&name) {
            print(&name, streams, &decode(&mut *model, streams)?, floor.decode(streams));
        }
    }
    for tokens in LENGTHS {
        let name = format!("prefill {tokens}");
        if is_wanted(&name) {
            let times = (0..=PROMPTS).map(|_| prefill(&mut *model, 0, tokens)).collect::<Result<Vec<_>>>()?;
            print(&name, tokens, &times[1..], floor.prefill(tokens));
        }
    }
    Ok(())
}

/// The level that `--level NAME` names.
fn named(flag: &[String]) -> Result<Level> {
    let name = flag.last().map_or("", String::as_str);
    let level = Level::ALL.into_iter().find(|level| format!("{level:?}").eq_ignore_ascii_case(name));
    level.with_context(|| format!("--level {name}: one of {:?}", Level::ALL))
}

fn options(pool: Arc<Pool>) -> LoadOptions {
    let streams = STREAMS[STREAMS.len() - 1] * blocks(CONTEXT + WARM + COUNTED);
    LoadOptions {
        device: Device::Cpu,
        pool,
        num_blocks: streams.max(blocks(LENGTHS[LENGTHS.len() - 1])),
        kv_bytes: None,
        reserve: GpuReserve::default(),
        deterministic: false,
        max_step_tokens: STEP_TOKENS,
        max_output_rows: STREAMS[STREAMS.len() - 1],
        kv_dtype: KvDtypeChoice::Auto,
        context_window: None,
    }
}

fn print(name: &str, tokens: usize, times: &[Duration], floor: Duration) {
    let mut ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    let (median, floor) = (ms[ms.len() / 2], floor.as_secs_f64() * 1e3);
    println!(
        "{name:<16}{median:>12.1}{:>24}{floor:>12.1}{:>6.0} %{:>12.0}",
        format!("{:.1} to {:.1}", ms[0], ms[ms.len() - 1]),
        floor / median * 100.0,
        tokens as f64 / median * 1e3
    );
}

/// The least a step can take.
struct Floor {
    /// 10⁹ bytes or operations of a token, weight matrices of the layers and of the head.
    layers: f64,
    head: f64,
    weight_bytes: f64,
    /// Of one cached token, all layers, 10⁹ bytes.
    kv_bytes: f64,
    /// Multiplications of a query with one cached token, all layers and heads, scores and values, 10⁹ operations.
    attention: f64,
    read: f64,
    products: f64,
    attention_peak: f64,
}

impl Floor {
    fn of(summary: &Summary, weight_bytes: u64, peaks: &Peaks) -> Self {
        let (query, key) = (summary.num_heads * summary.head_dim, summary.num_kv_heads * summary.head_dim);
        let hidden = summary.hidden_size;
        let layer = hidden * (2 * query + 2 * key + 3 * summary.intermediate_size);
        let (layers, head) = (layer * summary.num_layers, summary.vocab_size * hidden);
        // An embedding of its own is looked up, not read.
        let read = (layers + head) as f64 / summary.parameters as f64;
        let products = match summary.formats.first().map(|count| count.format) {
            Some(WeightFormat::F32) => peaks.f32,
            Some(WeightFormat::F16 | WeightFormat::Bf16) | None => peaks.f32.max(peaks.bf16).max(peaks.bf16_tiles),
            Some(_) => peaks.int8,
        };
        Self {
            layers: 2.0 * layers as f64 / 1e9,
            head: 2.0 * head as f64 / 1e9,
            weight_bytes: weight_bytes as f64 * read.min(1.0) / 1e9,
            kv_bytes: summary.kv_bytes_per_token as f64 / 1e9,
            attention: 4.0 * (query * summary.num_layers) as f64 / 1e9,
            read: peaks.read,
            products: known(products),
            attention_peak: known(peaks.f32.max(peaks.bf16)),
        }
    }

    /// A step of this many streams in the middle of their counted steps.
    fn decode(&self, streams: usize) -> Duration {
        let weights = self.weight_bytes / self.read;
        let products = streams as f64 * (self.layers + self.head) / self.products;
        let cached = (streams * (CONTEXT + WARM + COUNTED / 2)) as f64;
        Duration::from_secs_f64(weights.max(products) + cached * self.kv_bytes / self.read)
    }

    /// A whole prompt, logits for its last token.
    fn prefill(&self, tokens: usize) -> Duration {
        let products = (tokens as f64 * self.layers + self.head) / self.products;
        let pairs = tokens as f64 * (tokens + 1) as f64 / 2.0;
        Duration::from_secs_f64(products + pairs * self.attention / self.attention_peak)
    }
}

/// A peak nobody measures on this level limits nothing.
fn known(peak: f64) -> f64 {
    if peak > 0.0 { peak } else { f64::INFINITY }
}

/// Times of decode steps of this many streams.
fn decode(model: &mut dyn Model, streams: usize) -> Result<Vec<Duration>> {
    let each = blocks(CONTEXT + WARM + COUNTED);
    for stream in 0..streams {
        prefill(model, stream * each, CONTEXT)?;
    }
    let mut times = Vec::new();
    for index in 0..WARM + COUNTED {
        let mut batch = Batch::default();
        for stream in 0..streams {
            add(&mut batch, stream * each, CONTEXT + index, 1);
            ask(&mut batch);
        }
        let start = Instant::now();
        model.forward(&batch)?;
        times.push(start.elapsed());
    }
    Ok(times.split_off(WARM))
}

/// The time of a prompt of one stream, whose blocks begin at `first_block`.
fn prefill(model: &mut dyn Model, first_block: usize, tokens: usize) -> Result<Duration> {
    let start = Instant::now();
    for from in (0..tokens).step_by(STEP_TOKENS) {
        let count = STEP_TOKENS.min(tokens - from);
        let mut batch = Batch::default();
        add(&mut batch, first_block, from, count);
        if from + count == tokens {
            ask(&mut batch);
        }
        model.forward(&batch)?;
    }
    Ok(start.elapsed())
}

/// Wants the newest row's logits.
fn ask(batch: &mut Batch) {
    batch.output_rows.push(batch.tokens.len() as u32 - 1);
}
