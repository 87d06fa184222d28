//! AVX2 products with quantised weights. A panel holds 16 outputs: two registers hold four inputs of each.

use super::dense::store;
use crate::WeightFormat;
use crate::cpu::tile::{LIFT, RUN_WORDS};
use crate::cpu::{Out, TileInput};
use crate::panels::{K_MINS_AT, K_SCALES_AT, Q6K_SCALES_AT, quant_layout};
use crate::quant::RUN;
use std::arch::x86_64::*;

/// Thirty-two inputs of eight outputs: eight registers of unsigned codes.
type Run = [__m256i; 8];

/// What a format multiplies its integer sums with.
pub(super) struct Scales {
    first: __m256,
    /// Of the second sixteen inputs; the same as `first` except in `Q6K`.
    second: __m256,
    /// Only in `Q4K` and `Q5K`.
    min: __m256,
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
                let min = eight_bytes(block.add(K_MINS_AT + sub * 16 + 8 * half));
                Scales { first, second: first, min: _mm256_mul_ps(eight_halves(block.add(32 + 16 * half)), min) }
            }
            WeightFormat::Q6K => {
                let at = block.add(Q6K_SCALES_AT + sub * 32 + 8 * half);
                let (first, second) = (eight_signed_bytes(at), eight_signed_bytes(at.add(16)));
                Scales { first: _mm256_mul_ps(d, first), second: _mm256_mul_ps(d, second), min: d }
            }
            _ => Scales { first: d, second: d, min: d },
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
        for run in 0..runs {
            let at = input.panel.add(run * layout.code_bytes);
            let x = input.x.add(run * RUN_WORDS * M);
            for half in 0..2 {
                let w = codes::<F>(at.add(32 * half));
                let scale = scales::<F>(all_scales, run, half);
                for (m, sums) in acc.iter_mut().enumerate() {
                    sums[half] = add_run::<F, M>(sums[half], &w, &scale, x.add(m));
                }
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

/// Adds one run of one row. `x`: the row's first word of the run, words `M` apart.
///
/// # Safety
/// AVX2 and FMA; `x` has `RUN_WORDS` words.
#[inline(always)]
unsafe fn add_run<const F: u8, const M: usize>(sum: __m256, w: &Run, scale: &Scales, x: *const u32) -> __m256 {
    // SAFETY: the caller's promise.
    unsafe {
        let float = |i: usize| _mm256_set1_ps(x.add(i * M).cast::<f32>().read());
        // The lift is for 512-bit kernels; here it comes off first.
        let start = |i: usize| {
            let lifted = x.add(i * M).cast::<i32>().read();
            _mm256_set1_epi32(lifted.wrapping_sub(LIFT.to_bits().cast_signed()))
        };
        let scaled = |dot: __m256i| _mm256_mul_ps(_mm256_cvtepi32_ps(dot), float(8));
        if matches!(format(F), WeightFormat::Q6K) {
            let first = _mm256_add_epi32(start(10), dot::<F, M>(w, x, 0..4));
            let second = _mm256_add_epi32(start(11), dot::<F, M>(w, x, 4..8));
            let sum = _mm256_fmadd_ps(scaled(first), scale.first, sum);
            return _mm256_fmadd_ps(scaled(second), scale.second, sum);
        }
        let mut dot = dot::<F, M>(w, x, 0..8);
        if F == Q4_0 {
            dot = _mm256_add_epi32(dot, start(10));
        }
        let sum = _mm256_fmadd_ps(scaled(dot), scale.first, sum);
        if F == Q4K || F == Q5K { _mm256_fnmadd_ps(scale.min, float(10), sum) } else { sum }
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
