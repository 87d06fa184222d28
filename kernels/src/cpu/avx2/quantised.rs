//! AVX2 products with quantised weights. A panel holds 16 outputs: two registers hold four inputs of each.

use super::dense::store;
use crate::WeightFormat;
use crate::cpu::tile::{LIFT, RUN_WORDS};
use crate::cpu::{Out, TileInput};
use crate::panels::{K_MINS_AT, K_SCALES_AT, Q6K_SCALES_AT, quant_layout};
use crate::quant::{RUN, RUNS_PER_BLOCK};
use std::arch::x86_64::*;

/// Thirty-two inputs of eight outputs: eight registers of unsigned codes.
type Run = [__m256i; 8];

/// What a format multiplies its integer sums with.
pub(super) struct Scales {
    first: __m256,
    /// Of the second sixteen inputs; the same as `first` except in `Q6K`.
    second: __m256,
}

/// One quantised weight format, as a number so that it can be a constant parameter.
pub(super) const fn number(format: WeightFormat) -> u8 {
    format as u8
}

const Q8_0: u8 = number(WeightFormat::Q8_0);
const Q4_0: u8 = number(WeightFormat::Q4_0);
const Q4K: u8 = number(WeightFormat::Q4K);
const Q5K: u8 = number(WeightFormat::Q5K);

const fn format(number: u8) -> WeightFormat {
    match number {
        Q8_0 => WeightFormat::Q8_0,
        Q4_0 => WeightFormat::Q4_0,
        Q4K => WeightFormat::Q4K,
        Q5K => WeightFormat::Q5K,
        _ => WeightFormat::Q6K,
    }
}

/// Codes of eight outputs. `w`: the run's codes, moved on by 32 bytes for the upper eight outputs.
///
/// # Safety
/// AVX2; the format's code bytes of a run are readable.
#[inline(always)]
unsafe fn codes<const F: u8>(w: *const u8) -> Run {
    // SAFETY: the caller's promise; the offsets are those of `panels`.
    unsafe {
        let load = |line: usize| _mm256_loadu_si256(w.add(64 * line).cast());
        if F == Q8_0 {
            return std::array::from_fn(load);
        }
        let mask = _mm256_set1_epi8(15);
        let low: Run = std::array::from_fn(|g| {
            let pair = load(g % 4);
            _mm256_and_si256(if g < 4 { pair } else { _mm256_srli_epi16::<4>(pair) }, mask)
        });
        match format(F) {
            WeightFormat::Q4_0 | WeightFormat::Q4K => low,
            WeightFormat::Q5K => {
                let high = load(4);
                std::array::from_fn(|g| {
                    // Bit g becomes bit 4.
                    let moved = _mm256_sllv_epi32(high, _mm256_set1_epi32(4usize.saturating_sub(g) as i32));
                    let moved = _mm256_srlv_epi32(moved, _mm256_set1_epi32(g.saturating_sub(4) as i32));
                    _mm256_or_si256(low[g], _mm256_and_si256(moved, _mm256_set1_epi8(16)))
                })
            }
            _ => std::array::from_fn(|g| {
                // Bits 2s and 2s + 1 become bits 4 and 5.
                let high = load(4 + g / 4);
                let moved = match g % 4 {
                    0 => _mm256_slli_epi16::<4>(high),
                    1 => _mm256_slli_epi16::<2>(high),
                    2 => high,
                    _ => _mm256_srli_epi16::<2>(high),
                };
                _mm256_or_si256(low[g], _mm256_and_si256(moved, _mm256_set1_epi8(0x30)))
            }),
        }
    }
}

// Functions, not closures: a closure lacks its caller's instruction set and may remain a call.

/// # Safety
/// AVX2 and F16C; 16 readable bytes.
#[inline(always)]
unsafe fn eight_halves(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtph_ps(_mm_loadu_si128(at.cast())) }
}

/// # Safety
/// AVX2; 8 readable bytes.
#[inline(always)]
unsafe fn eight_bytes(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(at.cast()))) }
}

/// # Safety
/// AVX2; 8 readable bytes.
#[inline(always)]
unsafe fn eight_signed_bytes(at: *const u8) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(at.cast()))) }
}

/// Scales of eight outputs: the lower eight (`half` 0) or the upper (1).
///
/// # Safety
/// AVX2 and F16C; `scales` is the start of a panel's scales, which hold run `run`.
#[inline(always)]
unsafe fn scales<const F: u8>(scales: *const u8, run: usize, half: usize) -> Scales {
    // SAFETY: the caller's promise; the offsets are those of `panels`.
    unsafe {
        let layout = const { quant_layout(format(F)) };
        let block = scales.add(run / layout.runs_per_block * layout.scale_bytes);
        let sub = run % layout.runs_per_block;
        let d = eight_halves(block.add(16 * half));
        match format(F) {
            WeightFormat::Q4K | WeightFormat::Q5K => {
                let first = _mm256_mul_ps(d, eight_bytes(block.add(K_SCALES_AT + sub * 16 + 8 * half)));
                Scales { first, second: first }
            }
            WeightFormat::Q6K => {
                let at = block.add(Q6K_SCALES_AT + sub * 32 + 8 * half);
                let (first, second) = (eight_signed_bytes(at), eight_signed_bytes(at.add(16)));
                Scales { first: _mm256_mul_ps(d, first), second: _mm256_mul_ps(d, second) }
            }
            _ => Scales { first: d, second: d },
        }
    }
}

/// `M` rows times one panel.
///
/// # Safety
/// As [`crate::cpu::tile::TileFn`], for AVX2, FMA and F16C.
#[inline(always)]
pub(super) unsafe fn tile<const F: u8, const M: usize>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise: the panel holds codes and scales of every run, `x` holds `M` rows of every run,
    // laid out as `XPacking::Bytes` says.
    unsafe {
        let layout = const { quant_layout(format(F)) };
        let runs = input.cols / RUN;
        let all_scales = input.panel.add(runs * layout.code_bytes);
        let mut acc = [[_mm256_setzero_ps(); 2]; M];
        // Where the sums of a block are until they are scaled; runs with scales of their own are added at once.
        let mut in_block = acc;
        for run in 0..runs {
            let at = input.panel.add(run * layout.code_bytes);
            let x = input.x.add(run * RUN_WORDS * M);
            for half in 0..2 {
                let w = codes::<F>(at.add(32 * half));
                let scale = scales::<F>(all_scales, run, half);
                for m in 0..M {
                    if const { format(F).has_long_blocks() } {
                        in_block[m][half] = add_lifted::<F, M>(in_block[m][half], &w, &scale, x.add(m));
                    } else {
                        acc[m][half] = add_run::<F, M>(acc[m][half], &w, &scale, x.add(m));
                    }
                }
            }
            if const { format(F).has_long_blocks() } && run % RUNS_PER_BLOCK == RUNS_PER_BLOCK - 1 {
                let block = all_scales.add(run / RUNS_PER_BLOCK * layout.scale_bytes);
                let x = x.sub((RUNS_PER_BLOCK - 1) * RUN_WORDS * M);
                for half in 0..2 {
                    for m in 0..M {
                        let sum = subtract_minima::<F, M>(in_block[m][half], block, half, x.add(m));
                        acc[m][half] = _mm256_fmadd_ps(sum, float::<M>(x.add(m), 8), acc[m][half]);
                    }
                }
                in_block = [[_mm256_setzero_ps(); 2]; M];
            }
        }
        for (m, sums) in acc.iter().enumerate() {
            if m < out.rows {
                store(out, m, 0, sums[0]);
                store(out, m, 1, sums[1]);
            }
        }
    }
}

/// Word `i` of a row among `M`, in all lanes.
///
/// # Safety
/// AVX2; `x` has the word.
#[inline(always)]
unsafe fn word<const M: usize>(x: *const u32, i: usize) -> __m256i {
    // SAFETY: the caller's promise.
    unsafe { _mm256_set1_epi32(x.add(i * M).cast::<i32>().read()) }
}

/// The same as a float.
///
/// # Safety
/// As [`word`].
#[inline(always)]
unsafe fn float<const M: usize>(x: *const u32, i: usize) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe { _mm256_castsi256_ps(word::<M>(x, i)) }
}

/// Adds one run of one row with a scale of its own. `x`: the row's first word of the run, words `M` apart.
///
/// # Safety
/// AVX2 and FMA; `x` has `RUN_WORDS` words.
#[inline(always)]
unsafe fn add_run<const F: u8, const M: usize>(sum: __m256, w: &Run, scale: &Scales, x: *const u32) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut dot = dot::<F, M>(w, x, 0..8);
        if F == Q4_0 {
            // The lift is for 512-bit kernels; here it comes off first.
            let lift = _mm256_set1_epi32(LIFT.to_bits().cast_signed());
            dot = _mm256_add_epi32(dot, _mm256_sub_epi32(word::<M>(x, 10), lift));
        }
        _mm256_fmadd_ps(_mm256_mul_ps(_mm256_cvtepi32_ps(dot), float::<M>(x, 8)), scale.first, sum)
    }
}

/// Adds one run of one row to the sum of its block. The lift says how much finer the run is than the block.
///
/// # Safety
/// As [`add_run`].
#[inline(always)]
unsafe fn add_lifted<const F: u8, const M: usize>(sum: __m256, w: &Run, scale: &Scales, x: *const u32) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let lift = float::<M>(x, 9);
        if matches!(format(F), WeightFormat::Q6K) {
            let first = _mm256_add_epi32(word::<M>(x, 10), dot::<F, M>(w, x, 0..4));
            let second = _mm256_add_epi32(word::<M>(x, 11), dot::<F, M>(w, x, 4..8));
            let sum = _mm256_fmadd_ps(_mm256_sub_ps(_mm256_castsi256_ps(first), lift), scale.first, sum);
            return _mm256_fmadd_ps(_mm256_sub_ps(_mm256_castsi256_ps(second), lift), scale.second, sum);
        }
        let dot = _mm256_add_epi32(word::<M>(x, 9), dot::<F, M>(w, x, 0..8));
        _mm256_fmadd_ps(_mm256_sub_ps(_mm256_castsi256_ps(dot), lift), scale.first, sum)
    }
}

/// Takes the minima of a block off its sum. `x`: the row's first word of the block, words `M` apart.
///
/// # Safety
/// AVX2, FMA and F16C; `block` has the scales of a block, `x` has `RUN_WORDS` words for each of its runs.
#[inline(always)]
unsafe fn subtract_minima<const F: u8, const M: usize>(
    sum: __m256,
    block: *const u8,
    half: usize,
    x: *const u32,
) -> __m256 {
    if F != Q4K && F != Q5K {
        return sum;
    }
    // SAFETY: the caller's promise; the offsets are those of `panels`.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let scale = _mm256_mul_ps(eight_halves(block.add(32 + 16 * half)), _mm256_set1_ps(0.25));
        let mut parts = [_mm256_setzero_si256(); 2];
        for (i, part) in parts.iter_mut().enumerate() {
            for four in 0..2 {
                let minima = _mm256_loadu_si256(block.add(K_MINS_AT + 64 * four + 32 * half).cast());
                let products = _mm256_maddubs_epi16(minima, word::<M>(x, (2 * i + four) * RUN_WORDS + 10));
                *part = _mm256_add_epi32(*part, _mm256_madd_epi16(products, ones));
            }
        }
        let all = _mm256_add_epi32(_mm256_slli_epi32::<7>(parts[0]), parts[1]);
        _mm256_fnmadd_ps(scale, _mm256_cvtepi32_ps(all), sum)
    }
}

/// Exact integer sums over some groups of four inputs.
///
/// # Safety
/// AVX2; `x` has a word for every group.
#[inline(always)]
unsafe fn dot<const F: u8, const M: usize>(w: &Run, x: *const u32, groups: std::ops::Range<usize>) -> __m256i {
    // A product of two pairs of bytes must stay inside 16 bits: 2 * 127 * code. So many groups can be added before
    // widening: eight with codes up to 15, four up to 31, two up to 63.
    let before_widening = match format(F) {
        WeightFormat::Q4_0 | WeightFormat::Q4K => 8,
        WeightFormat::Q5K => 4,
        WeightFormat::Q6K => 2,
        _ => 1,
    };
    // SAFETY: the caller's promise.
    unsafe {
        let ones = _mm256_set1_epi16(1);
        let mut total = _mm256_setzero_si256();
        let mut narrow = _mm256_setzero_si256();
        for g in groups {
            let x = _mm256_set1_epi32(x.add(g * M).cast::<i32>().read());
            let products = if F == Q8_0 {
                // Signed times signed: the weight's sign moves to the activation. 128 * 127 * 2 just fits.
                let signed = _mm256_xor_si256(w[g], _mm256_set1_epi8(i8::MIN));
                _mm256_maddubs_epi16(_mm256_abs_epi8(signed), _mm256_sign_epi8(x, signed))
            } else {
                _mm256_maddubs_epi16(w[g], x)
            };
            narrow = if g % before_widening == 0 { products } else { _mm256_add_epi16(narrow, products) };
            if (g + 1) % before_widening == 0 {
                total = _mm256_add_epi32(total, _mm256_madd_epi16(narrow, ones));
            }
        }
        total
    }
}
