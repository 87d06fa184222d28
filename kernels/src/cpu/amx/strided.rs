//! Products of plain memory, for attention: up to 32 rows times 32 columns, four tiles of sums.

use super::tiles::{ROW_BYTES, TILE_ROWS};
use std::arch::asm;

/// Bytes of the second factor in one stretch: sixteen rows of 32 pairs.
pub(crate) const STRETCH_BYTES: usize = 16 * PAIR_ROW_BYTES;
/// Bytes of a row of 32 pairs.
const PAIR_ROW_BYTES: usize = 2 * ROW_BYTES;

/// The first factor and the sums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rows {
    /// Rows, as the tiles were shaped for.
    pub(crate) m: usize,
    /// First factor: rows of 32 bf16 a stretch, stretch after stretch.
    pub(crate) x: *const u8,
    /// Bytes from one of its rows to the next.
    pub(crate) x_stride: usize,
    /// First sum: rows of 32.
    pub(crate) y: *mut f32,
    /// Floats from one row of sums to the next.
    pub(crate) y_stride: usize,
}

/// The second factor in one stretch, 32 elements of the sums.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stretch {
    /// `[16][32]` pairs of bf16.
    pub(crate) w: *const u8,
    /// What is wanted soon, as many bytes, fetched meanwhile. Any address; none if null.
    pub(crate) ahead: *const u8,
}

/// Computes `y[r][0..32] = sum over stretches s and k: x[r][32 s + k] * w of s[k][0..32]`.
///
/// # Safety
/// The machine has [`Level::Amx`](crate::Level::Amx) and [`shape`](super::shape) shaped this thread's tiles for `rows.m`
/// rows; the pointers are valid for what [`Rows`] and [`Stretch`] describe; the sums are this thread's alone.
#[inline(always)]
pub(crate) unsafe fn add_up(rows: &Rows, stretches: impl Iterator<Item = Stretch>) {
    // SAFETY: the caller's promise.
    unsafe {
        if rows.m > TILE_ROWS {
            asm!("tilezero tmm0", "tilezero tmm1", "tilezero tmm2", "tilezero tmm3", options(nostack, nomem),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _);
            let mut x = rows.x;
            for stretch in stretches {
                fetch(stretch.ahead);
                add_to_four(x, rows.x_stride, stretch.w);
                x = x.wrapping_add(ROW_BYTES);
            }
            store_first(rows);
            store_second(rows);
        } else {
            asm!("tilezero tmm0", "tilezero tmm1", options(nostack, nomem), out("tmm0") _, out("tmm1") _);
            let mut x = rows.x;
            for stretch in stretches {
                fetch(stretch.ahead);
                add_to_two(x, rows.x_stride, stretch.w);
                x = x.wrapping_add(ROW_BYTES);
            }
            store_first(rows);
        }
    }
}

/// Asks for a stretch of memory, into the second-level cache: more lines can be on their way there than to the first.
///
/// # Safety
/// Any address.
#[inline(always)]
unsafe fn fetch(ahead: *const u8) {
    use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
    if ahead.is_null() {
        return;
    }
    for line in 0..STRETCH_BYTES / ROW_BYTES {
        // SAFETY: fetching reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(line * ROW_BYTES).cast()) };
    }
}

/// # Safety
/// As [`add_up`], with more than sixteen rows.
#[inline(always)]
unsafe fn add_to_four(x: *const u8, x_stride: usize, w: *const u8) {
    let second = x.wrapping_add(TILE_ROWS * x_stride);
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm6, [{w} + {pair}]",
            "tileloadd tmm4, [{x} + {step}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w} + {pair} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            "tileloadd tmm5, [{second} + {step}]",
            "tdpbf16ps tmm2, tmm5, tmm6",
            "tdpbf16ps tmm3, tmm5, tmm7",
            w = in(reg) w, x = in(reg) x, second = in(reg) second, pair = in(reg) PAIR_ROW_BYTES, step = in(reg) x_stride,
            options(nostack, readonly),
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
            out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
        );
    }
}

/// # Safety
/// As [`add_up`].
#[inline(always)]
unsafe fn add_to_two(x: *const u8, x_stride: usize, w: *const u8) {
    // SAFETY: the caller's promise.
    unsafe {
        asm!(
            "tileloadd tmm4, [{x} + {step}]",
            "tileloadd tmm6, [{w} + {pair}]",
            "tdpbf16ps tmm0, tmm4, tmm6",
            "tileloadd tmm7, [{w} + {pair} + 64]",
            "tdpbf16ps tmm1, tmm4, tmm7",
            w = in(reg) w, x = in(reg) x, pair = in(reg) PAIR_ROW_BYTES, step = in(reg) x_stride,
            options(nostack, readonly),
            out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
        );
    }
}

/// Writes the sums of the first sixteen rows.
///
/// # Safety
/// As [`add_up`].
#[inline(always)]
unsafe fn store_first(rows: &Rows) {
    // SAFETY: the caller's promise: rows of two tiles.
    unsafe {
        asm!("tilestored [{y} + {step}], tmm0", "tilestored [{y} + {step} + 64], tmm1",
            y = in(reg) rows.y, step = in(reg) 4 * rows.y_stride, options(nostack));
    }
}

/// Writes the sums of the other rows.
///
/// # Safety
/// As [`add_up`], with more than sixteen rows.
#[inline(always)]
unsafe fn store_second(rows: &Rows) {
    // SAFETY: the caller's promise: rows of two tiles.
    unsafe {
        asm!("tilestored [{y} + {step}], tmm2", "tilestored [{y} + {step} + 64], tmm3",
            y = in(reg) rows.y.add(TILE_ROWS * rows.y_stride), step = in(reg) 4 * rows.y_stride, options(nostack));
    }
}
