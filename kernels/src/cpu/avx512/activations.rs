//! Rows of activations as bytes: the plain form's numbers, a run of them in two registers.

use crate::WeightFormat;
use crate::cpu::activations::{ByteRun, ROUND, SILENT};
use crate::cpu::tile::RUN_WORDS;
use crate::quant::{RUN, activation_scale};
use std::arch::x86_64::*;

/// Lays one row out beside the others, `m` words apart.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::cpu) fn pack_bytes(x: &[f32], format: WeightFormat, tile: &mut [u32], m: usize) {
    for (x, tile) in x.as_chunks().0.iter().zip(tile.chunks_mut(RUN_WORDS * m)) {
        run(x).put(format, tile, m);
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run(x: &[f32; RUN]) -> ByteRun {
    // SAFETY: a run is two registers of floats.
    let (low, high) = unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(RUN / 2))) };
    let size = |v| _mm512_castps_si512(_mm512_abs_ps(v));
    let peak = f32::from_bits(_mm512_reduce_max_epu32(_mm512_max_epu32(size(low), size(high))));
    if peak < SILENT {
        return ByteRun::default();
    }
    let (inverse, round) = (_mm512_set1_ps(127.0 / peak), _mm512_set1_ps(ROUND));
    // The integer is in the low byte.
    let code = |v| _mm512_cvtepi32_epi8(_mm512_castps_si512(_mm512_add_ps(_mm512_mul_ps(v, inverse), round)));
    let codes = _mm256_set_m128i(code(high), code(low));
    let fours = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), codes);
    let pairs = _mm256_add_epi32(fours, _mm256_shuffle_epi32::<0b10_11_00_01>(fours));
    let halves = _mm256_add_epi32(pairs, _mm256_shuffle_epi32::<0b01_00_11_10>(pairs));
    let mut words = [0; RUN / 4];
    // SAFETY: eight words are one register of bytes.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), codes) };
    let sums = [_mm256_extract_epi32::<0>(halves), _mm256_extract_epi32::<4>(halves)];
    ByteRun { words, scale: activation_scale(peak), sums }
}
