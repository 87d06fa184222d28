//! AVX-512 products with quantised weights that have one scale a run.

use super::codes::{Codes, add_groups, float, halves, word};
use super::dense::{PREFETCH_BYTES, store};
use crate::cpu::tile::RUN_WORDS;
use crate::cpu::{Out, TileInput};
use crate::panels::quant_layout;
use crate::quant::RUN;
use std::arch::x86_64::*;

/// `M` rows times one panel.
///
/// # Safety
/// As [`crate::cpu::tile::TileFn`], for AVX-512 F, BW and VNNI.
#[inline(always)]
pub(super) unsafe fn tile<F: Codes, const M: usize>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise: the panel holds codes and scales of every run, `x` holds `M` rows of every run,
    // laid out as `XPacking::Bytes` says.
    unsafe {
        let layout = const { quant_layout(F::FORMAT) };
        let runs = input.cols / RUN;
        // Pointers that move: products with an operand at a sum of two registers are split in two by the processor.
        let (mut w, mut x, mut ahead) = (input.panel, input.x, input.ahead.at);
        let mut scales = input.panel.add(runs * layout.code_bytes);
        let mut acc = [_mm512_setzero_ps(); M];
        for _ in 0..runs {
            fetch(w, layout.code_bytes);
            ahead = fetch_ahead(ahead, input.ahead.lines_per_run);
            fetch_scales(scales, input.panel_bytes, layout.scale_bytes);
            let mut dots: [__m512i; M] = std::array::from_fn(|m| word::<M>(x, 10, m));
            add_groups::<F, M>(&mut dots, w, x);
            add_scaled::<M>(&mut acc, &dots, halves(scales), x);
            w = w.add(layout.code_bytes);
            x = x.add(RUN_WORDS * M);
            scales = scales.add(layout.scale_bytes);
        }
        for (m, &sum) in acc.iter().enumerate() {
            if m < out.rows {
                store(out, m, 0, sum);
            }
        }
    }
}

/// Fetches the codes that will be used soon, as far ahead as memory needs.
///
/// # Safety
/// None but SSE; any address.
#[inline(always)]
pub(super) unsafe fn fetch(w: *const u8, code_bytes: usize) {
    for line in 0..code_bytes / 64 {
        // SAFETY: a prefetch may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(w.wrapping_add(PREFETCH_BYTES + 64 * line).cast()) };
    }
}

/// Fetches the scales of the next panel, which would be waited for when it begins: they lie behind its codes.
///
/// # Safety
/// As [`fetch`].
#[inline(always)]
pub(super) unsafe fn fetch_scales(scales: *const u8, panel_bytes: usize, scale_bytes: usize) {
    for line in 0..scale_bytes.div_ceil(64) {
        // SAFETY: a prefetch may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(scales.wrapping_add(panel_bytes + 64 * line).cast()) };
    }
}

/// Fetches some lines of what comes after this panel group; returns where the next ones are.
///
/// # Safety
/// As [`fetch`].
#[inline(always)]
pub(in crate::cpu) unsafe fn fetch_ahead(mut ahead: *const u8, lines: usize) -> *const u8 {
    for _ in 0..lines {
        // SAFETY: a prefetch may name any address.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(ahead.cast()) };
        ahead = ahead.wrapping_add(64);
    }
    ahead
}

/// Adds integer sums, scaled. They started at the bits of [`LIFT`](crate::cpu::tile::LIFT): read as a float they are
/// `LIFT + sum`, and one multiply-add takes the lift off and scales. Converting would be one more step of the units that
/// make the products.
///
/// # Safety
/// AVX-512 F; `x` has `RUN_WORDS` words a row.
#[inline(always)]
unsafe fn add_scaled<const M: usize>(acc: &mut [__m512; M], dots: &[__m512i; M], scale: __m512, x: *const u32) {
    // SAFETY: the caller's promise.
    unsafe {
        for (m, sum) in acc.iter_mut().enumerate() {
            let dot = _mm512_fmsub_ps(_mm512_castsi512_ps(dots[m]), float::<M>(x, 8, m), float::<M>(x, 9, m));
            *sum = _mm512_fmadd_ps(dot, scale, *sum);
        }
    }
}
