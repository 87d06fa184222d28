//! AVX-512 products with quantised weights. A panel holds 16 outputs; one register holds four inputs of each.

use super::dense::{PREFETCH_BYTES, store};
use crate::WeightFormat;
use crate::cpu::tile::{LIFT, RUN_WORDS};
use crate::cpu::{Out, TileInput};
use crate::panels::{K_MINS_AT, K_SCALES_AT, Q6K_SCALES_AT, quant_layout};
use crate::quant::RUN;
use std::arch::x86_64::*;

/// Runs of 32 inputs in a block of 256.
const RUNS_PER_BLOCK: usize = 8;

/// What a format multiplies its integer sums with.
pub(super) struct Scales {
    first: __m512,
    /// Of the second sixteen inputs; only with `TWO_SCALES`.
    second: __m512,
    /// Only with `HAS_MIN`.
    min: __m512,
}

/// One quantised weight format.
pub(super) trait Format {
    /// Which.
    const FORMAT: WeightFormat;
    /// Whether the halves of a run have different scales.
    const TWO_SCALES: bool = false;
    /// Whether weights have a minimum subtracted (then codes have no offset).
    const HAS_MIN: bool = false;
    /// Unsigned codes of inputs `4g..4g + 4` of sixteen outputs.
    ///
    /// # Safety
    /// AVX-512 F and BW; `w` has the layout's code bytes of a run; `g < 8`.
    unsafe fn codes(w: *const u8, g: usize) -> __m512i;
    /// What the runs of a block of 256 share, widened once for all of them.
    type Shared: Copy;
    /// # Safety
    /// AVX-512 F; `scales` is the start of a panel's scales, which hold the block of run `run`.
    unsafe fn shared(scales: *const u8, run: usize) -> Self::Shared;
    /// # Safety
    /// AVX-512 F; as [`Format::shared`], whose result for the block of `run` is given.
    unsafe fn scales(shared: Self::Shared, scales: *const u8, run: usize) -> Scales;
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

/// # Safety
/// AVX-512 F; 32 readable bytes.
#[inline(always)]
unsafe fn halves(at: *const u8) -> __m512 {
    // SAFETY: the caller's promise.
    unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(at.cast())) }
}

/// # Safety
/// AVX-512 F; 32 readable bytes at `scales + 32 * run`.
#[inline(always)]
unsafe fn plain_scales(scales: *const u8, run: usize) -> Scales {
    // SAFETY: the caller's promise.
    unsafe {
        let d = halves(scales.add(32 * run));
        Scales { first: d, second: d, min: d }
    }
}

/// Scale and minimum of a 256-block, which has eight small ones of each.
#[derive(Clone, Copy)]
pub(super) struct KScales {
    scale: __m512,
    min: __m512,
}

impl KScales {
    /// # Safety
    /// AVX-512 F; as [`Format::shared`] for `Q4K` and `Q5K`.
    #[inline(always)]
    unsafe fn of_block(scales: *const u8, run: usize) -> Self {
        // SAFETY: the caller's promise; the offsets are those of `panels`.
        unsafe {
            let block = k_block(WeightFormat::Q4K, scales, run);
            Self { scale: halves(block), min: halves(block.add(32)) }
        }
    }

    /// # Safety
    /// AVX-512 F; as [`Format::scales`] for `Q4K` and `Q5K`.
    #[inline(always)]
    unsafe fn of_run(self, scales: *const u8, run: usize) -> Scales {
        // SAFETY: the caller's promise; the offsets are those of `panels`.
        unsafe {
            let block = k_block(WeightFormat::Q4K, scales, run);
            let bytes = |at: usize| {
                let codes = _mm_loadu_si128(block.add(at + run % 8 * 16).cast());
                _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(codes))
            };
            let first = _mm512_mul_ps(self.scale, bytes(K_SCALES_AT));
            Scales { first, second: first, min: _mm512_mul_ps(self.min, bytes(K_MINS_AT)) }
        }
    }
}

/// The scales of the 256-block that holds run `run`.
#[inline(always)]
fn k_block(format: WeightFormat, scales: *const u8, run: usize) -> *const u8 {
    scales.wrapping_add(run / RUNS_PER_BLOCK * quant_layout(format).scale_bytes)
}

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

impl Format for Q8_0 {
    const FORMAT: WeightFormat = WeightFormat::Q8_0;
    #[inline(always)]
    unsafe fn codes(w: *const u8, g: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_loadu_si512(w.add(64 * g).cast()) }
    }
    type Shared = ();
    #[inline(always)]
    unsafe fn shared(_scales: *const u8, _run: usize) {}
    #[inline(always)]
    unsafe fn scales((): (), scales: *const u8, run: usize) -> Scales {
        // SAFETY: the trait's contract.
        unsafe { plain_scales(scales, run) }
    }
}

impl Format for Q4_0 {
    const FORMAT: WeightFormat = WeightFormat::Q4_0;
    #[inline(always)]
    unsafe fn codes(w: *const u8, g: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { nibbles(w, g) }
    }
    type Shared = ();
    #[inline(always)]
    unsafe fn shared(_scales: *const u8, _run: usize) {}
    #[inline(always)]
    unsafe fn scales((): (), scales: *const u8, run: usize) -> Scales {
        // SAFETY: the trait's contract.
        unsafe { plain_scales(scales, run) }
    }
}

impl Format for Q4K {
    const FORMAT: WeightFormat = WeightFormat::Q4K;
    const HAS_MIN: bool = true;
    #[inline(always)]
    unsafe fn codes(w: *const u8, g: usize) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { nibbles(w, g) }
    }
    type Shared = KScales;
    #[inline(always)]
    unsafe fn shared(scales: *const u8, run: usize) -> KScales {
        // SAFETY: the trait's contract.
        unsafe { KScales::of_block(scales, run) }
    }
    #[inline(always)]
    unsafe fn scales(shared: KScales, scales: *const u8, run: usize) -> Scales {
        // SAFETY: the trait's contract.
        unsafe { shared.of_run(scales, run) }
    }
}

impl Format for Q5K {
    const FORMAT: WeightFormat = WeightFormat::Q5K;
    const HAS_MIN: bool = true;
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
    type Shared = KScales;
    #[inline(always)]
    unsafe fn shared(scales: *const u8, run: usize) -> KScales {
        // SAFETY: the trait's contract.
        unsafe { KScales::of_block(scales, run) }
    }
    #[inline(always)]
    unsafe fn scales(shared: KScales, scales: *const u8, run: usize) -> Scales {
        // SAFETY: the trait's contract.
        unsafe { shared.of_run(scales, run) }
    }
}

impl Format for Q6K {
    const FORMAT: WeightFormat = WeightFormat::Q6K;
    const TWO_SCALES: bool = true;
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
    type Shared = __m512;
    #[inline(always)]
    unsafe fn shared(scales: *const u8, run: usize) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { halves(k_block(WeightFormat::Q6K, scales, run)) }
    }
    #[inline(always)]
    unsafe fn scales(d: __m512, scales: *const u8, run: usize) -> Scales {
        // SAFETY: the trait's contract; the offsets are those of `panels`.
        unsafe {
            let block = k_block(WeightFormat::Q6K, scales, run);
            let scale = |half: usize| {
                let at = Q6K_SCALES_AT + run % 8 * 32 + half * 16;
                let bytes = _mm_loadu_si128(block.add(at).cast());
                _mm512_mul_ps(d, _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes)))
            };
            Scales { first: scale(0), second: scale(1), min: d }
        }
    }
}

/// `M` rows times one panel.
///
/// # Safety
/// As [`crate::cpu::tile::TileFn`], for AVX-512 F, BW and VNNI.
#[inline(always)]
pub(super) unsafe fn tile<F: Format, const M: usize>(input: &TileInput, out: &Out) {
    // SAFETY: the caller's promise: the panel holds codes and scales of every run, `x` holds `M` rows of every run,
    // laid out as `XPacking::Bytes` says.
    unsafe {
        let layout = const { quant_layout(F::FORMAT) };
        let runs = input.cols / RUN;
        let scales = input.panel.add(runs * layout.code_bytes);
        // Pointers that move: products with an operand at a sum of two registers are split in two by the processor.
        let (mut w, mut x, mut ahead) = (input.panel, input.x, input.ahead.at);
        let mut acc = [_mm512_setzero_ps(); M];
        let mut shared = F::shared(scales, 0);
        for run in 0..runs {
            for line in 0..layout.code_bytes / 64 {
                _mm_prefetch::<_MM_HINT_T0>(w.wrapping_add(PREFETCH_BYTES + 64 * line).cast());
            }
            for _ in 0..input.ahead.lines_per_run {
                _mm_prefetch::<_MM_HINT_T1>(ahead.cast());
                ahead = ahead.wrapping_add(64);
            }
            if run % RUNS_PER_BLOCK == 0 {
                shared = F::shared(scales, run);
            }
            add_run::<F, M>(&mut acc, w, &F::scales(shared, scales, run), x);
            w = w.add(layout.code_bytes);
            x = x.add(RUN_WORDS * M);
        }
        for (m, &sum) in acc.iter().enumerate() {
            if m < out.rows {
                store(out, m, 0, sum);
            }
        }
    }
}

/// Adds one run of `M` rows. `x`: the first row's first word of the run, words of a row `M` apart.
///
/// # Safety
/// AVX-512 F, BW and VNNI; `w` has the code bytes of a run, `x` has `RUN_WORDS` words a row.
#[inline(always)]
unsafe fn add_run<F: Format, const M: usize>(acc: &mut [__m512; M], w: *const u8, scale: &Scales, x: *const u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let word = |i: usize, m: usize| _mm512_set1_epi32(x.add(i * M + m).cast::<i32>().read());
        let start =
            |i: usize, m: usize| if F::HAS_MIN { _mm512_castps_si512(_mm512_set1_ps(LIFT)) } else { word(i, m) };
        let mut dots: [__m512i; M] = std::array::from_fn(|m| start(10, m));
        if F::TWO_SCALES {
            add_group::<F, M>(&mut dots, w, 0, x);
            add_group::<F, M>(&mut dots, w, 1, x);
            add_group::<F, M>(&mut dots, w, 2, x);
            add_group::<F, M>(&mut dots, w, 3, x);
            add_scaled::<M>(acc, &dots, scale.first, x);
            dots = std::array::from_fn(|m| start(11, m));
            add_group::<F, M>(&mut dots, w, 4, x);
            add_group::<F, M>(&mut dots, w, 5, x);
            add_group::<F, M>(&mut dots, w, 6, x);
            add_group::<F, M>(&mut dots, w, 7, x);
            add_scaled::<M>(acc, &dots, scale.second, x);
        } else {
            // Groups that share bytes follow each other.
            add_group::<F, M>(&mut dots, w, 0, x);
            add_group::<F, M>(&mut dots, w, 4, x);
            add_group::<F, M>(&mut dots, w, 1, x);
            add_group::<F, M>(&mut dots, w, 5, x);
            add_group::<F, M>(&mut dots, w, 2, x);
            add_group::<F, M>(&mut dots, w, 6, x);
            add_group::<F, M>(&mut dots, w, 3, x);
            add_group::<F, M>(&mut dots, w, 7, x);
            add_scaled::<M>(acc, &dots, scale.first, x);
        }
        if F::HAS_MIN {
            for (m, sum) in acc.iter_mut().enumerate() {
                *sum = _mm512_fnmadd_ps(scale.min, _mm512_set1_ps(x.add(10 * M + m).cast::<f32>().read()), *sum);
            }
        }
    }
}

/// Adds the products of group `g`, all rows in step: the sums of one row wait for each other, those of different rows do
/// not.
///
/// # Safety
/// As [`add_run`]; `g < 8`.
#[inline(always)]
unsafe fn add_group<F: Format, const M: usize>(dots: &mut [__m512i; M], w: *const u8, g: usize, x: *const u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let codes = F::codes(w, g);
        for (m, dot) in dots.iter_mut().enumerate() {
            *dot = _mm512_dpbusd_epi32(*dot, codes, _mm512_set1_epi32(x.add(g * M + m).cast::<i32>().read()));
        }
    }
}

/// Adds integer sums, scaled. They started at [`LIFT`]'s bits: read as a float they are `LIFT + sum`, and one multiply-add
/// takes the lift off and scales. Converting would be one more step of the units that make the products.
///
/// # Safety
/// As [`add_run`].
#[inline(always)]
unsafe fn add_scaled<const M: usize>(acc: &mut [__m512; M], dots: &[__m512i; M], scale: __m512, x: *const u32) {
    // SAFETY: the caller's promise.
    unsafe {
        for (m, sum) in acc.iter_mut().enumerate() {
            let row_scale = _mm512_set1_ps(x.add(8 * M + m).cast::<f32>().read());
            let lift = _mm512_set1_ps(x.add(9 * M + m).cast::<f32>().read());
            let dot = _mm512_fmsub_ps(_mm512_castsi512_ps(dots[m]), row_scale, lift);
            *sum = _mm512_fmadd_ps(dot, scale, *sum);
        }
    }
}
