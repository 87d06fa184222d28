//! AVX-512 products with the K formats: blocks of 256 weights with integer scales of their runs.
//!
//! Activations have one scale a block, and runs are finer than it by whole powers of two, which the lift of their sums
//! undoes for nothing. So a run costs its products, one subtraction and one multiply-add a row; all else is once a block.

use super::codes::{Codes, Q4K, Q5K, Q6K, add_group, add_groups, float, halves, word};
use super::dense::store;
use super::quantised::{fetch, fetch_ahead, fetch_scales};
use crate::cpu::tile::RUN_WORDS;
use crate::cpu::{Out, TileInput};
use crate::panels::{K_MINS_AT, K_SCALES_AT, Q6K_SCALES_AT, quant_layout};
use crate::quant::{BLOCK, RUNS_PER_BLOCK};
use std::arch::x86_64::*;

/// One K format.
pub(super) trait Blocks: Codes {
    /// Whether the halves of a run have scales of their own. Otherwise runs have minima.
    const TWO_SCALES: bool;
}

impl Blocks for Q4K {
    const TWO_SCALES: bool = false;
}

impl Blocks for Q5K {
    const TWO_SCALES: bool = false;
}

impl Blocks for Q6K {
    const TWO_SCALES: bool = true;
}

/// `M` rows times one panel.
///
/// # Safety
/// As [`crate::cpu::tile::TileFn`], for AVX-512 F, BW and VNNI.
#[inline(always)]
pub(super) unsafe fn tile<F: Blocks, const M: usize>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise: the panel holds codes and scales of every block, `x` holds `M` rows of every run,
    // laid out as `XPacking::Bytes` says.
    unsafe {
        let layout = const { quant_layout(F::FORMAT) };
        let blocks = input.cols / BLOCK;
        let mut scales = input.panel.add(blocks * RUNS_PER_BLOCK * layout.code_bytes);
        let (mut w, mut x, mut ahead) = (input.panel, input.x, input.ahead.at);
        let mut acc = [_mm512_setzero_ps(); M];
        for _ in 0..blocks {
            fetch_scales(scales, input.panel_bytes, layout.scale_bytes);
            let (first, scale) = (x, halves(scales));
            let mut sums = [_mm512_setzero_ps(); M];
            for run in 0..RUNS_PER_BLOCK {
                fetch(w, layout.code_bytes);
                ahead = fetch_ahead(ahead, input.ahead.lines_per_run);
                add_run::<F, M>(&mut sums, w, x, scale, scales, run);
                w = w.add(layout.code_bytes);
                x = x.add(RUN_WORDS * M);
            }
            if !F::TWO_SCALES {
                minima_of_block::<M>(&mut sums, |i, m| first.add((i * RUN_WORDS + 10) * M + m).read(), scales);
            }
            for (m, sum) in acc.iter_mut().enumerate() {
                *sum = _mm512_fmadd_ps(sums[m], float::<M>(first, 8, m), *sum);
            }
            scales = scales.add(layout.scale_bytes);
        }
        for (m, &sum) in acc.iter().enumerate() {
            if m < out.rows {
                store(out, m, 0, sum);
            }
        }
    }
}

/// Adds one run of `M` rows to the sums of its block. `x`: the first row's first word of the run, words of a row `M` apart;
/// `scale`: the block's; `scales`: where its bytes are.
///
/// # Safety
/// AVX-512 F, BW and VNNI; `w` has the code bytes of a run, `x` has `RUN_WORDS` words a row; `scales` are those of the block,
/// which has run `run`.
#[inline(always)]
unsafe fn add_run<F: Blocks, const M: usize>(
    sums: &mut [__m512; M],
    w: *const u8,
    x: *const u32,
    scale: __m512,
    scales: *const u8,
    run: usize,
) {
    // SAFETY: the caller's promise; the offsets are those of `panels`.
    unsafe {
        if F::TWO_SCALES {
            let at = scales.add(Q6K_SCALES_AT + run * 32);
            let mut dots: [__m512i; M] = std::array::from_fn(|m| word::<M>(x, 10, m));
            add_group::<F, M>(&mut dots, w, 0, x);
            add_group::<F, M>(&mut dots, w, 1, x);
            add_group::<F, M>(&mut dots, w, 2, x);
            add_group::<F, M>(&mut dots, w, 3, x);
            add_lifted::<M>(sums, &dots, _mm512_mul_ps(scale, signed_bytes(at)), x);
            dots = std::array::from_fn(|m| word::<M>(x, 11, m));
            add_group::<F, M>(&mut dots, w, 4, x);
            add_group::<F, M>(&mut dots, w, 5, x);
            add_group::<F, M>(&mut dots, w, 6, x);
            add_group::<F, M>(&mut dots, w, 7, x);
            add_lifted::<M>(sums, &dots, _mm512_mul_ps(scale, signed_bytes(at.add(16))), x);
        } else {
            let small = unsigned_bytes(scales.add(K_SCALES_AT + run * 16));
            let mut dots: [__m512i; M] = std::array::from_fn(|m| word::<M>(x, 9, m));
            add_groups::<F, M>(&mut dots, w, x);
            add_lifted::<M>(sums, &dots, _mm512_mul_ps(scale, small), x);
        }
    }
}

/// Adds integer sums that started at the bits of their row's lift, `1.5 * 2^(23 - shift)`: without the lift they are
/// `sum / 2^shift`, exactly.
///
/// # Safety
/// AVX-512 F; `x` has `RUN_WORDS` words a row.
#[inline(always)]
unsafe fn add_lifted<const M: usize>(sums: &mut [__m512; M], dots: &[__m512i; M], scale: __m512, x: *const u32) {
    // SAFETY: the caller's promise.
    unsafe {
        for (m, sum) in sums.iter_mut().enumerate() {
            let dot = _mm512_sub_ps(_mm512_castsi512_ps(dots[m]), float::<M>(x, 9, m));
            *sum = _mm512_fmadd_ps(dot, scale, *sum);
        }
    }
}

/// Takes the minima of a block off its sums: four products with the sums of a row's codes, which are in quarters of the
/// block's scale and in two bytes each. `word`: which of [`ByteBlock::put`](crate::cpu::activations), of which row.
///
/// # Safety
/// AVX-512 F and VNNI; `scales` are those of a `Q4K` or `Q5K` block.
#[inline(always)]
pub(in crate::cpu) unsafe fn minima_of_block<const M: usize>(
    sums: &mut [__m512; M],
    word: impl Fn(usize, usize) -> u32,
    scales: *const u8,
) {
    // SAFETY: the caller's promise; the offsets are those of `panels`.
    unsafe {
        let first = _mm512_loadu_si512(scales.add(K_MINS_AT).cast());
        let second = _mm512_loadu_si512(scales.add(K_MINS_AT + 64).cast());
        let scale = _mm512_mul_ps(halves(scales.add(32)), _mm512_set1_ps(0.25));
        for (row, sum) in sums.iter_mut().enumerate() {
            let part = |index: usize| _mm512_set1_epi32(word(index, row).cast_signed());
            let high = _mm512_dpbusd_epi32(_mm512_setzero_si512(), first, part(0));
            let high = _mm512_slli_epi32::<7>(_mm512_dpbusd_epi32(high, second, part(1)));
            let all = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(high, first, part(2)), second, part(3));
            *sum = _mm512_fnmadd_ps(scale, _mm512_cvtepi32_ps(all), *sum);
        }
    }
}

/// Sixteen signed bytes as floats.
///
/// # Safety
/// AVX-512 F; 16 readable bytes.
#[inline(always)]
pub(in crate::cpu) unsafe fn signed_bytes(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(at.cast()))) }
}

/// Sixteen bytes as floats.
///
/// # Safety
/// As [`signed_bytes`].
#[inline(always)]
pub(in crate::cpu) unsafe fn unsigned_bytes(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(at.cast()))) }
}
