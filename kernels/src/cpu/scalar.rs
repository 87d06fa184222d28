//! Kernels for machines without any of the vector instruction sets: correct everywhere, fast nowhere.

use super::tile::{Kernel, Out, RUN_WORDS, StridedTile, TileInput, XPacking};
use crate::WeightFormat;
use crate::kv::KvDtype;
use crate::panels::{DENSE_ROWS, QUANT_ROWS, panel_bytes, read_dense, read_run};
use crate::quant::{RUN, offset};

/// The most rows of a tile.
const MAX_ROWS: usize = 12;

/// The kernel of one format.
pub(super) fn kernel(format: WeightFormat) -> Kernel {
    let row_counts = &[1, 2, 3, 4, 6, 8, MAX_ROWS];
    if format.is_quantised() {
        return Kernel { tile: quant_tile, packing: XPacking::Bytes, row_counts, two_panels_up_to: 0 };
    }
    let packing = if format == WeightFormat::Bf16 { XPacking::Bf16AsF32 } else { XPacking::F32 };
    Kernel { tile: dense_tile, packing, row_counts, two_panels_up_to: 0 }
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
    for lane in 0..out.lanes.min(QUANT_ROWS) {
        // SAFETY: `lane` and the rows exist in `out`.
        let mut sums = unsafe { begin(out, lane) };
        for (run, x) in x.chunks_exact(m * RUN_WORDS).enumerate() {
            let raw = read_run(input.format, panel, lane, run, runs);
            let w = raw.decoded(input.format);
            for (row, sum) in sums.iter_mut().enumerate().take(m) {
                let word = |i: usize| x[i * m + row];
                let dot = |groups: std::ops::Range<usize>| -> i32 {
                    let product = |i: usize| {
                        let x = word(i / 4).to_le_bytes()[i % 4].cast_signed();
                        i32::from(x) * (i32::from(w.q[i]) - i32::from(offset(input.format)))
                    };
                    (4 * groups.start..4 * groups.end).map(product).sum()
                };
                let x_scale = f32::from_bits(word(8));
                match input.format {
                    WeightFormat::Q6K => {
                        *sum = (dot(0..4) as f32 * x_scale).mul_add(w.scale[0], *sum);
                        *sum = (dot(4..8) as f32 * x_scale).mul_add(w.scale[1], *sum);
                    }
                    _ => *sum = (dot(0..8) as f32 * x_scale).mul_add(w.scale[0], *sum),
                }
                if matches!(input.format, WeightFormat::Q4K | WeightFormat::Q5K) {
                    *sum = (-w.min).mul_add(f32::from_bits(word(10)), *sum);
                }
            }
        }
        // SAFETY: as above.
        unsafe { finish(out, lane, &sums) };
    }
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
/// As [`super::f32_tile`].
pub(super) unsafe fn f32_tile(tile: &StridedTile) {
    for r in 0..tile.m {
        for i in 0..32 {
            // SAFETY: the caller's promise about sizes.
            unsafe {
                let y = tile.y.add(r * tile.y_stride + i);
                let mut sum = if tile.resumes { *y } else { 0.0 };
                for k in 0..tile.depth {
                    let x = *tile.x.add(r * tile.x_stride + k);
                    let at = k * tile.w_stride + i;
                    let w = match tile.w_dtype {
                        KvDtype::F32 => tile.w.cast::<f32>().add(at).read_unaligned(),
                        KvDtype::Bf16 => f32::from_bits(u32::from(tile.w.cast::<u16>().add(at).read_unaligned()) << 16),
                    };
                    sum = x.mul_add(w, sum);
                }
                *y = sum;
            }
        }
    }
}
