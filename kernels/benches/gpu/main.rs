//! Times the operations of a model's step on a GPU, by the device's own clock, and says how near each comes to the card.
//!
//! `gpu SHAPE`, where SHAPE is 0.6b, 1b, 8b, or tiny for a try on an emulated device. Bandwidth and matrix rate of the
//! card are measured first; every operation is then a share of whichever binds. Bytes count once what must move once.

#![expect(clippy::print_stdout, reason = "the table is the result")]

mod attention;
mod layer;
mod sampling;

use half::bf16;
use millgate_kernels::cuda::{self, Buffer, CudaError, Event, Gpu, MatMul};

/// More than the second-level cache of any card.
const CACHE_BYTES: usize = 256 << 20;

struct Shape {
    name: &'static str,
    hidden: usize,
    mlp: usize,
    heads: usize,
    kv_heads: usize,
    dim: usize,
    vocab: usize,
    rows: &'static [usize],
    /// Sequences and the context of each.
    decode: &'static [(usize, usize)],
    prompts: &'static [usize],
}

const ROWS: &[usize] = &[1, 8, 32, 128, 512, 4096];
const DECODE: &[(usize, usize)] = &[(1, 1024), (1, 16_384), (32, 1024), (32, 4096), (128, 1024)];
const PROMPTS: &[usize] = &[512, 4096, 16_384];
const SHAPES: [Shape; 4] = [
    Shape {
        name: "0.6b",
        hidden: 1024,
        mlp: 3072,
        heads: 16,
        kv_heads: 8,
        dim: 128,
        vocab: 151_936,
        rows: ROWS,
        decode: DECODE,
        prompts: PROMPTS,
    },
    Shape {
        name: "1b",
        hidden: 2048,
        mlp: 8192,
        heads: 32,
        kv_heads: 8,
        dim: 64,
        vocab: 128_256,
        rows: ROWS,
        decode: DECODE,
        prompts: PROMPTS,
    },
    Shape {
        name: "8b",
        hidden: 4096,
        mlp: 14_336,
        heads: 32,
        kv_heads: 8,
        dim: 128,
        vocab: 128_256,
        rows: ROWS,
        decode: DECODE,
        prompts: PROMPTS,
    },
    Shape {
        name: "tiny",
        hidden: 64,
        mlp: 128,
        heads: 4,
        kv_heads: 2,
        dim: 16,
        vocab: 256,
        rows: &[1, 5],
        decode: &[(2, 300)],
        prompts: &[40],
    },
];

/// What the card does at best, as measured.
struct Card {
    bytes_per_second: f64,
    flops_per_second: f64,
}

/// What an operation must move and multiply.
struct Cost {
    bytes: usize,
    flops: usize,
}

fn main() -> Result<(), CudaError> {
    let wanted = std::env::args().skip(1).find(|argument| !argument.starts_with('-'));
    let wanted = wanted.unwrap_or_else(|| "8b".into());
    let Some(shape) = SHAPES.iter().find(|shape| shape.name == wanted) else {
        println!("no shape `{wanted}`: 0.6b, 1b, 8b or tiny");
        return Ok(());
    };
    let gpu = match Gpu::open(0) {
        Ok(gpu) => gpu,
        Err(error) => {
            println!("nothing timed: {error}");
            return Ok(());
        }
    };
    let card = measure_card(&gpu, shape.name == "tiny")?;
    println!("\n{}: shape {}, medians of 20 by events of the device", gpu.info().name, shape.name);
    println!(
        "the card: copies {:.0} GB/s, bf16 products {:.0} TFLOP/s\n",
        card.bytes_per_second / 1e9,
        card.flops_per_second / 1e12
    );
    println!("| operation | rows | µs | GB/s | TFLOP/s | share of the card |\n|---|---:|---:|---:|---:|---:|");
    for &rows in shape.rows {
        layer::products(&gpu, &card, shape, rows)?;
        layer::others(&gpu, &card, shape, rows)?;
    }
    attention::decode(&gpu, &card, shape)?;
    attention::prefill(&gpu, &card, shape)?;
    sampling::draws(&gpu, &card, shape)
}

fn measure_card(gpu: &Gpu, is_tiny: bool) -> Result<Card, CudaError> {
    let (len, side) = if is_tiny { (1 << 12, 64) } else { (1 << 28, 8192) };
    let (from, mut to) = (gpu.zeroed::<f32>(len)?, gpu.zeroed::<f32>(len)?);
    let copy = median_seconds(gpu, || to.view_mut().copy_from(from.view()))?;
    let (x, w) = (noise(gpu, side * side)?, noise(gpu, side * side)?);
    let mut y = gpu.alloc::<bf16>(side * side)?;
    let square = MatMul::dense(side, side, side);
    let product = median_seconds(gpu, || cuda::matmul(gpu, x.view(), w.view(), y.view_mut(), square))?;
    Ok(Card { bytes_per_second: (8 * len) as f64 / copy, flops_per_second: (2 * side * side * side) as f64 / product })
}

fn report(card: &Card, name: &str, rows: usize, seconds: f64, cost: &Cost) {
    let (bytes, flops) = (cost.bytes as f64 / seconds, cost.flops as f64 / seconds);
    let share = (bytes / card.bytes_per_second).max(flops / card.flops_per_second);
    println!(
        "| {name} | {rows} | {:.1} | {:.0} | {:.1} | {:.0} % |",
        seconds * 1e6,
        bytes / 1e9,
        flops / 1e12,
        share * 100.0
    );
}

/// Median of 20 runs after 3 that do not count, each between two events.
fn median_seconds(gpu: &Gpu, mut work: impl FnMut() -> Result<(), CudaError>) -> Result<f64, CudaError> {
    let (start, end) = (Event::new(gpu)?, Event::new(gpu)?);
    let mut times = Vec::new();
    for run in 0..23 {
        start.record()?;
        work()?;
        end.record()?;
        end.wait()?;
        if run >= 3 {
            times.push(f64::from(end.ms_since(&start)?) / 1e3);
        }
    }
    times.sort_by(f64::total_cmp);
    Ok(times[times.len() / 2].max(1e-9))
}

/// Numbers that are not all alike: power, and with it speed, depends on the bits that change.
fn noise(gpu: &Gpu, len: usize) -> Result<Buffer<bf16>, CudaError> {
    let mut state = 0x2545_f491_4f6c_dd1du64;
    let piece: Vec<bf16> = (0..len.min(1 << 20))
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            bf16::from_f32((state >> 40) as f32 / (1u32 << 24) as f32 - 0.5)
        })
        .collect();
    let mut buffer = gpu.alloc::<bf16>(len)?;
    for start in (0..len).step_by(piece.len().max(1)) {
        let end = len.min(start + piece.len());
        buffer.slice_mut(start..end).write(&piece[..end - start])?;
    }
    Ok(buffer)
}
