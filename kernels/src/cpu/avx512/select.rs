//! The table of AVX-512 kernels: which function for which format and row count.

use super::blocks::{self, Blocks};
use super::codes::{Codes, Q4_0, Q4K, Q5K, Q6K, Q8_0};
use super::dense::{self, Bf16Dot, Bf16Wide, F16, F32, Weights};
use super::quantised;
use super::strided::{Words, strided};
use crate::WeightFormat;
use crate::cpu::tile::{Panels, TileFn, XPacking};
use crate::cpu::{Factors, Kernel, Out, StridedTile, TileInput};

/// Twelve rows times two registers of outputs leave room for the weights.
const ROW_COUNTS: &[usize] = &[1, 2, 3, 4, 6, 8, 12];
/// Twelve sums and twelve integer sums leave room for weights; with more rows sums go to memory and back. Eleven, because 32
/// rows are twice eleven and ten.
const QUANT_ROW_COUNTS: &[usize] = &[1, 2, 3, 4, 6, 8, 10, 11, 12];
/// Few rows have few sums in flight, so they take two panels at once.
const TWO_PANELS_UP_TO: usize = 4;

/// The kernel of one format. `by_blocks`, `dots_bf16`: as [`crate::Level::takes_blocks`], [`crate::Level::dots_bf16`].
pub(in crate::cpu) fn kernel(format: WeightFormat, by_blocks: bool, dots_bf16: bool) -> Kernel {
    let (tile, packing): (TileFn, XPacking) = match format {
        WeightFormat::F32 => (dense_tile::<F32>, XPacking::F32),
        WeightFormat::F16 => (dense_tile::<F16>, XPacking::F32),
        WeightFormat::Bf16 if dots_bf16 => (bf16_dot_tile, XPacking::Bf16Pairs),
        WeightFormat::Bf16 => (dense_tile::<Bf16Wide>, XPacking::Bf16AsF32),
        WeightFormat::Q8_0 if by_blocks => (block_tile::<Q8_0>, XPacking::ByteBlocks),
        WeightFormat::Q4_0 if by_blocks => (block_tile::<Q4_0>, XPacking::ByteBlocks),
        WeightFormat::Q8_0 => (quant_tile::<Q8_0>, XPacking::Bytes),
        WeightFormat::Q4_0 => (quant_tile::<Q4_0>, XPacking::Bytes),
        WeightFormat::Q4K => (block_tile::<Q4K>, XPacking::ByteBlocks),
        WeightFormat::Q5K => (block_tile::<Q5K>, XPacking::ByteBlocks),
        WeightFormat::Q6K => (block_tile::<Q6K>, XPacking::ByteBlocks),
    };
    if format.is_quantised() {
        return Kernel { tile, packing, row_counts: QUANT_ROW_COUNTS, panels: Panels::Any };
    }
    Kernel { tile, packing, row_counts: ROW_COUNTS, panels: Panels::TwoUpTo(TWO_PANELS_UP_TO) }
}

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn dense_tile<W: Weights>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise; the features are enabled.
    unsafe { dense_rows::<W>(input, out) }
}

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn bf16_dot_tile(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise; the features are enabled.
    unsafe { dense_rows::<Bf16Dot>(input, out) }
}

/// # Safety
/// As [`TileFn`], inlined where `W`'s features are enabled.
#[inline(always)]
unsafe fn dense_rows<W: Weights>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise.
    unsafe {
        match (input.m, input.panels) {
            (1, 2) => dense::tile::<W, 1, 4>(input, out),
            (2, 2) => dense::tile::<W, 2, 4>(input, out),
            (3, 2) => dense::tile::<W, 3, 4>(input, out),
            (4, 2) => dense::tile::<W, 4, 4>(input, out),
            (1, _) => dense::tile::<W, 1, 2>(input, out),
            (2, _) => dense::tile::<W, 2, 2>(input, out),
            (3, _) => dense::tile::<W, 3, 2>(input, out),
            (4, _) => dense::tile::<W, 4, 2>(input, out),
            (6, _) => dense::tile::<W, 6, 2>(input, out),
            (8, _) => dense::tile::<W, 8, 2>(input, out),
            (12, _) => dense::tile::<W, 12, 2>(input, out),
            _ => unreachable!("not one of the row counts"),
        }
    }
}

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn quant_tile<F: Codes>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise; the features are enabled.
    unsafe {
        for panel in 0..input.panels {
            let (input, out) = &input.one_panel(out, panel);
            match input.m {
                1 => quantised::tile::<F, 1>(input, out),
                2 => quantised::tile::<F, 2>(input, out),
                3 => quantised::tile::<F, 3>(input, out),
                4 => quantised::tile::<F, 4>(input, out),
                6 => quantised::tile::<F, 6>(input, out),
                8 => quantised::tile::<F, 8>(input, out),
                10 => quantised::tile::<F, 10>(input, out),
                11 => quantised::tile::<F, 11>(input, out),
                12 => quantised::tile::<F, 12>(input, out),
                _ => unreachable!("not one of the row counts"),
            }
        }
    }
}

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn block_tile<F: Blocks>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise; the features are enabled.
    unsafe {
        for panel in 0..input.panels {
            let (input, out) = &input.one_panel(out, panel);
            match input.m {
                1 => blocks::tile::<F, 1>(input, out),
                2 => blocks::tile::<F, 2>(input, out),
                3 => blocks::tile::<F, 3>(input, out),
                4 => blocks::tile::<F, 4>(input, out),
                6 => blocks::tile::<F, 6>(input, out),
                8 => blocks::tile::<F, 8>(input, out),
                10 => blocks::tile::<F, 10>(input, out),
                11 => blocks::tile::<F, 11>(input, out),
                12 => blocks::tile::<F, 12>(input, out),
                _ => unreachable!("not one of the row counts"),
            }
        }
    }
}

/// # Safety
/// As [`crate::cpu::strided_tile`].
pub(in crate::cpu) unsafe fn strided_tile(tile: &StridedTile) {
    // SAFETY: the caller's promise: the level has what the factors need.
    unsafe {
        match tile.factors {
            Factors::F32 => widened_tile::<F32>(tile),
            Factors::WidenedBf16 => widened_tile::<Bf16Wide>(tile),
            Factors::Bf16 => dotted_tile(tile),
        }
    }
}

/// # Safety
/// As [`crate::cpu::strided_tile`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn widened_tile<W: Words>(tile: &StridedTile) {
    // SAFETY: the caller's promise; the features are enabled.
    unsafe { strided_rows::<W>(tile) }
}

/// # Safety
/// As [`crate::cpu::strided_tile`].
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn dotted_tile(tile: &StridedTile) {
    // SAFETY: the caller's promise; the features are enabled.
    unsafe { strided_rows::<Bf16Dot>(tile) }
}

/// # Safety
/// As [`crate::cpu::strided_tile`], inlined where `W`'s features are enabled.
#[inline(always)]
unsafe fn strided_rows<W: Words>(tile: &StridedTile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.m {
            1 => strided::<W, 1>(tile),
            2 => strided::<W, 2>(tile),
            3 => strided::<W, 3>(tile),
            4 => strided::<W, 4>(tile),
            6 => strided::<W, 6>(tile),
            8 => strided::<W, 8>(tile),
            12 => strided::<W, 12>(tile),
            _ => unreachable!("not one of the row counts"),
        }
    }
}
