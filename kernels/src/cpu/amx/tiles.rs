//! The tile registers: asking the system for them, shaping them, giving them back.
//!
//! Eight tiles of up to 16 rows of 64 bytes. Kernels of bf16: 0–3 hold sums, 4 and 5 activations (first and second sixteen
//! rows), 6 and 7 weights. Of bytes: 0 and 1 hold sums, 2 and 3 activations, 4 and 5 weights. No compiler touches them unasked, so they keep their contents between two
//! pieces of assembly.

use super::bytes::part_inputs;
use crate::WeightFormat;
use std::arch::asm;
use std::arch::x86_64::__cpuid_count;

/// Rows of a tile.
pub(super) const TILE_ROWS: usize = 16;
/// Rows of activations that tiles are shaped for at most.
pub(crate) const MOST_ROWS: usize = 2 * TILE_ROWS;
/// Bytes of a row, four for every column of sums.
pub(super) const ROW_BYTES: usize = 64;

/// What the processor is told about the tiles (palette 1).
#[repr(C, align(64))]
struct Shapes {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    row_bytes: [u16; 16],
    rows: [u8; 16],
}

impl Shapes {
    const NONE: Self = Self { palette: 1, start_row: 0, reserved: [0; 14], row_bytes: [0; 16], rows: [0; 16] };

    fn set(&mut self, tile: usize, rows: usize, row_bytes: usize) {
        if rows > 0 {
            self.rows[tile] = rows as u8;
            self.row_bytes[tile] = row_bytes as u16;
        }
    }

    /// For products of bf16 with `m` rows of activations, at most 32.
    fn of(m: usize) -> Self {
        let mut shapes = Self::NONE;
        for (half, rows) in [m.min(TILE_ROWS), m.saturating_sub(TILE_ROWS)].into_iter().enumerate() {
            for tile in [2 * half, 2 * half + 1, 4 + half] {
                shapes.set(tile, rows, ROW_BYTES);
            }
        }
        shapes.set(6, TILE_ROWS, ROW_BYTES);
        shapes.set(7, TILE_ROWS, ROW_BYTES);
        shapes
    }

    /// For products of bytes: `m` rows of activations, at most 16, `inputs` inputs at a time.
    fn of_bytes(m: usize, inputs: usize) -> Self {
        let mut shapes = Self::NONE;
        for turn in 0..2 {
            shapes.set(turn, m, ROW_BYTES);
            shapes.set(2 + turn, m, inputs);
            shapes.set(4 + turn, inputs / 4, ROW_BYTES);
        }
        shapes
    }

    /// Shapes this thread's tiles, and clears them.
    ///
    /// # Safety
    /// [`are_available`] said yes.
    unsafe fn apply(&self) {
        // SAFETY: 64 readable bytes; the caller's promise.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const *self, options(nostack, readonly),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _);
        }
    }
}

/// Shapes this thread's tiles for products of bf16 with `m` rows of activations, at most 32, and clears them.
///
/// # Safety
/// [`are_available`] said yes.
pub(crate) unsafe fn shape(m: usize) {
    // SAFETY: the caller's promise.
    unsafe { Shapes::of(m).apply() }
}

/// Shapes this thread's tiles for [`multiply_bytes`](super::multiply_bytes) with `m` rows, at most 16, and clears them.
///
/// # Safety
/// [`are_available`] said yes.
pub(crate) unsafe fn shape_for_bytes(format: WeightFormat, m: usize) {
    // SAFETY: the caller's promise.
    unsafe { Shapes::of_bytes(m, part_inputs(format)).apply() }
}

/// Gives the tiles back, so that the system need not keep them when it switches threads.
///
/// # Safety
/// [`are_available`] said yes.
pub(crate) unsafe fn release() {
    // SAFETY: the caller's promise.
    unsafe { asm!("tilerelease", options(nostack, nomem)) }
}

/// Whether the processor has tiles of bytes and of bf16, and the system lets this process use them. Asks for it.
pub(in crate::cpu) fn are_available() -> bool {
    /// Bits of leaf 7, register EDX: tiles, products of bytes, products of bf16.
    const FEATURES: u32 = 1 << 24 | 1 << 25 | 1 << 22;
    __cpuid_count(7, 0).edx & FEATURES == FEATURES && is_permitted()
}

/// Linux saves the tiles only for processes that asked; asking again is allowed.
#[cfg(target_os = "linux")]
fn is_permitted() -> bool {
    const ARCH_REQ_XCOMP_PERM: libc::c_long = 0x1023;
    const XFEATURE_XTILEDATA: libc::c_long = 18;
    // SAFETY: changes nothing but what this process may use; an old kernel answers with an error.
    unsafe { libc::syscall(libc::SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0 }
}

#[cfg(not(target_os = "linux"))]
fn is_permitted() -> bool {
    false
}
