//! The table of AVX2 kernels: which function for which format and row count.

use super::dense::{self, Bf16, F16, F32, Weights};
use super::quantised::{self, number};
use super::strided::{Words, strided};
use crate::WeightFormat;
use crate::cpu::tile::{Panels, TileFn, XPacking};
use crate::cpu::{Factors, Kernel, Out, StridedTile, TileInput};

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
        WeightFormat::Q4K => (quant_tile::<{ number(WeightFormat::Q4K) }>, XPacking::ByteBlocks),
        WeightFormat::Q5K => (quant_tile::<{ number(WeightFormat::Q5K) }>, XPacking::ByteBlocks),
        WeightFormat::Q6K => (quant_tile::<{ number(WeightFormat::Q6K) }>, XPacking::ByteBlocks),
    };
    let row_counts = if format.is_quantised() { QUANT_ROW_COUNTS } else { DENSE_ROW_COUNTS };
    Kernel { tile, packing, row_counts, panels: Panels::TwoUpTo(0) }
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
/// As [`crate::cpu::strided_tile`].
#[target_feature(enable = "avx2,fma,f16c")]
pub(in crate::cpu) unsafe fn strided_tile(tile: &StridedTile) {
    // SAFETY: the caller's promise; the features are enabled.
    unsafe {
        match tile.factors {
            Factors::F32 => strided_rows::<F32>(tile),
            Factors::WidenedBf16 => strided_rows::<Bf16>(tile),
            Factors::Bf16 => unreachable!("this level does not multiply bf16 in pairs"),
        }
    }
}

/// # Safety
/// As [`crate::cpu::strided_tile`], inlined where AVX2 and FMA are enabled.
#[inline(always)]
unsafe fn strided_rows<W: Words>(tile: &StridedTile) {
    // SAFETY: the caller's promise.
    unsafe {
        match tile.m {
            1 => strided::<W, 1, 4>(tile, 0),
            2 => strided::<W, 2, 4>(tile, 0),
            4 => {
                strided::<W, 4, 2>(tile, 0);
                strided::<W, 4, 2>(tile, 2);
            }
            6 => {
                strided::<W, 6, 2>(tile, 0);
                strided::<W, 6, 2>(tile, 2);
            }
            _ => unreachable!("not one of the row counts"),
        }
    }
}
