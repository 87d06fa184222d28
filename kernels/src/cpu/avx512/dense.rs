//! AVX-512 products with f32, f16 and bf16 weights. A panel holds 32 outputs: two registers a step.

use crate::cpu::{Out, TileInput};
use std::arch::x86_64::*;

/// How far ahead of the arithmetic weights are fetched: some hundred cycles of it, and across the ends of small pages,
/// where the machine's own prefetching stops. They are asked into the second-level cache: more lines can be on their way
/// there than to the first, and from there the machine fetches in time.
pub(super) const PREFETCH_BYTES: usize = 4096;

/// One dense weight format: how many inputs a step covers and how a step is added.
pub(super) trait Weights {
    /// Sixteen outputs' weights of one step.
    type Loaded: Copy;
    /// Inputs of one step.
    const INPUTS: usize;
    /// Bytes of sixteen outputs in one step.
    const BYTES: usize;
    /// Words of activations a row and step take.
    const WORDS: usize;
    /// # Safety
    /// AVX-512 F and BW; `BYTES` readable bytes.
    unsafe fn load(w: *const u8) -> Self::Loaded;
    /// # Safety
    /// AVX-512 F and BW (bf16 dot products for [`Bf16Dot`]); `x` has `WORDS` readable words, `m` apart.
    unsafe fn add(acc: __m512, w: Self::Loaded, x: *const u32, m: usize) -> __m512;
}

/// f32 weights.
pub(super) struct F32;
/// f16 weights, widened to f32.
pub(super) struct F16;
/// bf16 weights, widened to f32, for machines without bf16 dot products.
pub(super) struct Bf16Wide;
/// bf16 weights in bf16 dot products.
pub(super) struct Bf16Dot;

impl Weights for F32 {
    type Loaded = __m512;
    const INPUTS: usize = 1;
    const BYTES: usize = 64;
    const WORDS: usize = 1;
    #[inline(always)]
    unsafe fn load(w: *const u8) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_ps(w.cast()) }
    }
    #[inline(always)]
    unsafe fn add(acc: __m512, w: __m512, x: *const u32, _m: usize) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_fmadd_ps(_mm512_set1_ps(x.cast::<f32>().read()), w, acc) }
    }
}

impl Weights for F16 {
    type Loaded = __m512;
    const INPUTS: usize = 1;
    const BYTES: usize = 32;
    const WORDS: usize = 1;
    #[inline(always)]
    unsafe fn load(w: *const u8) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(w.cast())) }
    }
    #[inline(always)]
    unsafe fn add(acc: __m512, w: __m512, x: *const u32, m: usize) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { F32::add(acc, w, x, m) }
    }
}

impl Weights for Bf16Wide {
    type Loaded = (__m512, __m512);
    const INPUTS: usize = 2;
    const BYTES: usize = 64;
    const WORDS: usize = 2;
    #[inline(always)]
    unsafe fn load(w: *const u8) -> Self::Loaded {
        // SAFETY: the trait's contract.
        unsafe {
            let pair = _mm512_loadu_si512(w.cast());
            let odd = _mm512_and_si512(pair, _mm512_set1_epi32(0xffff_0000u32.cast_signed()));
            (_mm512_castsi512_ps(_mm512_slli_epi32::<16>(pair)), _mm512_castsi512_ps(odd))
        }
    }
    #[inline(always)]
    unsafe fn add(acc: __m512, w: Self::Loaded, x: *const u32, m: usize) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { F32::add(F32::add(acc, w.0, x, m), w.1, x.add(m), m) }
    }
}

impl Weights for Bf16Dot {
    type Loaded = __m512i;
    const INPUTS: usize = 2;
    const BYTES: usize = 64;
    const WORDS: usize = 1;
    #[inline(always)]
    unsafe fn load(w: *const u8) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_si512(w.cast()) }
    }
    #[inline(always)]
    unsafe fn add(acc: __m512, w: __m512i, x: *const u32, _m: usize) -> __m512 {
        // SAFETY: the trait's contract; both types are 512 bits of bf16 pairs.
        unsafe {
            let x = _mm512_set1_epi32(x.cast::<i32>().read());
            _mm512_dpbf16_ps(
                acc,
                std::mem::transmute::<__m512i, __m512bh>(w),
                std::mem::transmute::<__m512i, __m512bh>(x),
            )
        }
    }
}

/// `M` rows times `V` registers of outputs: one panel (2) or two (4).
///
/// # Safety
/// As [`crate::cpu::tile::TileFn`], for a level that has `W`'s instructions.
#[inline(always)]
pub(super) unsafe fn tile<W: Weights, const M: usize, const V: usize>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise: panels hold two registers for every step, `x` holds `M` rows of words for every
    // step, `y` holds `out.rows` rows of `out.lanes` floats; stores are masked to those.
    unsafe {
        let mut acc = [[_mm512_setzero_ps(); V]; M];
        if out.resumes {
            for (m, row) in acc.iter_mut().enumerate().take(out.rows) {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = load(out, m, v);
                }
            }
        }
        let first = input.from / W::INPUTS;
        let last = input.to.div_ceil(W::INPUTS);
        let mut w = input.panel.add(first * 2 * W::BYTES);
        let mut x = input.x.add(first * W::WORDS * M);
        let ahead_step = input.ahead.bytes_per_step(W::INPUTS);
        // Nothing to fetch: some address that costs nothing.
        let mut ahead = if ahead_step == 0 { w } else { input.ahead.at };
        for _ in first..last {
            // Two panels at once are for few rows, whose weights are used as they come.
            if V == 2 {
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                ahead = ahead.wrapping_add(ahead_step);
            }
            for v in 0..V {
                let ahead = w.wrapping_add(v / 2 * input.panel_bytes + v % 2 * W::BYTES + PREFETCH_BYTES);
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
            }
            // A loop, not `from_fn`: closures lack the caller's instruction set, and calls to single intrinsics cost
            // more than the products.
            let mut loaded = [W::load(w); V];
            for (v, loaded) in loaded.iter_mut().enumerate() {
                *loaded = W::load(w.add(v / 2 * input.panel_bytes + v % 2 * W::BYTES));
            }
            for (m, row) in acc.iter_mut().enumerate() {
                for v in 0..V {
                    row[v] = W::add(row[v], loaded[v], x.add(m), M);
                }
            }
            w = w.add(2 * W::BYTES);
            x = x.add(W::WORDS * M);
        }
        for (m, row) in acc.iter().enumerate() {
            if m < out.rows {
                for (v, &sum) in row.iter().enumerate() {
                    store(out, m, v, sum);
                }
            }
        }
    }
}

/// Writes register `v` of row `m`, with the bias added.
///
/// # Safety
/// AVX-512 F; the pointers of `out` are valid for its sizes, `m < out.rows`.
#[inline(always)]
pub(in crate::cpu) unsafe fn store(out: &Out, m: usize, v: usize, sum: __m512) {
    // SAFETY: masked to the lanes that exist.
    unsafe {
        let lanes = lanes_of(out.lanes, v);
        let sum = if out.bias.is_null() {
            sum
        } else {
            _mm512_add_ps(sum, _mm512_maskz_loadu_ps(lanes, out.bias.wrapping_add(v * 16)))
        };
        _mm512_mask_storeu_ps(out.y.wrapping_add(m * out.stride + v * 16), lanes, sum);
    }
}

/// Reads what [`store`] wrote of register `v` of row `m`.
///
/// # Safety
/// As [`store`].
#[inline(always)]
pub(in crate::cpu) unsafe fn load(out: &Out, m: usize, v: usize) -> __m512 {
    // SAFETY: masked to the lanes that exist.
    unsafe { _mm512_maskz_loadu_ps(lanes_of(out.lanes, v), out.y.wrapping_add(m * out.stride + v * 16)) }
}

/// The lanes of register `v` among `lanes` outputs.
#[inline(always)]
fn lanes_of(lanes: usize, v: usize) -> __mmask16 {
    match lanes.saturating_sub(v * 16) {
        0 => 0,
        left @ 1..16 => (1 << left) - 1,
        _ => u16::MAX,
    }
}
