//! AVX-512 products with activations that have one scale a block of 256: of the K formats, whose runs have integer scales in
//! blocks as long, and of formats with a scale a run where that is faster.
//!
//! Activations have one scale a block, and runs are finer than it by whole powers of two, which the lift of their sums
//! undoes for nothing. So a run costs its products, one subtraction and one multiply-add a row; all else is once a block.

use super::codes::{Codes, Q4_0, Q4K, Q5K, Q6K, Q8_0, add_group, add_groups, float, halves, word};
use super::dense::store;
use super::quantised::{fetch, fetch_ahead, fetch_scales};
use crate::cpu::tile::RUN_WORDS;
use crate::cpu::{Out, TileInput};
use crate::panels::{K_MINS_AT, K_SCALES_AT, Q6K_SCALES_AT, quant_layout};
use crate::quant::{BLOCK, RUNS_PER_BLOCK};
use std::arch::x86_64::*;

/// What scales the weights of a block have.
#[derive(PartialEq, Eq)]
pub(super) enum Scales {
    /// Every run a half.
    Runs,
    /// One half, and every run a byte and a minimum.
    BytesAndMinima,
    /// One half, and either half of a run a signed byte.
    TwoBytes,
}

/// A format as a product by blocks sees it.
pub(super) trait Blocks: Codes {
    /// Its scales.
    const SCALES: Scales;
}

impl Blocks for Q8_0 {
    const SCALES: Scales = Scales::Runs;
}

impl Blocks for Q4_0 {
    const SCALES: Scales = Scales::Runs;
}

impl Blocks for Q4K {
    const SCALES: Scales = Scales::BytesAndMinima;
}

impl Blocks for Q5K {
    const SCALES: Scales = Scales::BytesAndMinima;
}

impl Blocks for Q6K {
    const SCALES: Scales = Scales::TwoBytes;
}

/// `M` rows times one panel.
///
/// # Safety
/// As [`crate::cpu::tile::TileFn`], for AVX-512 F, BW and VNNI.
#[inline(always)]
pub(super) unsafe fn tile<F: Blocks, const M: usize>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise: the panel holds codes and scales of every block, `x` holds `M` rows of every run,
    // laid out as `XPacking::ByteBlocks` says.
    unsafe {
        let layout = const { quant_layout(F::FORMAT) };
        let scale_bytes = layout.scale_bytes * (RUNS_PER_BLOCK / layout.runs_per_block);
        let blocks = input.cols / BLOCK;
        let mut scales = input.panel.add(blocks * RUNS_PER_BLOCK * layout.code_bytes);
        let (mut w, mut x, mut ahead) = (input.panel, input.x, input.ahead.at);
        let mut acc = [_mm512_setzero_ps(); M];
        for _ in 0..blocks {
            fetch_scales(scales, input.panel_bytes, scale_bytes);
            let first = x;
            let mut sums = [_mm512_setzero_ps(); M];
            for run in 0..RUNS_PER_BLOCK {
                fetch(w, layout.code_bytes);
                ahead = fetch_ahead(ahead, input.ahead.lines_per_run);
                add_run::<F, M>(&mut sums, w, x, scales, run);
                w = w.add(layout.code_bytes);
                x = x.add(RUN_WORDS * M);
            }
            if F::SCALES == Scales::BytesAndMinima {
                minima_of_block::<M>(&mut sums, |i, m| first.add((i * RUN_WORDS + 10) * M + m).read(), scales);
            }
            for (m, sum) in acc.iter_mut().enumerate() {
                *sum = _mm512_fmadd_ps(sums[m], float::<M>(first, 8, m), *sum);
            }
            scales = scales.add(scale_bytes);
        }
        for (m, &sum) in acc.iter().enumerate() {
            if m < out.rows {
                store(out, m, 0, sum);
            }
        }
    }
}

/// Adds one run of `M` rows to the sums of its block. `x`: the first row's first word of the run, words of a row `M` apart;
/// `scales`: those of the block.
///
/// # Safety
/// AVX-512 F, BW and VNNI; `w` has the code bytes of a run, `x` has `RUN_WORDS` words a row; `scales` are those of the block,
/// which has run `run`.
#[inline(always)]
unsafe fn add_run<F: Blocks, const M: usize>(
    sums: &mut [__m512; M],
    w: *const u8,
    x: *const u32,
    scales: *const u8,
    run: usize,
) {
    // SAFETY: the caller's promise; the offsets are those of `panels`.
    unsafe {
        if F::SCALES == Scales::TwoBytes {
            let (at, scale) = (scales.add(Q6K_SCALES_AT + run * 32), halves(scales));
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
            let (scale, start) = match F::SCALES {
                Scales::Runs => (halves(scales.add(run * 32)), 10),
                _ => (_mm512_mul_ps(halves(scales), unsigned_bytes(scales.add(K_SCALES_AT + run * 16))), 9),
            };
            let mut dots: [__m512i; M] = std::array::from_fn(|m| word::<M>(x, start, m));
            add_groups::<F, M>(&mut dots, w, x);
            add_lifted::<M>(sums, &dots, scale, x);
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
