//! Kernels for machines without any of the vector instruction sets: correct everywhere, fast nowhere.

use super::tile::{Factors, Kernel, Out, Panels, RUN_WORDS, StridedTile, TileInput, XPacking};
use crate::WeightFormat;
use crate::panels::{DENSE_ROWS, QUANT_ROWS, panel_bytes, quant_layout, read_dense, read_run};
use crate::quant::{RUN, RUNS_PER_BLOCK, RawCodes, offset};
use std::ops::Range;

/// The most rows of a tile.
const MAX_ROWS: usize = 12;

/// The kernel of one format.
pub(super) fn kernel(format: WeightFormat) -> Kernel {
    let row_counts = &[1, 2, 3, 4, 6, 8, MAX_ROWS];
    if format.is_quantised() {
        let packing = if format.has_long_blocks() { XPacking::ByteBlocks } else { XPacking::Bytes };
        return Kernel { tile: quant_tile, packing, row_counts, panels: Panels::TwoUpTo(0) };
    }
    let packing = if format == WeightFormat::Bf16 { XPacking::Bf16AsF32 } else { XPacking::F32 };
    Kernel { tile: dense_tile, packing, row_counts, panels: Panels::TwoUpTo(0) }
}

/// # Safety
/// As [`super::tile::TileFn`].
unsafe fn dense_tile(input: &TileInput, out: &Out) {
    let bytes = panel_bytes(input.format, input.cols).expect("the panel exists");
    // SAFETY: the caller's promise: a whole panel, and `m` rows of `cols` words (f32) each.
    let (panel, x) = unsafe {
        let words = input.m * input.to;
        (std::slice::from_raw_parts(input.panel, bytes), std::slice::from_raw_parts(input.x.cast::<f32>(), words))
    };
    for lane in 0..out.lanes.min(DENSE_ROWS) {
        // SAFETY: `lane` and the rows exist in `out`.
        let mut sums = unsafe { begin(out, lane) };
        for k in input.from..input.to {
            let w = read_dense(input.format, panel, lane, k);
            for (sum, x) in sums.iter_mut().zip(&x[k * input.m..(k + 1) * input.m]) {
                *sum = x.mul_add(w, *sum);
            }
        }
        // SAFETY: as above.
        unsafe { finish(out, lane, &sums) };
    }
}

/// # Safety
/// As [`super::tile::TileFn`].
unsafe fn quant_tile(input: &TileInput, out: &Out) {
    let bytes = panel_bytes(input.format, input.cols).expect("the panel exists");
    let (m, runs) = (input.m, input.cols / RUN);
    // SAFETY: the caller's promise: a whole panel, and `m` rows of `RUN_WORDS` words for every run.
    let (panel, x) = unsafe {
        (std::slice::from_raw_parts(input.panel, bytes), std::slice::from_raw_parts(input.x, m * runs * RUN_WORDS))
    };
    let runs_at_once = quant_layout(input.format).runs_per_block;
    for lane in 0..out.lanes.min(QUANT_ROWS) {
        // SAFETY: `lane` and the rows exist in `out`.
        let mut sums = unsafe { begin(out, lane) };
        for (block, x) in x.chunks_exact(runs_at_once * m * RUN_WORDS).enumerate() {
            let raw: [RawCodes; RUNS_PER_BLOCK] = std::array::from_fn(|r| {
                read_run(input.format, panel, lane, block * runs_at_once + r % runs_at_once, runs)
            });
            for (row, sum) in sums.iter_mut().enumerate().take(m) {
                let word = |run: usize, i: usize| x[(run * RUN_WORDS + i) * m + row];
                *sum = if input.format.has_long_blocks() {
                    add_block(*sum, input.format, &raw, word)
                } else {
                    add_run(*sum, input.format, &raw[0], |i| word(0, i))
                };
            }
        }
        // SAFETY: as above.
        unsafe { finish(out, lane, &sums) };
    }
}

/// Exact sum over some groups of four codes; `word`: the activations of the run.
fn dot(format: WeightFormat, w: &RawCodes, word: impl Fn(usize) -> u32, groups: Range<usize>) -> i32 {
    let product = |i: usize| {
        let x = word(i / 4).to_le_bytes()[i % 4].cast_signed();
        i32::from(x) * (i32::from(w.q[i]) - i32::from(offset(format)))
    };
    (4 * groups.start..4 * groups.end).map(product).sum()
}

/// Adds a run with a scale of activations of its own.
fn add_run(sum: f32, format: WeightFormat, w: &RawCodes, word: impl Fn(usize) -> u32) -> f32 {
    (dot(format, w, &word, 0..8) as f32 * f32::from_bits(word(8))).mul_add(w.decoded(format).scale[0], sum)
}

/// Adds a block of runs that share a scale of activations.
fn add_block(
    sum: f32,
    format: WeightFormat,
    runs: &[RawCodes; RUNS_PER_BLOCK],
    word: impl Fn(usize, usize) -> u32,
) -> f32 {
    let (mut in_block, mut minima) = (0.0f32, 0i32);
    for (r, raw) in runs.iter().enumerate() {
        let lift = f32::from_bits(word(r, 9));
        let lifted = |dot: i32| f32::from_bits(lift.to_bits().wrapping_add_signed(dot)) - lift;
        let scale = raw.decoded(format).scale;
        let word_of_run = |i: usize| word(r, i);
        if format == WeightFormat::Q6K {
            in_block = lifted(dot(format, raw, word_of_run, 0..4)).mul_add(scale[0], in_block);
            in_block = lifted(dot(format, raw, word_of_run, 4..8)).mul_add(scale[1], in_block);
        } else {
            in_block = lifted(dot(format, raw, word_of_run, 0..8)).mul_add(scale[0], in_block);
            let [high, low] = [r / 4, 2 + r / 4].map(|at| word(at, 10).to_le_bytes()[r % 4].cast_signed());
            minima += i32::from(raw.min) * (128 * i32::from(high) + i32::from(low));
        }
    }
    if format != WeightFormat::Q6K {
        in_block = (-0.25 * runs[0].d_min.to_f32()).mul_add(minima as f32, in_block);
    }
    in_block.mul_add(f32::from_bits(word(0, 8)), sum)
}

/// # Safety
/// As [`super::tile::TileFn`]; `lane < out.lanes`.
unsafe fn begin(out: &Out, lane: usize) -> [f32; MAX_ROWS] {
    let mut sums = [0.0; MAX_ROWS];
    if out.resumes {
        for (r, sum) in sums.iter_mut().enumerate().take(out.rows) {
            // SAFETY: row and lane exist.
            *sum = unsafe { *out.y.add(r * out.stride + lane) };
        }
    }
    sums
}

/// # Safety
/// As [`super::tile::TileFn`]; `lane < out.lanes`.
unsafe fn finish(out: &Out, lane: usize, sums: &[f32; MAX_ROWS]) {
    for (r, sum) in sums.iter().enumerate().take(out.rows) {
        // SAFETY: row and lane exist, also in a bias that is not null.
        unsafe {
            let bias = if out.bias.is_null() { 0.0 } else { *out.bias.add(lane) };
            *out.y.add(r * out.stride + lane) = sum + bias;
        }
    }
}

/// # Safety
/// As [`super::strided_tile`].
pub(super) unsafe fn strided_tile(tile: &StridedTile) {
    for r in 0..tile.m {
        for i in 0..32 {
            // SAFETY: the caller's promise about sizes.
            unsafe {
                let y = tile.y.add(r * tile.y_stride + i);
                let mut sum = if tile.resumes { *y } else { 0.0 };
                for k in 0..tile.depth {
                    let x = f32::from_bits(*tile.x.add(r * tile.x_stride + k));
                    let w = match tile.factors {
                        Factors::F32 => tile.w.cast::<f32>().add(k * tile.w_stride + i).read_unaligned(),
                        Factors::WidenedBf16 => {
                            let at = 2 * (k / 2 * tile.w_stride + i) + k % 2;
                            f32::from_bits(u32::from(tile.w.cast::<u16>().add(at).read_unaligned()) << 16)
                        }
                        Factors::Bf16 => unreachable!("this level does not multiply bf16 in pairs"),
                    };
                    sum = x.mul_add(w, sum);
                }
                *y = sum;
            }
        }
    }
}
