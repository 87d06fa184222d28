//! Rows of activations as bytes: the plain form's numbers, a run of them in two registers.

use crate::cpu::activations::{ByteBlock, ByteCodes, ByteRow, ByteRun, ROUND, SILENT, inverse_of_run};
use crate::quant::{BLOCK, RUN, RUNS_PER_BLOCK, activation_scale, run_shift};
use std::arch::x86_64::*;

/// Lays one row out in its place among the others.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::cpu) fn pack_bytes(x: &[f32], place: &ByteRow, tile: &mut [u32]) {
    if place.has_blocks() {
        for (x, tile) in x.as_chunks().0.iter().zip(tile.chunks_mut(RUNS_PER_BLOCK * place.run_words())) {
            block(x).put(place, tile);
        }
    } else {
        for (x, tile) in x.as_chunks().0.iter().zip(tile.chunks_mut(place.run_words())) {
            run(x).put(place, tile);
        }
    }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn run(x: &[f32; RUN]) -> ByteRun {
    let peak = f32::from_bits(peak_bits(x));
    if peak < SILENT {
        return ByteRun::default();
    }
    ByteRun { codes: codes(x, 127.0 / peak), scale: activation_scale(peak) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn block(x: &[f32; BLOCK]) -> ByteBlock {
    let runs = x.as_chunks::<RUN>().0;
    // Loops, not closures: a closure lacks its caller's instruction set and may remain a call.
    let mut peaks = [0; RUNS_PER_BLOCK];
    for (peak, x) in peaks.iter_mut().zip(runs) {
        *peak = peak_bits(x);
    }
    let block_peak = peaks.into_iter().fold(0, u32::max);
    let peak = f32::from_bits(block_peak);
    let mut block = ByteBlock::default();
    if peak < SILENT {
        return block;
    }
    block.scale = activation_scale(peak);
    block.shifts = peaks.map(|run_peak| run_shift(block_peak, run_peak));
    let inverse = 127.0 / peak;
    for (r, run) in block.runs.iter_mut().enumerate() {
        *run = codes(&runs[r], inverse_of_run(inverse, block.shifts[r]));
    }
    block
}

#[inline]
#[target_feature(enable = "avx512f")]
fn load(x: &[f32; RUN]) -> (__m512, __m512) {
    // SAFETY: a run is two registers of floats.
    unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(RUN / 2))) }
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn peak_bits(x: &[f32; RUN]) -> u32 {
    let (low, high) = load(x);
    let size = |v| _mm512_castps_si512(_mm512_abs_ps(v));
    _mm512_reduce_max_epu32(_mm512_max_epu32(size(low), size(high)))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn codes(x: &[f32; RUN], inverse: f32) -> ByteCodes {
    let (low, high) = load(x);
    let (inverse, round) = (_mm512_set1_ps(inverse), _mm512_set1_ps(ROUND));
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
    ByteCodes { words, sums }
}
