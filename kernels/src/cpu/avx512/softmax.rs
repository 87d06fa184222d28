//! Queries and weights in bf16: a register of elements or scores at a time.

use crate::cpu::lanes::LANES;
use std::arch::x86_64::*;

/// As [`crate::cpu::softmax::weigh_in_bf16`], with the same bits.
#[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
pub(in crate::cpu) fn weigh_in_bf16(scores: &[[f32; LANES]], weights: &mut [[u16; LANES]]) -> (f32, f32) {
    let peak = highest(scores);
    let mut partial = _mm512_setzero_ps();
    for (scores, weights) in scores.iter().zip(weights) {
        let below = _mm512_sub_ps(load(scores), _mm512_set1_ps(peak));
        let rounded = _mm512_cvtneps_pbh(exp2_below_zero(below));
        // SAFETY: both types are 256 plain bits, sixteen halves of a word.
        let rounded = unsafe {
            let rounded = std::mem::transmute::<__m256bh, __m256i>(rounded);
            _mm256_storeu_si256(weights.as_mut_ptr().cast(), rounded);
            rounded
        };
        let widened = _mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(rounded));
        partial = _mm512_add_ps(partial, _mm512_castsi512_ps(widened));
    }
    (peak, _mm512_reduce_add_ps(partial))
}

/// As [`crate::cpu::softmax::scale_to_pairs`], with the same bits but for what is too small to be a normal number, which
/// becomes zero.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
pub(in crate::cpu) fn scale_to_pairs(q: &[f32], scale: f32, words: &mut [u32]) {
    let (registers, rest) = q.as_chunks::<LANES>();
    for (index, q) in registers.iter().enumerate() {
        store(&mut words[index * LANES / 2..][..LANES / 2], load(q), scale);
    }
    if !rest.is_empty() {
        let (mut padded, mut rounded) = ([0.0; LANES], [0; LANES / 2]);
        padded[..rest.len()].copy_from_slice(rest);
        store(&mut rounded, load(&padded), scale);
        words[registers.len() * LANES / 2..].copy_from_slice(&rounded[..rest.len() / 2]);
    }
}

/// Writes sixteen elements as eight words.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512bf16")]
fn store(words: &mut [u32], elements: __m512, scale: f32) {
    assert_eq!(words.len(), LANES / 2, "two elements a word");
    let rounded = _mm512_cvtneps_pbh(_mm512_mul_ps(elements, _mm512_set1_ps(scale)));
    // SAFETY: both types are 256 plain bits, and so many are written: eight words.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), std::mem::transmute::<__m256bh, __m256i>(rounded)) };
}

/// The largest score. A NaN among them may be passed over.
#[inline]
#[target_feature(enable = "avx512f")]
fn highest(scores: &[[f32; LANES]]) -> f32 {
    // Four chains: a maximum takes several cycles.
    let mut chains = [_mm512_set1_ps(f32::NEG_INFINITY); 4];
    let (quads, rest) = scores.as_chunks::<4>();
    for quad in quads {
        for (chain, scores) in chains.iter_mut().zip(quad) {
            *chain = _mm512_max_ps(*chain, load(scores));
        }
    }
    for scores in rest {
        chains[0] = _mm512_max_ps(chains[0], load(scores));
    }
    _mm512_reduce_max_ps(_mm512_max_ps(_mm512_max_ps(chains[0], chains[1]), _mm512_max_ps(chains[2], chains[3])))
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(scores: &[f32; LANES]) -> __m512 {
    // SAFETY: sixteen floats are a register.
    unsafe { _mm512_loadu_ps(scores.as_ptr()) }
}

/// [`crate::cpu::lanes::exp2_below_zero`] of sixteen numbers.
#[inline]
#[target_feature(enable = "avx512f")]
fn exp2_below_zero(x: __m512) -> __m512 {
    use crate::cpu::lanes::{EXP2_POLYNOMIAL, EXP2_ROUND, EXP2_SMALLEST};
    let round = _mm512_set1_ps(EXP2_ROUND);
    let shifted = _mm512_add_ps(x, round);
    let r = _mm512_sub_ps(x, _mm512_sub_ps(shifted, round));
    let mut p = _mm512_set1_ps(EXP2_POLYNOMIAL[0]);
    for c in &EXP2_POLYNOMIAL[1..] {
        p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(*c));
    }
    let power = _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_castps_si512(shifted)));
    // Not less than: so that NaN stays.
    let is_counted = _mm512_cmp_ps_mask::<_CMP_NLT_UQ>(x, _mm512_set1_ps(EXP2_SMALLEST));
    _mm512_maskz_mul_ps(is_counted, p, power)
}
