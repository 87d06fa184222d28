//! A free user floods: what a premium user waits for the first and for each next token, beside an idle server, and what
//! all users together get, beside plain first come, first served.
//!
//! `cargo bench --bench fairness -- [seconds a cell]`. Twice: the fake model with a price for a step, a row and a prompt
//! token, and the bundled demo model on this machine's cores. First come, first served is the same engine with everybody
//! in one flow of one band.

#![expect(clippy::print_stdout, reason = "a report for people")]

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use millgate::engine::fake::{FakeModel, FakeOptions};
use millgate::engine::{self, CacheSalt, Config, EngineHandle, Event, FlowId, Request, RequestId, SamplingParams};
use millgate_kernels::Pool;
use millgate_models::text::ModelText;
use millgate_models::{
    Batch, Checkpoint, ForwardError, GpuReserve, KvDtypeChoice, LoadOptions, Model, ModelSpec, Silent,
};
use tokio::task::JoinSet;
use uuid::Uuid;

/// Requests that the free user keeps open.
const FLOOD: u64 = 64;
const ROWS: usize = 32;
/// Prompt and completion tokens of a request of the flood, and of the premium user.
const LONG: (usize, u32) = (200, 300);
const SHORT: (usize, u32) = (128, 32);
/// Time for the flood to fill the server.
const WARM_UP: Duration = Duration::from_secs(5);

/// A model that notes how long its steps take.
struct Timed {
    model: Box<dyn Model>,
    steps_ms: Arc<Mutex<Vec<f64>>>,
}

impl Model for Timed {
    fn spec(&self) -> &ModelSpec {
        self.model.spec()
    }

    fn forward(&mut self, batch: &Batch) -> Result<&[f32], ForwardError> {
        let start = Instant::now();
        let logits = self.model.forward(batch)?;
        self.steps_ms.lock().unwrap_or_else(PoisonError::into_inner).push(start.elapsed().as_secs_f64() * 1e3);
        Ok(logits)
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.model.copy_block(from, to);
    }
}

/// What one cell of the table measured.
#[derive(Default)]
struct Cell {
    ttft_ms: Vec<f64>,
    itl_ms: Vec<f64>,
    steps_ms: Vec<f64>,
    tokens_a_second: f64,
    preemptions: u64,
}

fn main() -> anyhow::Result<()> {
    let seconds = std::env::args().skip(1).find_map(|argument| argument.parse().ok()).unwrap_or(20);
    let window = Duration::from_secs(seconds);
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let fake = || -> anyhow::Result<(Box<dyn Model>, ModelText)> {
        let options = FakeOptions {
            num_blocks: 2000,
            max_output_rows: ROWS,
            end_logit: f32::NEG_INFINITY,
            step_delay: Duration::from_millis(4),
            row_delay: Duration::from_micros(150),
            prompt_token_delay: Duration::from_micros(60),
            ..FakeOptions::default()
        };
        Ok((Box::new(FakeModel::new(options)), FakeModel::text()))
    };
    compare("fake model: 4 ms a step, 150 us a row, 60 us a prompt token", &fake, &runtime, window)?;
    compare("bundled demo model on the CPU", &demo, &runtime, window)
}

fn demo() -> anyhow::Result<(Box<dyn Model>, ModelText)> {
    let checkpoint = Checkpoint::open_local(&"builtin:demo".parse()?)?;
    let text = checkpoint.text()?;
    let options = LoadOptions {
        device: millgate_models::Device::Cpu,
        kv_bytes: None,
        reserve: GpuReserve::default(),
        deterministic: true,
        pool: Arc::new(Pool::for_this_machine()),
        num_blocks: 1000,
        max_step_tokens: 512,
        max_output_rows: ROWS,
        kv_dtype: KvDtypeChoice::Auto,
        context_window: None,
    };
    Ok((checkpoint.load(&options, &Silent)?, text))
}

type Load<'a> = &'a dyn Fn() -> anyhow::Result<(Box<dyn Model>, ModelText)>;

fn compare(title: &str, load: Load<'_>, runtime: &tokio::runtime::Runtime, window: Duration) -> anyhow::Result<()> {
    println!("\n{title}");
    println!(
        "{:<8}{:>12}{:>12}{:>12}{:>12}{:>12}{:>12}{:>10}{:>10}{:>8}",
        "", "TTFT p50", "TTFT p95", "ITL p50", "ITL p95", "step p50", "step p95", "tokens/s", "requests", "preempt"
    );
    let mut cells = Vec::new();
    for (name, flood, is_fair) in [("idle", 0, true), ("fcfs", FLOOD, false), ("fair", FLOOD, true)] {
        let mut cell = runtime.block_on(measure(load, flood, is_fair, window))?;
        println!(
            "{name:<8}{:>9.2} ms{:>9.2} ms{:>9.2} ms{:>9.2} ms{:>9.2} ms{:>9.2} ms{:>10.0}{:>10}{:>8}",
            at(&mut cell.ttft_ms, 0.5),
            at(&mut cell.ttft_ms, 0.95),
            at(&mut cell.itl_ms, 0.5),
            at(&mut cell.itl_ms, 0.95),
            at(&mut cell.steps_ms, 0.5),
            at(&mut cell.steps_ms, 0.95),
            cell.tokens_a_second,
            cell.ttft_ms.len(),
            cell.preemptions
        );
        cells.push(cell);
    }
    let [idle, fcfs, fair] = cells.as_mut_slice() else { unreachable!("three cells were measured") };
    let step = at(&mut fair.steps_ms, 0.95);
    for (what, alone, crowded) in
        [("TTFT", &mut idle.ttft_ms, &mut fair.ttft_ms), ("ITL", &mut idle.itl_ms, &mut fair.itl_ms)]
    {
        let (crowded, bar) = (at(crowded, 0.95), 1.5 * at(alone, 0.95) + step);
        let verdict = if crowded <= bar { "holds" } else { "MISSED" };
        println!("{what} p95 {crowded:.2} ms, bar 1.5 x idle + one step (p95) = {bar:.2} ms: {verdict}");
    }
    let share = fair.tokens_a_second / fcfs.tokens_a_second;
    let verdict = if share >= 0.95 { "holds" } else { "MISSED" };
    println!("all tokens: {:.1} % of first come, first served, bar 95 %: {verdict}", share * 100.0);
    Ok(())
}

async fn measure(load: Load<'_>, flood: u64, is_fair: bool, window: Duration) -> anyhow::Result<Cell> {
    let (model, text) = load()?;
    let steps_ms = Arc::new(Mutex::new(Vec::new()));
    let model = Box::new(Timed { model, steps_ms: Arc::clone(&steps_ms) });
    let engine = engine::spawn("bench", model, text, Config::default())?;
    let mut tasks = JoinSet::new();
    for client in 0..flood {
        let engine = engine.clone();
        tasks.spawn(async move {
            for round in 0.. {
                // So that answers do not all end together.
                let tokens = LONG.1 / 2 + (client as u32 * 37 + round as u32 * 101) % LONG.1;
                answer(&engine, request(client * 1000 + round, (LONG.0, tokens), is_fair, false), &mut Cell::default())
                    .await;
            }
        });
    }
    let mut cell = Cell::default();
    // Lets the pace be learnt, also on the idle server.
    let start = Instant::now();
    let mut nth = 0;
    while start.elapsed() < WARM_UP {
        nth += 1;
        tokio::time::timeout(WARM_UP, answer(&engine, request(nth, SHORT, is_fair, true), &mut Cell::default()))
            .await
            .ok();
    }
    let (start, before) = (Instant::now(), engine.status().totals);
    steps_ms.lock().unwrap_or_else(PoisonError::into_inner).clear();
    while start.elapsed() < window {
        nth += 1;
        answer(&engine, request(nth, SHORT, is_fair, true), &mut cell).await;
        // A person reads and writes; the pause is no multiple of a step.
        tokio::time::sleep(Duration::from_micros(20_000 + nth * 7919 % 30_000)).await;
    }
    let (took, after) = (start.elapsed(), engine.status().totals);
    let tokens = after.prompt_tokens - before.prompt_tokens + after.completion_tokens - before.completion_tokens;
    cell.tokens_a_second = tokens as f64 / took.as_secs_f64();
    cell.preemptions = after.preemptions - before.preemptions;
    cell.steps_ms = steps_ms.lock().unwrap_or_else(PoisonError::into_inner).clone();
    tasks.shutdown().await;
    engine.shutdown().await;
    Ok(cell)
}

/// Reads an answer to its end and notes when its tokens came.
async fn answer(engine: &EngineHandle, request: Request, cell: &mut Cell) {
    let mut last = Instant::now();
    let mut is_first = true;
    let mut stream = match engine.submit(request) {
        Ok(stream) => stream,
        Err(error) => panic!("the queue has room for all: {error}"),
    };
    while let Some(event) = stream.next().await {
        // Log probabilities come with every token, also with half a character.
        let Event::Text { logprobs, .. } = event else { continue };
        let gap_ms = last.elapsed().as_secs_f64() * 1e3 / logprobs.len().max(1) as f64;
        last = Instant::now();
        if std::mem::take(&mut is_first) { cell.ttft_ms.push(gap_ms) } else { cell.itl_ms.push(gap_ms) }
    }
}

fn request(nth: u64, (prompt, tokens): (usize, u32), is_fair: bool, is_premium: bool) -> Request {
    let own = u64::from(is_premium && is_fair);
    Request {
        id: RequestId(Uuid::nil()),
        // No two alike, so that nothing is found in the cache.
        prompt: (0..prompt as u64)
            .map(|at| (((nth * 7919 + at * 31 + own) * 0x9E37_79B9) >> 16) as u32 % 250)
            .collect(),
        sampling: SamplingParams { seed: nth, logprobs: is_premium.then_some(0), ..SamplingParams::default() },
        choices: 1,
        max_tokens: tokens,
        min_tokens: 0,
        ignore_eos: true,
        stop: Vec::new(),
        continues_text: true,
        prompt_logprobs: None,
        allowance: tokens,
        flow: FlowId(own),
        weight: 1,
        priority: u8::from(own > 0),
        cache_salt: CacheSalt([u8::from(is_premium); 16]),
    }
}

/// A quantile, by sorting.
fn at(values: &mut [f64], quantile: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let index = (values.len() as f64 * quantile).ceil() as usize;
    values.get(index.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}
