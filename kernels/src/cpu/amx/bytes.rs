//! Products of bytes: up to 16 rows times one quantised panel of 16 outputs.
//!
//! Integer sums of a run, or of half of it where halves have scales of their own, leave the tiles through memory and are
//! scaled by vectors, in the order and with the bits of the AVX-512 kernels. While one part's sums are scaled, the next
//! parts' products are made: two tiles of sums take turns.

use super::tiles::{ROW_BYTES, TILE_ROWS};
use crate::WeightFormat;
use crate::cpu::avx512::{
    SIGNED_RUN_BYTES, fetch_ahead, halves, load, minima_of_block, signed_bytes, store, unsigned_bytes,
};
use crate::cpu::tile::{LIFT, ROW_RUN_WORDS};
use crate::cpu::{Ahead, Out};
use crate::panels::{K_SCALES_AT, Q6K_SCALES_AT, quant_layout};
use crate::quant::{RUN, RUNS_PER_BLOCK};
use std::arch::asm;
use std::arch::x86_64::*;

/// What [`multiply_bytes`] multiplies.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ByteProduct {
    /// Of the panel.
    pub(crate) format: WeightFormat,
    /// Its codes, as [`sign_codes`](crate::cpu::avx512::sign_codes) writes them.
    pub(crate) codes: *const u8,
    /// Its scales.
    pub(crate) scales: *const u8,
    /// `m` rows laid out as [`XPacking::ByteRows`](crate::cpu::XPacking::ByteRows).
    pub(crate) x: *const u32,
    /// Rows, one of [`BYTE_ROW_COUNTS`], as the tiles were shaped for.
    pub(crate) m: usize,
    /// Runs of 32 inputs to add up, whole blocks of formats that have them; codes, scales and rows are those from the first
    /// of them on.
    pub(crate) runs: usize,
    /// What to fetch meanwhile.
    pub(crate) ahead: Ahead,
}

/// Row counts there are kernels for, ascending.
pub(crate) const BYTE_ROW_COUNTS: &[usize] = &[12, 16];

/// Inputs of a row that are added up before a scale is needed.
pub(super) fn part_inputs(format: WeightFormat) -> usize {
    if format == WeightFormat::Q6K { RUN / 2 } else { RUN }
}

/// Multiplies, and writes the rows and outputs that `out` has.
///
/// # Safety
/// The machine has [`Level::Amx`](crate::Level::Amx) and [`shape_for_bytes`](super::shape_for_bytes) shaped this thread's
/// tiles for this format and as many rows; the pointers are valid for what [`ByteProduct`] and [`Out`] describe.
pub(crate) unsafe fn multiply_bytes(product: &ByteProduct, out: &Out) {
    // SAFETY: the caller's promise.
    unsafe {
        match product.format {
            WeightFormat::Q8_0 | WeightFormat::Q4_0 => multiply_rows::<Runs>(product, out),
            WeightFormat::Q4K | WeightFormat::Q5K => multiply_rows::<BlocksWithMinima>(product, out),
            WeightFormat::Q6K => multiply_rows::<BlocksOfHalves>(product, out),
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 => unreachable!("dense formats have no codes"),
        }
    }
}

/// # Safety
/// As [`multiply_bytes`], for a format of `S`.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn multiply_rows<S: Scales>(product: &ByteProduct, out: &Out) {
    // SAFETY: the caller's promise; the features are enabled.
    unsafe {
        match product.m {
            12 => multiply_parts::<S, 12>(product, out),
            16 => multiply_parts::<S, 16>(product, out),
            _ => unreachable!("not one of the row counts"),
        }
    }
}

/// How the scales of a panel lie.
trait Scales {
    /// Parts of a run that have scales of their own.
    const PARTS: usize;
    /// Whether runs form blocks.
    const HAS_BLOCKS: bool;
    /// Bytes of scales a run, or a block.
    const BYTES: usize;
    /// The scales of part `part` of a run, or of a block, that begins at `at`; `scale`: the block's.
    ///
    /// # Safety
    /// AVX-512 F; `at` has [`Self::BYTES`].
    unsafe fn of_part(at: *const u8, scale: __m512, part: usize) -> __m512;
}

/// One scale a run.
struct Runs;
/// Blocks whose runs have scales and minima.
struct BlocksWithMinima;
/// Blocks whose halves of runs have scales.
struct BlocksOfHalves;

impl Scales for Runs {
    const PARTS: usize = 1;
    const HAS_BLOCKS: bool = false;
    const BYTES: usize = quant_layout(WeightFormat::Q8_0).scale_bytes;
    #[inline(always)]
    unsafe fn of_part(_: *const u8, scale: __m512, _: usize) -> __m512 {
        scale
    }
}

impl Scales for BlocksWithMinima {
    const PARTS: usize = 1;
    const HAS_BLOCKS: bool = true;
    const BYTES: usize = quant_layout(WeightFormat::Q4K).scale_bytes;
    #[inline(always)]
    unsafe fn of_part(at: *const u8, scale: __m512, part: usize) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mul_ps(scale, unsigned_bytes(at.add(K_SCALES_AT + part * 16))) }
    }
}

impl Scales for BlocksOfHalves {
    const PARTS: usize = 2;
    const HAS_BLOCKS: bool = true;
    const BYTES: usize = quant_layout(WeightFormat::Q6K).scale_bytes;
    #[inline(always)]
    unsafe fn of_part(at: *const u8, scale: __m512, part: usize) -> __m512 {
        // SAFETY: the trait's contract.
        unsafe { _mm512_mul_ps(scale, signed_bytes(at.add(Q6K_SCALES_AT + part * 16))) }
    }
}

/// Integer sums of a part as they leave the tiles.
#[repr(C, align(64))]
struct Dots([[i32; TILE_ROWS]; TILE_ROWS]);

/// # Safety
/// As [`multiply_bytes`], inlined where its features are enabled.
#[inline(always)]
unsafe fn multiply_parts<S: Scales, const M: usize>(product: &ByteProduct, out: &Out) {
    let parts = product.runs * S::PARTS;
    let mut dots = [const { Dots([[0; TILE_ROWS]; TILE_ROWS]) }; 2];
    let mut ahead = product.ahead.at;
    // SAFETY: the caller's promise: codes and rows hold every part, the tiles have their shapes.
    unsafe {
        let mut sums = Sums::<S, M>::new(product, out);
        let factors = |part: usize| {
            let (run, half) = (part / S::PARTS, part % S::PARTS);
            let w = product.codes.add(part * (SIGNED_RUN_BYTES / S::PARTS));
            (product.x.add(run * ROW_RUN_WORDS * M).cast::<u8>().add(half * (RUN / 2)), w)
        };
        multiply_first(factors(0));
        if parts > 1 {
            multiply_second(factors(1));
        }
        for part in (0..parts).step_by(2) {
            ahead = fetch_ahead(ahead, product.ahead.lines_per_run * 2 / S::PARTS);
            asm!("tilestored [{at} + {row}], tmm0", at = in(reg) &raw mut dots[0], row = in(reg) ROW_BYTES, options(nostack));
            if part > 0 {
                sums.add(part - 1, &dots[1]);
            }
            if part + 2 < parts {
                multiply_first(factors(part + 2));
            }
            if part + 1 < parts {
                asm!("tilestored [{at} + {row}], tmm1", at = in(reg) &raw mut dots[1], row = in(reg) ROW_BYTES, options(nostack));
                sums.add(part, &dots[0]);
                if part + 3 < parts {
                    multiply_second(factors(part + 3));
                }
            }
        }
        sums.add(parts - 1, &dots[(parts - 1) % 2]);
        for (row, &sum) in sums.finished().iter().enumerate() {
            if row < out.rows {
                store(out, row, 0, sum);
            }
        }
    }
}

/// Defines a function that puts the products of a part into one tile of sums.
macro_rules! multiply_into {
    ($name:ident, $sums:tt, $rows:tt, $weights:tt) => {
        /// # Safety
        /// The tiles are shaped for the rows and the codes of a part that lie there.
        #[inline(always)]
        unsafe fn $name((x, w): (*const u8, *const u8)) {
            // SAFETY: the caller's promise.
            unsafe {
                asm!(
                    concat!("tilezero ", $sums),
                    concat!("tileloadd ", $rows, ", [{x} + {x_row}]"),
                    concat!("tileloadd ", $weights, ", [{w} + {w_row}]"),
                    concat!("tdpbssd ", $sums, ", ", $rows, ", ", $weights),
                    x = in(reg) x, x_row = in(reg) RUN, w = in(reg) w, w_row = in(reg) ROW_BYTES,
                    options(nostack, readonly), out($sums) _, out($rows) _, out($weights) _,
                );
            }
        }
    };
}
multiply_into!(multiply_first, "tmm0", "tmm2", "tmm4");
multiply_into!(multiply_second, "tmm1", "tmm3", "tmm5");

/// The sums of `M` rows.
struct Sums<S, const M: usize> {
    /// Of the runs, or of the runs of a block that is not over. Registers: places in it are always constant.
    sums: [__m512; M],
    /// Of whole blocks.
    blocks: [__m512; M],
    x: *const u32,
    scales: *const u8,
    /// Of the block begun.
    scale: __m512,
    layout: std::marker::PhantomData<S>,
}

impl<S: Scales, const M: usize> Sums<S, M> {
    /// Zero, or what `out` holds.
    ///
    /// # Safety
    /// The caller's features; `out` is valid.
    #[inline(always)]
    unsafe fn new(product: &ByteProduct, out: &Out) -> Self {
        // SAFETY: the caller's promise.
        unsafe {
            let zero = _mm512_setzero_ps();
            let mut begun = [zero; M];
            if out.resumes {
                for (row, sum) in begun.iter_mut().enumerate().take(out.rows) {
                    *sum = load(out, row, 0);
                }
            }
            let (sums, blocks) = if S::HAS_BLOCKS { ([zero; M], begun) } else { (begun, [zero; M]) };
            let (x, scales, layout) = (product.x, product.scales, std::marker::PhantomData);
            Self { sums, blocks, x, scales, scale: zero, layout }
        }
    }

    /// Adds the integer sums of part `part`: parts come in order.
    ///
    /// # Safety
    /// The caller's features; rows and scales hold the part.
    #[inline(always)]
    unsafe fn add(&mut self, part: usize, dots: &Dots) {
        const { assert!(S::HAS_BLOCKS || S::PARTS == 1, "runs have one scale") };
        let (run, parts_per_block) = (part / S::PARTS, RUNS_PER_BLOCK * S::PARTS);
        // SAFETY: the caller's promise.
        unsafe {
            let x = self.x.add(run * ROW_RUN_WORDS * M);
            let (unit, part) = if S::HAS_BLOCKS { (part / parts_per_block, part % parts_per_block) } else { (part, 0) };
            let scales = self.scales.add(unit * S::BYTES);
            if part == 0 {
                self.scale = halves(scales);
            }
            let scale = S::of_part(scales, self.scale, part);
            let factors = x.add(if S::HAS_BLOCKS { 9 * M } else { 8 * M });
            add_scaled::<M>(&mut self.sums, dots, scale, factors);
            if S::HAS_BLOCKS && part + 1 == parts_per_block {
                let mut sums = self.sums;
                self.sums = [_mm512_setzero_ps(); M];
                end_block::<S, M>(&mut sums, &mut self.blocks, x.sub((RUNS_PER_BLOCK - 1) * ROW_RUN_WORDS * M), scales);
            }
        }
    }

    #[inline(always)]
    fn finished(&self) -> &[__m512; M] {
        if S::HAS_BLOCKS { &self.blocks } else { &self.sums }
    }
}

/// Takes minima off the `sums` of a block, multiplies them with the scales of its activations and adds them to `blocks`;
/// `x`: the block's first run.
///
/// # Safety
/// As [`multiply_bytes`]; rows and scales hold the block.
#[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl,avx512vnni")]
unsafe fn end_block<S: Scales, const M: usize>(
    sums: &mut [__m512; M],
    blocks: &mut [__m512; M],
    x: *const u32,
    scales: *const u8,
) {
    // SAFETY: the caller's promise: words as `ByteBlock::put` wrote them.
    unsafe {
        if S::PARTS == 1 {
            let word = |index: usize, row: usize| x.add(((index + 1) * ROW_RUN_WORDS + 8) * M + row).read();
            minima_of_block::<M>(sums, word, scales);
        }
        for (row, (block, &sum)) in blocks.iter_mut().zip(&*sums).enumerate() {
            let scale = _mm512_set1_ps(x.add(8 * M + row).cast::<f32>().read());
            *block = _mm512_fmadd_ps(sum, scale, *block);
        }
    }
}

/// Adds integer sums times a factor of their row times the scales of their outputs.
///
/// # Safety
/// AVX-512 F; `factors` has a float a row.
#[inline(always)]
unsafe fn add_scaled<const M: usize>(sums: &mut [__m512; M], dots: &Dots, scale: __m512, factors: *const u32) {
    // While tiles work, multiplications and conversions share one of two ports; additions have both. So only a third of the
    // rows is converted. The others become floats at the bits of `LIFT`. Both ways are exact.
    // Written out, because a loop would keep the sums in memory.
    macro_rules! rows {
        ($($converted:literal $lifted:literal $also_lifted:literal)*) => {$(
            if $converted < M {
                add_row(&mut sums[$converted], _mm512_cvtepi32_ps(dots.row($converted)), scale, factors.add($converted));
            }
            if $lifted < M {
                add_row(&mut sums[$lifted], dots.lifted_row($lifted), scale, factors.add($lifted));
            }
            if $also_lifted < M {
                add_row(&mut sums[$also_lifted], dots.lifted_row($also_lifted), scale, factors.add($also_lifted));
            }
        )*};
    }
    // SAFETY: the caller's promise.
    unsafe {
        rows! { 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 }
    }
}

/// # Safety
/// AVX-512 F; `factor` is a float.
#[inline(always)]
unsafe fn add_row(sum: &mut __m512, dot: __m512, scale: __m512, factor: *const u32) {
    // SAFETY: the caller's promise.
    unsafe {
        let factor = _mm512_set1_ps(factor.cast::<f32>().read());
        *sum = _mm512_fmadd_ps(_mm512_mul_ps(dot, factor), scale, *sum);
    }
}

impl Dots {
    /// # Safety
    /// AVX-512 F.
    #[inline(always)]
    unsafe fn row(&self, row: usize) -> __m512i {
        // SAFETY: a row is a register.
        unsafe { _mm512_load_si512(self.0[row].as_ptr().cast()) }
    }

    /// A row as floats, by additions.
    ///
    /// # Safety
    /// AVX-512 F.
    #[inline(always)]
    unsafe fn lifted_row(&self, row: usize) -> __m512 {
        // SAFETY: the caller's promise.
        unsafe {
            let lift = _mm512_set1_ps(LIFT);
            _mm512_sub_ps(_mm512_castsi512_ps(_mm512_add_epi32(self.row(row), _mm512_castps_si512(lift))), lift)
        }
    }
}
