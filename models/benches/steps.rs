//! Times whole steps of a model on a GPU by the device's own clock: decode steps of many streams, and prompts.
//!
//! `steps FOLDER [tiny]`: a checkpoint; `tiny` for a try on an emulated device. Prints a line of JSON a measurement.

#![expect(clippy::print_stdout, reason = "the lines are the result")]

use std::sync::Arc;
use std::time::Duration;

use millgate_kernels::Pool;
use millgate_models::{
    Checkpoint, Device, Draw, DrawingModel, GpuReserve, KvDtypeChoice, LoadOptions, Output, Penalties, PendingToken,
    Silent, Step,
};

mod batches;

use batches::{add, blocks};

type Failed = Box<dyn std::error::Error>;

/// Tokens of each prompt of the decode runs.
const DECODE_PROMPT: usize = 128;
/// Steps that do not count, and those that do.
const WARM: usize = 8;
const COUNTED: usize = 64;
/// Prompts of one length that count, after one that does not.
const PROMPTS: usize = 5;
/// As the server has it on a GPU.
const STEP_TOKENS: usize = 4096;

fn main() -> Result<(), Failed> {
    let mut words = std::env::args().skip(1);
    let folder = words.next().ok_or("usage: steps FOLDER [tiny]")?;
    let is_tiny = words.next().is_some();
    let (streams, prompts): (&[usize], &[usize]) =
        if is_tiny { (&[1, 8], &[64]) } else { (&[1, 8, 32, 128], &[512, 4096, 16_384]) };
    let most = streams.last().map_or(1, |&streams| streams);
    let longest =
        prompts.iter().fold(most * blocks(DECODE_PROMPT + WARM + COUNTED), |most, &len| most.max(blocks(len)));
    let options = LoadOptions {
        device: Device::Cuda(0),
        pool: Arc::new(Pool::new(1)),
        num_blocks: longest,
        kv_bytes: None,
        reserve: GpuReserve::default(),
        deterministic: false,
        max_step_tokens: STEP_TOKENS,
        max_output_rows: most,
        kv_dtype: KvDtypeChoice::Auto,
        context_window: None,
    };
    let mut model = Checkpoint::open_local(&folder.parse()?)?.load(&options, &Silent)?;
    if model.spec().num_blocks < longest {
        return Err(format!("the cache has {} of {longest} blocks", model.spec().num_blocks).into());
    }
    let model = model.drawing().ok_or("the model does not draw")?;
    model.time_steps();
    for &streams in streams {
        let times = decode(model, streams)?;
        print("decode", streams, &times);
    }
    for &tokens in prompts {
        let times = (0..=PROMPTS).map(|_| prefill(model, 0, tokens)).collect::<Result<Vec<_>, _>>()?;
        print("prefill", tokens, &times[1..]);
    }
    Ok(())
}

/// Median, fastest and slowest in milliseconds.
fn print(what: &str, size: usize, times: &[Duration]) {
    let mut ms: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e3).collect();
    ms.sort_by(f64::total_cmp);
    let (median, least, most) = (ms[ms.len() / 2], ms[0], ms[ms.len() - 1]);
    println!(
        "{{\"what\": \"{what}\", \"size\": {size}, \"runs\": {}, \"median_ms\": {median}, \"least_ms\": {least}, \"most_ms\": {most}}}",
        ms.len()
    );
}

/// Times of decode steps of this many streams, each launched while the one before it runs.
fn decode(model: &mut dyn DrawingModel, streams: usize) -> Result<Vec<Duration>, Failed> {
    let each = blocks(DECODE_PROMPT + WARM + COUNTED);
    for stream in 0..streams {
        prefill(model, stream * each, DECODE_PROMPT)?;
    }
    let mut times = Vec::new();
    for index in 0..WARM + COUNTED {
        let mut step = Step::default();
        for stream in 0..streams {
            add(&mut step.batch, stream * each, DECODE_PROMPT + index, 1);
            draw(&mut step);
        }
        if index > 0 {
            step.pending = (0..streams as u32).map(|row| PendingToken { row, draw: row }).collect();
        }
        model.launch(&step)?;
        if index > 0 {
            times.push(time_of(model)?);
        }
    }
    times.push(time_of(model)?);
    Ok(times.split_off(WARM))
}

/// The time of a prompt of one stream, whose blocks begin at `first_block`, with the draw of its first token.
fn prefill(model: &mut dyn DrawingModel, first_block: usize, tokens: usize) -> Result<Duration, Failed> {
    let mut whole = Duration::ZERO;
    for from in (0..tokens).step_by(STEP_TOKENS) {
        let count = STEP_TOKENS.min(tokens - from);
        let mut step = Step::default();
        add(&mut step.batch, first_block, from, count);
        if from + count == tokens {
            draw(&mut step);
        }
        model.launch(&step)?;
        whole += time_of(model)?;
    }
    Ok(whole)
}

fn time_of(model: &mut dyn DrawingModel) -> Result<Duration, Failed> {
    Ok(model.collect()?.device_time.ok_or("the device does not time its steps")?)
}

/// Has the newest row draw.
fn draw(step: &mut Step) {
    let row = step.batch.tokens.len() as u32 - 1;
    step.batch.output_rows.push(row);
    step.outputs.push(Output::Draw(Draw {
        temperature: 1.0,
        top_k: 0,
        top_p: 1.0,
        min_p: 0.0,
        penalties: Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 },
        seed: 1,
        choice: 0,
        position: step.batch.positions[row as usize] + 1,
        logprobs: None,
        adjustments_start: 0,
        adjustments_len: 0,
        pending: None,
    }));
}
