//! A product of bf16: up to 32 rows times one panel of 32 outputs, four tiles of sums.

use super::tiles::{ROW_BYTES, TILE_ROWS};
pub(crate) use crate::cpu::tile::BF16_STRETCH as STRETCH;
use crate::panels::DENSE_ROWS;
use std::arch::asm;

/// Bytes of a dense bf16 panel for a pair of inputs.
pub(crate) const PAIR_BYTES: usize = 4 * DENSE_ROWS;
/// Bytes of a panel for one stretch of inputs, the depth of a tile.
const STRETCH_BYTES: usize = STRETCH / 2 * PAIR_BYTES;

/// The tiles of sums in memory: `[row half * 2 + output half][row][output]`.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
pub(crate) struct Sums([[[f32; TILE_ROWS]; TILE_ROWS]; 4]);

/// What [`multiply`] adds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileProduct {
    /// A dense bf16 panel, from the first input to be added on.
    pub(crate) w: *const u8,
    /// `m` rows laid out as [`XPacking::Bf16Rows`](crate::cpu::XPacking::Bf16Rows), from the same input on.
    pub(crate) x: *const u32,
    /// Rows, as the tiles were shaped for.
    pub(crate) m: usize,
    /// Inputs to add. Where they end inside a stretch, the panel ends, too.
    pub(crate) inputs: usize,
    /// Whether to go on from the sums found instead of from zero.
    pub(crate) resumes: bool,
}

/// Adds the products to `sums`.
///
/// # Safety
/// The machine has [`Level::Amx`](crate::Level::Amx) and [`shape`](super::shape) shaped this thread's tiles for
/// `product.m` rows; the pointers are valid for what [`TileProduct`] describes; `sums` are this thread's alone.
pub(crate) unsafe fn multiply(product: &TileProduct, sums: *mut Sums) {
    // SAFETY: the caller's promise: `x` holds `m` rows of 64 bytes a stretch, `sums` four tiles of 1 KiB.
    unsafe {
        let has_two = product.m > TILE_ROWS;
        if product.resumes {
            load(sums, has_two);
        } else {
            clear(has_two);
        }
        let whole = product.inputs / STRETCH;
        add(product.w, product.x.cast(), product.m, whole);
        if !product.inputs.is_multiple_of(STRETCH) {
            // What follows the panel is no zero, and may be no number.
            let mut rest = [0u8; STRETCH_BYTES];
            let bytes = (product.inputs % STRETCH).div_ceil(2) * PAIR_BYTES;
            product.w.add(whole * STRETCH_BYTES).copy_to_nonoverlapping(rest.as_mut_ptr(), bytes);
            add(rest.as_ptr(), product.x.add(whole * product.m * ROW_BYTES / 4).cast(), product.m, 1);
        }
        store(sums, has_two);
    }
}

/// Adds `stretches` stretches of inputs to the tiles of sums.
///
/// # Safety
/// Tiles are shaped for `m` rows; `w` and `x` have `stretches` stretches.
#[inline(always)]
unsafe fn add(w: *const u8, x: *const u8, m: usize, stretches: usize) {
    if stretches == 0 {
        return;
    }
    // One stretch after the other: its products, weights fetched ahead across the ends of pages, the next one's places.
    macro_rules! stretches {
        ($($product:literal),+; $($tile:tt),+) => {
            asm!(
                "2:",
                $($product,)+
                ".set ahead, 4096",
                ".rept 32",
                "prefetcht0 [{w} + ahead]",
                ".set ahead, ahead + 64",
                ".endr",
                "add {w}, 2048",
                "add {x}, {step}",
                "dec {n}",
                "jnz 2b",
                w = inout(reg) w => _, x = inout(reg) x => _, n = inout(reg) stretches => _,
                pair = in(reg) PAIR_BYTES, row = in(reg) ROW_BYTES, step = in(reg) m * ROW_BYTES,
                options(nostack, readonly),
                $(out($tile) _,)+
            )
        };
    }
    // SAFETY: the caller's promise; prefetching reads nothing.
    unsafe {
        if m > TILE_ROWS {
            stretches!(
                "tileloadd tmm6, [{w} + {pair}]",
                "tileloadd tmm4, [{x} + {row}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {pair} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7",
                "tileloadd tmm5, [{x} + {row} + 1024]",
                "tdpbf16ps tmm2, tmm5, tmm6",
                "tdpbf16ps tmm3, tmm5, tmm7";
                "tmm0", "tmm1", "tmm2", "tmm3", "tmm4", "tmm5", "tmm6", "tmm7"
            );
        } else {
            stretches!(
                "tileloadd tmm4, [{x} + {row}]",
                "tileloadd tmm6, [{w} + {pair}]",
                "tdpbf16ps tmm0, tmm4, tmm6",
                "tileloadd tmm7, [{w} + {pair} + 64]",
                "tdpbf16ps tmm1, tmm4, tmm7";
                "tmm0", "tmm1", "tmm4", "tmm6", "tmm7"
            );
        }
    }
}

/// # Safety
/// Tiles are shaped; `has_two`: for more than 16 rows.
#[inline(always)]
unsafe fn clear(has_two: bool) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem), out("tmm0") _, out("tmm1") _);
        if has_two {
            asm!("tilezero tmm2", "tilezero tmm3", options(nostack, nomem), out("tmm2") _, out("tmm3") _);
        }
    }
}

/// # Safety
/// As [`clear`]; `sums` can be read.
#[inline(always)]
unsafe fn load(sums: *const Sums, has_two: bool) {
    // SAFETY: four tiles of 1 KiB; the caller's promise.
    unsafe {
        asm!("tileloadd tmm0, [{s} + {row}]", "tileloadd tmm1, [{s} + {row} + 1024]",
            s = in(reg) sums, row = in(reg) ROW_BYTES, options(nostack, readonly), out("tmm0") _, out("tmm1") _);
        if has_two {
            asm!("tileloadd tmm2, [{s} + {row} + 2048]", "tileloadd tmm3, [{s} + {row} + 3072]",
                s = in(reg) sums, row = in(reg) ROW_BYTES, options(nostack, readonly), out("tmm2") _, out("tmm3") _);
        }
    }
}

/// # Safety
/// As [`clear`]; `sums` can be written.
#[inline(always)]
unsafe fn store(sums: *mut Sums, has_two: bool) {
    // SAFETY: four tiles of 1 KiB; the caller's promise.
    unsafe {
        asm!("tilestored [{s} + {row}], tmm0", "tilestored [{s} + {row} + 1024], tmm1",
            s = in(reg) sums, row = in(reg) ROW_BYTES, options(nostack));
        if has_two {
            asm!("tilestored [{s} + {row} + 2048], tmm2", "tilestored [{s} + {row} + 3072], tmm3",
                s = in(reg) sums, row = in(reg) ROW_BYTES, options(nostack));
        }
    }
}
