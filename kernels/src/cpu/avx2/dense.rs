//! AVX2 products with f32, f16 and bf16 weights. A panel holds 32 outputs: four registers a step.

use crate::cpu::{Out, TileInput};
use std::arch::x86_64::*;

/// One dense weight format: how many inputs a step covers and how a step is added.
pub(super) trait Weights {
    /// Eight outputs' weights of one step.
    type Loaded: Copy;
    /// Inputs (and words of activations a row takes) of one step.
    const INPUTS: usize;
    /// Bytes of eight outputs in one step.
    const BYTES: usize;
    /// # Safety
    /// AVX2 and F16C; `BYTES` readable bytes.
    unsafe fn load(w: *const u8) -> Self::Loaded;
    /// # Safety
    /// AVX2 and FMA; `x` has `INPUTS` readable floats, `m` apart.
    unsafe fn add(acc: __m256, w: Self::Loaded, x: *const f32, m: usize) -> __m256;
}

/// f32 weights.
pub(super) struct F32;
/// f16 weights, widened to f32.
pub(super) struct F16;
/// bf16 weights, widened to f32.
pub(super) struct Bf16;

impl Weights for F32 {
    type Loaded = __m256;
    const INPUTS: usize = 1;
    const BYTES: usize = 32;
    #[inline(always)]
    unsafe fn load(w: *const u8) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_loadu_ps(w.cast()) }
    }
    #[inline(always)]
    unsafe fn add(acc: __m256, w: __m256, x: *const f32, _m: usize) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_fmadd_ps(_mm256_set1_ps(*x), w, acc) }
    }
}

impl Weights for F16 {
    type Loaded = __m256;
    const INPUTS: usize = 1;
    const BYTES: usize = 16;
    #[inline(always)]
    unsafe fn load(w: *const u8) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(w.cast())) }
    }
    #[inline(always)]
    unsafe fn add(acc: __m256, w: __m256, x: *const f32, _m: usize) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe { _mm256_fmadd_ps(_mm256_set1_ps(*x), w, acc) }
    }
}

impl Weights for Bf16 {
    type Loaded = (__m256, __m256);
    const INPUTS: usize = 2;
    const BYTES: usize = 32;
    #[inline(always)]
    unsafe fn load(w: *const u8) -> Self::Loaded {
        // SAFETY: the trait's contract.
        unsafe {
            let pair = _mm256_loadu_si256(w.cast());
            let odd = _mm256_and_si256(pair, _mm256_set1_epi32(0xffff_0000u32.cast_signed()));
            (_mm256_castsi256_ps(_mm256_slli_epi32::<16>(pair)), _mm256_castsi256_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn add(acc: __m256, w: Self::Loaded, x: *const f32, m: usize) -> __m256 {
        // SAFETY: the trait's contract.
        unsafe {
            let acc = _mm256_fmadd_ps(_mm256_set1_ps(*x), w.0, acc);
            _mm256_fmadd_ps(_mm256_set1_ps(*x.add(m)), w.1, acc)
        }
    }
}

/// `M` rows times the `V` registers of outputs that start at register `first` of the panel.
///
/// # Safety
/// As [`crate::cpu::tile::TileFn`], for AVX2, FMA and F16C.
#[inline(always)]
pub(super) unsafe fn tile<W: Weights, const M: usize, const V: usize>(input: &TileInput, out: &Out, first: usize) {
    // SAFETY: the caller's promise: the panel holds four registers for every step, `x` holds `M` rows of words for every
    // step, `y` holds `out.rows` rows of `out.lanes` floats; stores are masked to those.
    unsafe {
        let mut acc = [[_mm256_setzero_ps(); V]; M];
        if out.resumes {
            for (m, row) in acc.iter_mut().enumerate().take(out.rows) {
                for (v, sum) in row.iter_mut().enumerate() {
                    let at = (first + v) * 8;
                    *sum = _mm256_maskload_ps(out.y.wrapping_add(m * out.stride + at), mask(out.lanes, at));
                }
            }
        }
        let steps = input.from / W::INPUTS..input.to.div_ceil(W::INPUTS);
        let mut w = input.panel.add((4 * steps.start + first) * W::BYTES);
        let mut x = input.x.cast::<f32>().add(steps.start * W::INPUTS * M);
        let ahead_step = input.ahead.bytes_per_step(W::INPUTS);
        // Once a panel. Nothing to fetch: some address that costs nothing.
        let mut ahead = if ahead_step == 0 || first > 0 { w } else { input.ahead.at };
        for _ in steps {
            _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            ahead = ahead.wrapping_add(ahead_step);
            // A loop, not `from_fn`: closures lack the caller's instruction set, and calls to single intrinsics cost
            // more than the products.
            let mut loaded = [W::load(w); V];
            for (v, loaded) in loaded.iter_mut().enumerate() {
                *loaded = W::load(w.add(v * W::BYTES));
            }
            for (m, row) in acc.iter_mut().enumerate() {
                for v in 0..V {
                    row[v] = W::add(row[v], loaded[v], x.add(m), M);
                }
            }
            w = w.wrapping_add(4 * W::BYTES);
            x = x.add(W::INPUTS * M);
        }
        for (m, row) in acc.iter().enumerate() {
            if m < out.rows {
                for (v, &sum) in row.iter().enumerate() {
                    store(out, m, first + v, sum);
                }
            }
        }
    }
}

/// Writes register `v` of row `m`, with the bias added.
///
/// # Safety
/// AVX2; the pointers of `out` are valid for its sizes, `m < out.rows`.
#[inline(always)]
pub(super) unsafe fn store(out: &Out, m: usize, v: usize, sum: __m256) {
    // SAFETY: masked to the lanes that exist.
    unsafe {
        let mask = mask(out.lanes, v * 8);
        let sum = if out.bias.is_null() {
            sum
        } else {
            _mm256_add_ps(sum, _mm256_maskload_ps(out.bias.wrapping_add(v * 8), mask))
        };
        _mm256_maskstore_ps(out.y.wrapping_add(m * out.stride + v * 8), mask, sum);
    }
}

/// All bits set in the lanes of the register starting at output `at` that exist among `lanes` outputs.
///
/// # Safety
/// AVX2.
#[inline(always)]
unsafe fn mask(lanes: usize, at: usize) -> __m256i {
    // SAFETY: the caller's promise; a panel has few lanes, so the number fits.
    unsafe {
        let left = _mm256_set1_epi32(lanes.saturating_sub(at).min(8) as i32);
        _mm256_cmpgt_epi32(left, _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
    }
}
