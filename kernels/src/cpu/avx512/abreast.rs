//! Rows of activations as bytes, or as pairs of bf16, for vector kernels, four rows at a time: their words lie side by side in
//! a tile, so four are stored together. The numbers are those of a row alone.

use crate::WeightFormat;
use crate::cpu::activations::{ActivationRows, ROUND, SILENT};
use crate::cpu::tile::{LIFT, RUN_WORDS, XPacking};
use crate::quant::{LARGEST_PEAK, RUN, RUNS_PER_BLOCK, offset};
use std::arch::x86_64::*;

/// Rows laid out together.
const ABREAST: usize = 4;
/// Words before the scale of a run.
const CODE_WORDS: usize = RUN / 4;

/// Lays out the rows of a tile, whole runs of 32 inputs each, as [`XPacking::Bytes`], [`XPacking::ByteBlocks`] or
/// [`XPacking::Bf16Pairs`] says.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
pub(in crate::cpu) fn pack_abreast(input: &ActivationRows, tile: &mut [u32]) {
    let (runs, words_of_run) = (input.cols / RUN, input.packing.words_per_row(RUN));
    let count = input.x.len() / input.cols;
    assert!(count <= input.m && tile.len() >= runs * words_of_run * input.m, "the tile holds every run of all rows");
    for first in (0..count).step_by(ABREAST) {
        // Rows that are missing are computed as the last one, and not stored.
        let mut rows: [&[[f32; RUN]]; ABREAST] = [&[]; ABREAST];
        for (i, row) in rows.iter_mut().enumerate() {
            let index = (first + i).min(count - 1);
            *row = input.x[index * input.cols..][..input.cols].as_chunks().0;
        }
        let present = ((1u16 << (count - first).min(ABREAST)) - 1) as __mmask8;
        let mut place = Place { at: tile[first..].as_mut_ptr(), m: input.m, present, format: input.format };
        let runs_at_once = if input.packing == XPacking::ByteBlocks { RUNS_PER_BLOCK } else { 1 };
        for run in (0..runs).step_by(runs_at_once) {
            // SAFETY: the tile was found to hold this run, or block of runs, of the rows that are present.
            unsafe {
                match input.packing {
                    XPacking::ByteBlocks => put_block(&rows, run, &place),
                    XPacking::Bf16Pairs => put_pairs(&rows, run, &place),
                    _ => put_run(&rows, run, &place),
                }
                place.at = place.at.add(runs_at_once * words_of_run * input.m);
            }
        }
    }
}

/// Where words of four rows go.
struct Place {
    /// The first row's first word of a run.
    at: *mut u32,
    /// Words of a run's first kind, and so from one kind to the next.
    m: usize,
    /// Which of the four rows there are.
    present: __mmask8,
    format: WeightFormat,
}

impl Place {
    /// Writes word `index` of run `run` of the four rows.
    ///
    /// # Safety
    /// AVX-512 F and VL; the run has its words at `at`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn put(&self, run: usize, index: usize, words: __m128i) {
        // SAFETY: the caller's promise; rows that are not present are not touched.
        unsafe {
            let at = self.at.add((run * RUN_WORDS + index) * self.m);
            _mm_mask_storeu_epi32(at.cast(), self.present, words);
        }
    }

    /// Writes the codes of run `run`: turned, so that a word of all rows is one register.
    ///
    /// # Safety
    /// As [`Self::put`].
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    unsafe fn put_codes(&self, run: usize, [a, b, c, d]: [__m256i; ABREAST]) {
        let (ab, cd) = (_mm256_unpacklo_epi32(a, b), _mm256_unpacklo_epi32(c, d));
        let (high_ab, high_cd) = (_mm256_unpackhi_epi32(a, b), _mm256_unpackhi_epi32(c, d));
        // Each holds a word of the first half and, above, the same one of the second.
        let words = [
            _mm256_unpacklo_epi64(ab, cd),
            _mm256_unpackhi_epi64(ab, cd),
            _mm256_unpacklo_epi64(high_ab, high_cd),
            _mm256_unpackhi_epi64(high_ab, high_cd),
        ];
        for (index, word) in words.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe {
                self.put(run, index, _mm256_castsi256_si128(word));
                self.put(run, index + 4, _mm256_extracti128_si256::<1>(word));
            }
        }
    }

    /// Where integer sums start that are read above `lift`, given the sums of the codes.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
    fn start(&self, lift: __m128i, sums: __m128i) -> __m128i {
        _mm_sub_epi32(lift, _mm_mullo_epi32(_mm_set1_epi32(i32::from(offset(self.format))), sums))
    }
}

/// # Safety
/// As [`Place::put`], for the words of one run of pairs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn put_pairs(rows: &[&[[f32; RUN]]; ABREAST], run: usize, place: &Place) {
    let [a, b, c, d] = [pairs(&rows[0][run]), pairs(&rows[1][run]), pairs(&rows[2][run]), pairs(&rows[3][run])];
    let (ab, cd) = (_mm512_unpacklo_epi32(a, b), _mm512_unpacklo_epi32(c, d));
    let (high_ab, high_cd) = (_mm512_unpackhi_epi32(a, b), _mm512_unpackhi_epi32(c, d));
    // Each holds every fourth word.
    let words = [
        _mm512_unpacklo_epi64(ab, cd),
        _mm512_unpackhi_epi64(ab, cd),
        _mm512_unpacklo_epi64(high_ab, high_cd),
        _mm512_unpackhi_epi64(high_ab, high_cd),
    ];
    for (index, word) in words.into_iter().enumerate() {
        // SAFETY: the caller's promise: a row has sixteen words.
        unsafe {
            place.put(0, index, _mm512_castsi512_si128(word));
            place.put(0, index + 4, _mm512_extracti32x4_epi32::<1>(word));
            place.put(0, index + 8, _mm512_extracti32x4_epi32::<2>(word));
            place.put(0, index + 12, _mm512_extracti32x4_epi32::<3>(word));
        }
    }
}

/// Thirty-two floats rounded to bf16, as [`crate::cpu::lanes::to_bf16`] rounds.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn pairs(x: &[f32; RUN]) -> __m512i {
    /// The upper half of every float of two registers.
    const UPPER: [u16; RUN] = {
        let mut upper = [0; RUN];
        let mut i = 0;
        while i < RUN {
            upper[i] = 2 * i as u16 + 1;
            i += 1;
        }
        upper
    };
    let (low, high) = load(x);
    // SAFETY: thirty-two halves are one register.
    let upper = unsafe { _mm512_loadu_si512(UPPER.as_ptr().cast()) };
    _mm512_permutex2var_epi16(rounded(low), upper, rounded(high))
}

/// Floats whose upper halves are their bf16.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn rounded(x: __m512) -> __m512i {
    let bits = _mm512_castps_si512(x);
    let last = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let nearest = _mm512_add_epi32(bits, _mm512_add_epi32(last, _mm512_set1_epi32(0x7fff)));
    // No number stays none, whichever of its bits are cut off.
    let is_none = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    _mm512_mask_or_epi32(nearest, is_none, bits, _mm512_set1_epi32(0x0040_0000))
}

/// # Safety
/// As [`Place::put`], for one run.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn put_run(rows: &[&[[f32; RUN]]; ABREAST], run: usize, place: &Place) {
    let x = [&rows[0][run], &rows[1][run], &rows[2][run], &rows[3][run]];
    let peak = _mm_castsi128_ps(peaks(x));
    let Scales { scale, inverse, .. } = scales(peak);
    let codes = codes(x, inverse);
    let lift = _mm_set1_epi32(LIFT.to_bits().cast_signed());
    // SAFETY: the caller's promise.
    unsafe {
        place.put_codes(0, codes.words);
        place.put(0, CODE_WORDS, _mm_castps_si128(scale));
        place.put(0, CODE_WORDS + 1, _mm_castps_si128(_mm_mul_ps(_mm_set1_ps(LIFT), scale)));
        place.put(0, CODE_WORDS + 2, place.start(lift, _mm_add_epi32(codes.sums[0], codes.sums[1])));
    }
}

/// # Safety
/// As [`Place::put`], for a block of runs.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn put_block(rows: &[&[[f32; RUN]]; ABREAST], first: usize, place: &Place) {
    let mut run_peaks = [_mm_setzero_si128(); RUNS_PER_BLOCK];
    let mut block_peak = _mm_setzero_si128();
    for (r, peak) in run_peaks.iter_mut().enumerate() {
        *peak = peaks([&rows[0][first + r], &rows[1][first + r], &rows[2][first + r], &rows[3][first + r]]);
        block_peak = _mm_max_epu32(block_peak, *peak);
    }
    let Scales { scale, inverse, is_silent } = scales(_mm_castsi128_ps(block_peak));
    let mut sums = [_mm_setzero_si128(); 4];
    for (r, peak) in run_peaks.into_iter().enumerate() {
        let x = [&rows[0][first + r], &rows[1][first + r], &rows[2][first + r], &rows[3][first + r]];
        let shift = _mm_min_epu32(_mm_srli_epi32::<23>(_mm_sub_epi32(block_peak, peak)), _mm_set1_epi32(15));
        let shift = _mm_maskz_mov_epi32(!is_silent, shift);
        let power = _mm_castsi128_ps(_mm_slli_epi32::<23>(_mm_add_epi32(_mm_set1_epi32(127), shift)));
        let codes = codes(x, _mm_mul_ps(inverse, power));
        let lift = _mm_sub_epi32(_mm_set1_epi32(LIFT.to_bits().cast_signed()), _mm_slli_epi32::<23>(shift));
        let all = _mm_add_epi32(codes.sums[0], codes.sums[1]);
        // SAFETY: the caller's promise.
        unsafe {
            place.put_codes(r, codes.words);
            place.put(r, CODE_WORDS, _mm_castps_si128(scale));
            place.put(r, CODE_WORDS + 1, lift);
            if place.format == WeightFormat::Q6K {
                place.put(r, CODE_WORDS + 2, place.start(lift, codes.sums[0]));
                place.put(r, CODE_WORDS + 3, place.start(lift, codes.sums[1]));
            } else {
                place.put(r, CODE_WORDS + 2, place.start(lift, all));
            }
        }
        let (high, low) = sum_bytes(all, shift);
        let byte = _mm_cvtsi32_si128(8 * (r as i32 % 4));
        sums[r / 4] = _mm_or_si128(sums[r / 4], _mm_sll_epi32(high, byte));
        sums[2 + r / 4] = _mm_or_si128(sums[2 + r / 4], _mm_sll_epi32(low, byte));
    }
    if place.format.has_minima() {
        for (r, word) in sums.into_iter().enumerate() {
            // SAFETY: the caller's promise.
            unsafe { place.put(r, CODE_WORDS + 2, word) };
        }
    }
}

/// Of four rows.
struct Scales {
    /// As [`crate::quant::activation_scale`] says; zero where a row is silent.
    scale: __m128,
    /// What activations multiply with to become codes; zero where a row is silent.
    inverse: __m128,
    /// Whose peak is as good as nothing.
    is_silent: __mmask8,
}

/// The scales of activations with these peaks.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn scales(peak: __m128) -> Scales {
    let most = _mm_set1_ps(127.0);
    let is_silent = _mm_cmp_ps_mask::<_CMP_LT_OQ>(peak, _mm_set1_ps(SILENT));
    let is_sound = _mm_cmp_ps_mask::<_CMP_LT_OQ>(peak, _mm_set1_ps(LARGEST_PEAK));
    let rounded = _mm_and_ps(_mm_div_ps(peak, most), _mm_castsi128_ps(_mm_set1_epi32(!3)));
    let scale = _mm_mask_blend_ps(is_sound, _mm_set1_ps(f32::NAN), rounded);
    Scales { scale: _mm_maskz_mov_ps(!is_silent, scale), inverse: _mm_maskz_div_ps(!is_silent, most, peak), is_silent }
}

/// As [`crate::quant::sum_bytes`] of [`crate::quant::quarters`], each in the low byte of a word.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn sum_bytes(sum: __m128i, shift: __m128i) -> (__m128i, __m128i) {
    let half = _mm_srli_epi32::<1>(_mm_sllv_epi32(_mm_set1_epi32(1), shift));
    let quarters = _mm_srav_epi32(_mm_add_epi32(_mm_slli_epi32::<2>(sum), half), shift);
    let high = _mm_srai_epi32::<7>(_mm_add_epi32(quarters, _mm_set1_epi32(64)));
    let low = _mm_sub_epi32(quarters, _mm_slli_epi32::<7>(high));
    let byte = _mm_set1_epi32(255);
    (_mm_and_si128(high, byte), _mm_and_si128(low, byte))
}

/// The bits of the largest absolute value of each row's run.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn peaks(x: [&[f32; RUN]; ABREAST]) -> __m128i {
    let mut four = [_mm_setzero_si128(); ABREAST];
    for (four, x) in four.iter_mut().zip(x) {
        let (low, high) = load(x);
        let sixteen = _mm512_max_epu32(size(low), size(high));
        let eight = _mm256_max_epu32(_mm512_castsi512_si256(sixteen), _mm512_extracti64x4_epi64::<1>(sixteen));
        *four = _mm_max_epu32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
    }
    let [a, b, c, d] = four;
    let ab = _mm_max_epu32(_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
    let cd = _mm_max_epu32(_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
    _mm_max_epu32(_mm_unpacklo_epi64(ab, cd), _mm_unpackhi_epi64(ab, cd))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn size(x: __m512) -> __m512i {
    _mm512_castps_si512(_mm512_abs_ps(x))
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn load(x: &[f32; RUN]) -> (__m512, __m512) {
    // SAFETY: a run is two registers of floats.
    unsafe { (_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(RUN / 2))) }
}

/// Codes of a run of four rows.
struct FourCodes {
    /// Thirty-two bytes a row.
    words: [__m256i; ABREAST],
    /// Of the codes of either half, a row a lane.
    sums: [__m128i; 2],
}

#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn codes(x: [&[f32; RUN]; ABREAST], inverse: __m128) -> FourCodes {
    let inverses = [
        _mm512_broadcastss_ps(inverse),
        _mm512_broadcastss_ps(_mm_permute_ps::<1>(inverse)),
        _mm512_broadcastss_ps(_mm_permute_ps::<2>(inverse)),
        _mm512_broadcastss_ps(_mm_permute_ps::<3>(inverse)),
    ];
    let mut words = [_mm256_setzero_si256(); ABREAST];
    let mut fours = [_mm256_setzero_si256(); ABREAST];
    for (i, x) in x.into_iter().enumerate() {
        let (low, high) = load(x);
        words[i] = _mm256_set_m128i(round(high, inverses[i]), round(low, inverses[i]));
        fours[i] = _mm256_dpbusd_epi32(_mm256_setzero_si256(), _mm256_set1_epi8(1), words[i]);
    }
    let sums = _mm256_hadd_epi32(_mm256_hadd_epi32(fours[0], fours[1]), _mm256_hadd_epi32(fours[2], fours[3]));
    FourCodes { words, sums: [_mm256_castsi256_si128(sums), _mm256_extracti128_si256::<1>(sums)] }
}

/// Sixteen codes: the integers in the low bytes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
fn round(x: __m512, inverse: __m512) -> __m128i {
    let rounded = _mm512_add_ps(_mm512_mul_ps(x, inverse), _mm512_set1_ps(ROUND));
    _mm512_cvtepi32_epi8(_mm512_castps_si512(rounded))
}
