//! The table of AVX2 kernels: which function for which format and row count.

use super::dense::{self, Bf16, F16, F32, Weights};
use super::quantised::{self, number};
use crate::WeightFormat;
use crate::cpu::tile::{TileFn, XPacking};
use crate::cpu::{Kernel, Out, StridedTile, TileInput};

const DENSE_ROW_COUNTS: &[usize] = &[1, 2, 4, 6];
/// A run's weights take half of the registers.
const QUANT_ROW_COUNTS: &[usize] = &[1, 2, 4];

/// The kernel of one format.
pub(in crate::cpu) fn kernel(format: WeightFormat) -> Kernel {
    let (tile, packing): (TileFn, XPacking) = match format {
        WeightFormat::F32 => (dense_tile::<F32>, XPacking::F32),
        WeightFormat::F16 => (dense_tile::<F16>, XPacking::F32),
        WeightFormat::Bf16 => (dense_tile::<Bf16>, XPacking::Bf16AsF32),
        WeightFormat::Q8_0 => (quant_tile::<{ number(WeightFormat::Q8_0) }>, XPacking::Bytes),
        WeightFormat::Q4_0 => (quant_tile::<{ number(WeightFormat::Q4_0) }>, XPacking::Bytes),
        WeightFormat::Q4K => (quant_tile::<{ number(WeightFormat::Q4K) }>, XPacking::Bytes),
        WeightFormat::Q5K => (quant_tile::<{ number(WeightFormat::Q5K) }>, XPacking::Bytes),
        WeightFormat::Q6K => (quant_tile::<{ number(WeightFormat::Q6K) }>, XPacking::Bytes),
    };
    let row_counts = if format.is_quantised() { QUANT_ROW_COUNTS } else { DENSE_ROW_COUNTS };
    Kernel { tile, packing, row_counts, two_panels_up_to: 0 }
}

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn dense_tile<W: Weights>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise; the features are enabled.
    unsafe {
        match input.m {
            1 => dense::tile::<W, 1, 4>(input, out, 0),
            2 => dense::tile::<W, 2, 4>(input, out, 0),
            4 => {
                dense::tile::<W, 4, 2>(input, out, 0);
                dense::tile::<W, 4, 2>(input, out, 2);
            }
            6 => {
                dense::tile::<W, 6, 2>(input, out, 0);
                dense::tile::<W, 6, 2>(input, out, 2);
            }
            _ => unreachable!("not one of the row counts"),
        }
    }
}

/// # Safety
/// As [`TileFn`].
#[target_feature(enable = "avx2,fma,f16c")]
unsafe fn quant_tile<const F: u8>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise; the features are enabled.
    unsafe {
        match input.m {
            1 => quantised::tile::<F, 1>(input, out),
            2 => quantised::tile::<F, 2>(input, out),
            4 => quantised::tile::<F, 4>(input, out),
            _ => unreachable!("not one of the row counts"),
        }
    }
}

/// # Safety
/// As [`crate::cpu::f32_tile`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn f32_tile(tile: &StridedTile) {
    /// # Safety
    /// As the function around it.
    #[inline(always)]
    unsafe fn both<const M: usize, const PACKED: bool>(tile: &StridedTile) {
        // SAFETY: the caller's promise.
        unsafe {
            dense::strided::<M, 2, PACKED>(tile, 0);
            dense::strided::<M, 2, PACKED>(tile, 2);
        }
    }
    // SAFETY: the caller's promise; the features are enabled.
    unsafe {
        match (tile.m, tile.x_is_packed) {
            (1, true) => dense::strided::<1, 4, true>(tile, 0),
            (2, true) => dense::strided::<2, 4, true>(tile, 0),
            (4, true) => both::<4, true>(tile),
            (6, true) => both::<6, true>(tile),
            (1, false) => dense::strided::<1, 4, false>(tile, 0),
            (2, false) => dense::strided::<2, 4, false>(tile, 0),
            (4, false) => both::<4, false>(tile),
            (6, false) => both::<6, false>(tile),
            _ => unreachable!("not one of the row counts"),
        }
    }
}
