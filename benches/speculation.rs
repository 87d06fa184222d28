//! What guessing ahead gains on text that repeats itself and costs on text that does not, beside the same engine without.
//!
//! `cargo bench --bench speculation -- [rounds] [folder or .gguf file] [streams,streams,...]`. Without a file it is the
//! bundled demo model. Both engines answer the same requests in turn, the order changing each round, and must give the
//! same text.

#![expect(clippy::print_stdout, reason = "a report for people")]

use std::sync::Arc;
use std::time::Instant;

use millgate::engine::{
    self, CacheSalt, Config, EngineHandle, EngineTotals, Event, FlowId, Request, RequestId, SamplingParams,
};
use millgate_kernels::Pool;
use millgate_models::{Checkpoint, Device, GpuReserve, KvDtypeChoice, LoadOptions, Silent, Source};
use uuid::Uuid;

/// Completion tokens of an answer.
const TOKENS: u32 = 192;
const ROWS: usize = 64;

fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|argument| !argument.starts_with("--")).collect();
    let rounds: usize = arguments.first().and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    let source: Source = arguments.get(1).map_or("builtin:demo", String::as_str).parse()?;
    let streams = arguments.get(2).map_or("1,8,32", String::as_str).split(',').map(str::parse);
    let streams = streams.collect::<Result<Vec<u64>, _>>()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let pool = Arc::new(Pool::for_this_machine());
    let engines = [start(&source, &pool, false)?, start(&source, &pool, true)?];
    println!(
        "{:<12}{:>8}{:>22}{:>22}{:>16}{:>12}{:>14}",
        "text", "streams", "off, tokens/s", "auto, tokens/s", "auto / off", "accepted", "tokens a row"
    );
    for (kind, temperature) in [("repetitive", 0.0), ("free", 1.0)] {
        for &streams in &streams {
            let mut rates = [Vec::new(), Vec::new()];
            let mut totals = EngineTotals::default();
            for round in 0..=rounds {
                let mut texts = [Vec::new(), Vec::new()];
                for turn in 0..2 {
                    let arm = (turn + round) % 2;
                    let before = engines[arm].status().totals;
                    let requests = (0..streams).map(|nth| request(round as u64 * 1000 + nth, temperature));
                    let (rate, said) = runtime.block_on(measure(&engines[arm], requests.collect()))?;
                    texts[arm] = said;
                    // The first round is for the engines to learn what steps cost.
                    if round > 0 {
                        rates[arm].push(rate);
                        if arm == 1 {
                            totals = counted(engines[1].status().totals, before, totals);
                        }
                    }
                }
                anyhow::ensure!(texts[0] == texts[1], "{kind}, {streams} streams: the answers differ");
            }
            let mut ratios: Vec<f64> = rates[1].iter().zip(&rates[0]).map(|(auto, off)| auto / off).collect();
            let accepted = 100.0 * totals.accepted_tokens as f64 / totals.draft_tokens.max(1) as f64;
            let run =
                totals.completion_tokens as f64 / (totals.completion_tokens - totals.accepted_tokens).max(1) as f64;
            println!(
                "{kind:<12}{streams:>8}{:>22}{:>22}{:>16}{accepted:>10.0} %{run:>14.2}",
                spread(&mut rates[0], 0),
                spread(&mut rates[1], 0),
                spread(&mut ratios, 2),
            );
        }
    }
    Ok(())
}

fn start(source: &Source, pool: &Arc<Pool>, speculation: bool) -> anyhow::Result<EngineHandle> {
    let checkpoint = Checkpoint::open_local(source)?;
    let text = checkpoint.text()?;
    let options = LoadOptions {
        device: Device::Cpu,
        kv_bytes: None,
        deterministic: true,
        pool: Arc::clone(pool),
        num_blocks: 600,
        max_step_tokens: 512,
        max_output_rows: ROWS,
        kv_dtype: KvDtypeChoice::Auto,
        context_window: None,
        reserve: GpuReserve::default(),
    };
    let model = checkpoint.load(&options, &Silent)?;
    Ok(engine::spawn("bench", model, text, Config { speculation, prefix_cache: false, ..Config::default() })?)
}

/// Answers all requests together and gives completion tokens a second and the texts.
async fn measure(engine: &EngineHandle, requests: Vec<Request>) -> anyhow::Result<(f64, Vec<String>)> {
    let start = Instant::now();
    let streams = requests.into_iter().map(|request| engine.submit(request)).collect::<Result<Vec<_>, _>>()?;
    let (mut texts, mut tokens) = (Vec::new(), 0);
    for mut stream in streams {
        let mut written = String::new();
        while let Some(event) = stream.next().await {
            match event {
                Event::Text { text, .. } => written += &text,
                Event::Failed(failure, _) => anyhow::bail!("a request failed: {failure:?}"),
                _ => {}
            }
        }
        tokens += stream.usage().completion_tokens;
        texts.push(written);
    }
    Ok((f64::from(tokens) / start.elapsed().as_secs_f64(), texts))
}

/// A prompt that says a sentence of its own four times; the likeliest answer goes on with it, a random one does not.
fn request(nth: u64, temperature: f32) -> Request {
    let sentence = (0..20).map(|at| (((nth * 7919 + at * 131) * 0x9E37_79B9) >> 16) as u32 % 2000 + 300);
    let sentence: Vec<u32> = sentence.collect();
    Request {
        id: RequestId(Uuid::nil()),
        prompt: sentence.repeat(4),
        sampling: SamplingParams { temperature, seed: nth, ..SamplingParams::default() },
        choices: 1,
        max_tokens: TOKENS,
        min_tokens: 0,
        ignore_eos: true,
        stop: Vec::new(),
        continues_text: true,
        prompt_logprobs: None,
        allowance: TOKENS,
        flow: FlowId(nth),
        weight: 1,
        priority: 0,
        cache_salt: CacheSalt([1; 16]),
    }
}

/// Adds what was counted between two looks.
fn counted(now: EngineTotals, before: EngineTotals, sum: EngineTotals) -> EngineTotals {
    EngineTotals {
        completion_tokens: sum.completion_tokens + now.completion_tokens - before.completion_tokens,
        draft_tokens: sum.draft_tokens + now.draft_tokens - before.draft_tokens,
        accepted_tokens: sum.accepted_tokens + now.accepted_tokens - before.accepted_tokens,
        ..sum
    }
}

/// Median and range.
fn spread(values: &mut [f64], digits: usize) -> String {
    values.sort_by(f64::total_cmp);
    let [first, .., last] = values else {
        return values.first().map_or("-".into(), |value| format!("{value:.digits$}"));
    };
    let (first, last) = (*first, *last);
    format!("{:.digits$} ({first:.digits$}-{last:.digits$})", values[values.len() / 2])
}
