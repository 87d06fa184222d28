//! Codes of quantised weights in registers, and their products with bytes of activations. A panel holds 16 outputs; one
//! register holds four inputs of each.

use crate::WeightFormat;
use std::arch::x86_64::*;

/// The codes of one quantised weight format.
pub(super) trait Codes {
    /// Which.
    const FORMAT: WeightFormat;
    /// Unsigned codes of inputs `4g..4g + 4` of sixteen outputs.
    ///
    /// # Safety
    /// AVX-512 F and BW; `w` has the layout's code bytes of a run; `g < 8`.
    unsafe fn codes(w: *const u8, g: usize) -> __m512i;
}

/// Signed bytes, stored plus 128.
pub(super) struct Q8_0;
/// Four bits around 8.
pub(super) struct Q4_0;
/// Four bits with minimum.
pub(super) struct Q4K;
/// Five bits with minimum.
pub(super) struct Q5K;
/// Six bits around 32, a scale for every sixteen.
pub(super) struct Q6K;

/// Group `g` of four-bit codes.
///
/// # Safety
/// AVX-512 F and BW; 256 readable bytes; `g < 8`.
#[inline(always)]
unsafe fn nibbles(w: *const u8, g: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe {
        let pair = _mm512_loadu_si512(w.add(64 * (g % 4)).cast());
        _mm512_and_si512(if g < 4 { pair } else { _mm512_srli_epi16::<4>(pair) }, _mm512_set1_epi8(15))
    }
}

impl Codes for Q8_0 {
    const FORMAT: WeightFormat = WeightFormat::Q8_0;
    #[inline(always)]
    unsafe fn codes(w: *const u8, g: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_si512(w.add(64 * g).cast()) }
    }
}

impl Codes for Q4_0 {
    const FORMAT: WeightFormat = WeightFormat::Q4_0;
    #[inline(always)]
    unsafe fn codes(w: *const u8, g: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { nibbles(w, g) }
    }
}

impl Codes for Q4K {
    const FORMAT: WeightFormat = WeightFormat::Q4K;
    #[inline(always)]
    unsafe fn codes(w: *const u8, g: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { nibbles(w, g) }
    }
}

impl Codes for Q5K {
    const FORMAT: WeightFormat = WeightFormat::Q5K;
    #[inline(always)]
    unsafe fn codes(w: *const u8, g: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe {
            let high = _mm512_loadu_si512(w.add(256).cast());
            // Bit g of `high` becomes bit 4; what a 16-bit shift drags in from the neighbour is masked off.
            let moved = match g {
                0 => _mm512_slli_epi16::<4>(high),
                1 => _mm512_slli_epi16::<3>(high),
                2 => _mm512_slli_epi16::<2>(high),
                3 => _mm512_slli_epi16::<1>(high),
                4 => high,
                5 => _mm512_srli_epi16::<1>(high),
                6 => _mm512_srli_epi16::<2>(high),
                _ => _mm512_srli_epi16::<3>(high),
            };
            _mm512_or_si512(nibbles(w, g), _mm512_and_si512(moved, _mm512_set1_epi8(16)))
        }
    }
}

impl Codes for Q6K {
    const FORMAT: WeightFormat = WeightFormat::Q6K;
    #[inline(always)]
    unsafe fn codes(w: *const u8, g: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe {
            let part = _mm512_loadu_si512(w.add(256 + g / 4 * 64).cast());
            // Bits 2s and 2s + 1 become bits 4 and 5.
            let moved = match g % 4 {
                0 => _mm512_slli_epi16::<4>(part),
                1 => _mm512_slli_epi16::<2>(part),
                2 => part,
                _ => _mm512_srli_epi16::<2>(part),
            };
            _mm512_or_si512(nibbles(w, g), _mm512_and_si512(moved, _mm512_set1_epi8(0x30)))
        }
    }
}

/// Adds the products of group `g`, all rows in step: the sums of one row wait for each other, those of different rows do
/// not.
///
/// # Safety
/// AVX-512 F, BW and VNNI; `w` has the code bytes of a run, `x` has `RUN_WORDS` words a row; `g < 8`.
#[inline(always)]
pub(super) unsafe fn add_group<F: Codes, const M: usize>(
    dots: &mut [__m512i; M],
    w: *const u8,
    g: usize,
    x: *const u32,
) {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = F::codes(w, g);
        for (m, dot) in dots.iter_mut().enumerate() {
            *dot = _mm512_dpbusd_epi32(*dot, codes, word::<M>(x, g, m));
        }
    }
}

/// Adds the products of a whole run. Groups that share bytes follow each other.
///
/// # Safety
/// As [`add_group`].
#[inline(always)]
pub(super) unsafe fn add_groups<F: Codes, const M: usize>(dots: &mut [__m512i; M], w: *const u8, x: *const u32) {
    // SAFETY: the caller's promise. Written out, because loops around many rows are not always unrolled.
    unsafe {
        add_group::<F, M>(dots, w, 0, x);
        add_group::<F, M>(dots, w, 4, x);
        add_group::<F, M>(dots, w, 1, x);
        add_group::<F, M>(dots, w, 5, x);
        add_group::<F, M>(dots, w, 2, x);
        add_group::<F, M>(dots, w, 6, x);
        add_group::<F, M>(dots, w, 3, x);
        add_group::<F, M>(dots, w, 7, x);
    }
}

/// Sixteen halves as floats.
///
/// # Safety
/// AVX-512 F; 32 readable bytes.
#[inline(always)]
pub(in crate::cpu) unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// Word `i` of row `m` among `M` rows, in all lanes.
///
/// # Safety
/// AVX-512 F; `x` has the word.
#[inline(always)]
pub(super) unsafe fn word<const M: usize>(x: *const u32, i: usize, m: usize) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_set1_epi32(x.add(i * M + m).cast::<i32>().read()) }
}

/// The same as a float.
///
/// # Safety
/// As [`word`].
#[inline(always)]
pub(super) unsafe fn float<const M: usize>(x: *const u32, i: usize, m: usize) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_castsi512_ps(word::<M>(x, i, m)) }
}
