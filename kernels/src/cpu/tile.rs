//! The innermost unit of [`crate::linear`]: a few activation rows times one panel of weights.
//!
//! Every kernel adds over the inputs in ascending order with one running sum an output, whatever the number of rows.
//! That is what makes a row's bits independent of its batch.

use super::{Level, scalar};
use crate::WeightFormat;
#[cfg(target_arch = "x86_64")]
use crate::{panels::QUANT_ROWS, quant::RUN};
use std::ops::Range;

/// How activations are laid out for a kernel. A tile holds `m` rows side by side, so that one step reads `m` words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum XPacking {
    /// `[cols][m]` floats.
    F32,
    /// The same, rounded to bf16, `cols` padded to even.
    Bf16AsF32,
    /// `[cols / 2][m]` pairs of bf16.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for bf16 dot products of x86"))]
    Bf16Pairs,
    /// Per stretch of [`BF16_STRETCH`] inputs: `[m][16]` pairs of bf16, `cols` padded to whole stretches.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for the tile registers of x86"))]
    Bf16Rows,
    /// Per run of 32: `[8][m]` words of four signed bytes, `[m]` scales, `[m]` lifts, two times `[m]` of format-dependent
    /// sums. [`super::activations`] says what they are.
    Bytes,
    /// The same with scales of whole blocks of 256.
    ByteBlocks,
    /// Per run of 32: `[m][8]` words of four signed bytes, two times `[m]` of format-dependent words, said there, too.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "for the tile registers of x86"))]
    ByteRows,
}

impl XPacking {
    /// Words of 32 bits a row takes.
    pub(crate) fn words_per_row(self, cols: usize) -> usize {
        match self {
            Self::F32 => cols,
            Self::Bf16AsF32 => cols.next_multiple_of(2),
            Self::Bf16Pairs => cols.div_ceil(2),
            Self::Bf16Rows => cols.div_ceil(BF16_STRETCH) * (BF16_STRETCH / 2),
            Self::Bytes | Self::ByteBlocks | Self::ByteRows => cols / 32 * self.run_words(),
        }
    }

    /// Words of a row and run of bytes.
    #[inline(always)]
    pub(crate) fn run_words(self) -> usize {
        match self {
            Self::ByteRows => ROW_RUN_WORDS,
            _ => RUN_WORDS,
        }
    }
}

/// Inputs of one row of [`XPacking::Bf16Rows`]: as many as a tile register is deep.
pub(crate) const BF16_STRETCH: usize = 32;

/// Words a row and run take in [`XPacking::Bytes`]: eight of codes, scale, lift, two sums.
pub(crate) const RUN_WORDS: usize = 12;
/// Words a row and run take in [`XPacking::ByteRows`]: eight of codes, two more.
pub(crate) const ROW_RUN_WORDS: usize = 10;

/// What an integer sum is added to so that its bits are those of a float: `LIFT + sum`, exact for sums below 2²².
pub(crate) const LIFT: f32 = 12_582_912.0;

/// What a kernel reads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct TileInput {
    /// Format of the panels, the one the kernel was chosen for.
    pub(crate) format: WeightFormat,
    /// First panel.
    pub(crate) panel: *const u8,
    /// Bytes from one panel to the next.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "scalar kernels take one panel"))]
    pub(crate) panel_bytes: usize,
    /// Panels to multiply with; never more than [`Kernel::panels_at_once`] allows.
    pub(crate) panels: usize,
    /// Start of the activation tile.
    pub(crate) x: *const u32,
    /// Rows in the tile, one of [`Kernel::row_counts`].
    pub(crate) m: usize,
    /// Inputs of the whole matrix.
    pub(crate) cols: usize,
    /// The inputs to add up, in this call; all of them for quantised formats. `from` is even.
    pub(crate) from: usize,
    /// End of those inputs.
    pub(crate) to: usize,
    /// What to fetch meanwhile.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "scalar kernels fetch nothing ahead"))]
    pub(crate) ahead: Ahead,
}

/// Weights that will be used soon, to be brought into the second-level cache while a tile is multiplied: arithmetic and
/// memory then work at the same time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ahead {
    /// Where they start; any address.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "scalar kernels fetch nothing ahead"))]
    pub(crate) at: *const u8,
    /// Cache lines to fetch for every run of 32 inputs.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "scalar kernels fetch nothing ahead"))]
    pub(crate) lines_per_run: usize,
}

/// Bytes that come from memory together.
pub(crate) const CACHE_LINE: usize = 64;

impl TileInput {
    /// What is left of this and of `out` for panel `index` alone.
    ///
    /// # Safety
    /// `index < self.panels`, and `out` has lanes for it.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) unsafe fn one_panel(&self, out: &Out, index: usize) -> (Self, Out) {
        let outputs = index * QUANT_ROWS;
        let fetched = index * self.cols / RUN * self.ahead.lines_per_run * CACHE_LINE;
        let input = Self {
            // SAFETY: the caller's promise: the panel is one of those given.
            panel: unsafe { self.panel.add(index * self.panel_bytes) },
            panels: 1,
            ahead: Ahead { at: self.ahead.at.wrapping_add(fetched), ..self.ahead },
            ..*self
        };
        let out = Out {
            y: out.y.wrapping_add(outputs),
            lanes: out.lanes - outputs,
            bias: if out.bias.is_null() { out.bias } else { out.bias.wrapping_add(outputs) },
            ..*out
        };
        (input, out)
    }
}

impl Ahead {
    /// Nothing.
    pub(crate) const NONE: Self = Self { at: std::ptr::null(), lines_per_run: 0 };

    /// The share of the bytes that are `coming` of a call that begins when `done` of `runs` runs are over, each of which
    /// fetches as much.
    pub(crate) fn share(weights: &[u8], coming: &Range<usize>, done: usize, runs: usize) -> Self {
        let lines_per_run = coming.len().div_ceil(CACHE_LINE * runs);
        let done = done * lines_per_run * CACHE_LINE;
        if done >= coming.len() {
            return Self::NONE;
        }
        Self { at: weights.as_ptr().wrapping_add(coming.start + done), lines_per_run }
    }

    /// How far to go with every step of `inputs` inputs, for kernels that fetch a line a step: less than a line where
    /// several steps share one.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn bytes_per_step(&self, inputs: usize) -> usize {
        self.lines_per_run * CACHE_LINE * inputs / RUN
    }
}

/// Where a kernel writes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Out {
    /// First output of the first row.
    pub(crate) y: *mut f32,
    /// Floats from one row to the next.
    pub(crate) stride: usize,
    /// Rows to write; the tile may hold more (padding).
    pub(crate) rows: usize,
    /// Outputs to write from the first panel's first on; the panels may hold more (padding).
    pub(crate) lanes: usize,
    /// Added last, if not null.
    pub(crate) bias: *const f32,
    /// Whether to go on from the sums found in `y` instead of from zero.
    pub(crate) resumes: bool,
}

/// Multiplies one tile.
///
/// # Safety
/// The machine has the kernel's level; `panel`, `x`, `y` and `bias` are valid for what [`TileInput`] and [`Out`]
/// describe; nobody else reads or writes those outputs meanwhile.
pub(crate) type TileFn = unsafe fn(&TileInput, &Out);

/// How to multiply with one format on one level.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Kernel {
    /// The implementation.
    pub(crate) tile: TileFn,
    /// How it wants its activations.
    pub(crate) packing: XPacking,
    /// Row counts it is compiled for, ascending.
    pub(crate) row_counts: &'static [usize],
    /// How many panels it takes.
    pub(crate) panels: Panels,
}

/// How many panels a kernel takes in one call.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Panels {
    /// One, or two with up to so many rows: more sums in flight.
    TwoUpTo(usize),
    /// Any number, one after the other: for panels that are soon over.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "scalar kernels take one panel"))]
    Any,
}

impl Kernel {
    /// The kernel for matrices of `format` with `cols` columns on `level`.
    pub(crate) fn of(level: Level, format: WeightFormat, cols: usize) -> Self {
        let by_blocks = level.takes_blocks(format, cols);
        #[cfg(target_arch = "x86_64")]
        match level {
            Level::Scalar => {}
            Level::Avx2 => return super::avx2::kernel(format),
            // The products that tile registers are for do not come here.
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx => {
                return super::avx512::kernel(format, by_blocks, level.dots_bf16());
            }
        }
        let _ = (level, by_blocks);
        scalar::kernel(format)
    }

    /// The smallest compiled row count for `rows` rows; `rows` is at most the largest.
    pub(crate) fn row_count_for(&self, rows: usize) -> usize {
        *self.row_counts.iter().find(|&&m| m >= rows).expect("callers cut tiles of at most the largest count")
    }

    /// The most panels of a call with `m` rows.
    pub(crate) fn panels_at_once(&self, m: usize) -> usize {
        match self.panels {
            Panels::TwoUpTo(rows) if m <= rows => 2,
            Panels::TwoUpTo(_) => 1,
            Panels::Any => usize::MAX,
        }
    }

    /// Rows of the largest tile.
    pub(crate) fn max_rows(&self) -> usize {
        *self.row_counts.last().expect("no kernel is without row counts")
    }
}

/// What the factors of a [`StridedTile`] are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Factors {
    /// Floats and floats.
    F32,
    /// Floats, and bf16 that are widened in registers: the bits are those of a product with the widened memory.
    WidenedBf16,
    /// bf16 and bf16, in dot products of pairs; only for a level that [`Level::dots_bf16`].
    Bf16,
}

/// A product of plain memory, as attention needs it: `y[r][0..32] (+)= sum over k of x[r][k] * w[k][0..32]`.
///
/// Memory is made of words of four bytes. A word of `w` holds one f32, or two bf16 of neighbouring `k`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StridedTile {
    /// Types of `x` and `w`.
    pub(crate) factors: Factors,
    /// First factor, rows of neighbouring `k`. With an odd `depth` and bf16 in `w`, one more is read and has no weight.
    pub(crate) x: *const u32,
    /// Words from one of its rows to the next.
    pub(crate) x_stride: usize,
    /// Rows, one of the level's f32 row counts.
    pub(crate) m: usize,
    /// Second factor, rows of 32 words…
    pub(crate) w: *const u8,
    /// …this many words apart.
    pub(crate) w_stride: usize,
    /// What is wanted next, fetched meanwhile: a cache line for every `k`. Any address.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "scalar kernels fetch nothing ahead"))]
    pub(crate) ahead: *const u8,
    /// Bytes from one of those lines to the next.
    #[cfg_attr(not(target_arch = "x86_64"), expect(dead_code, reason = "scalar kernels fetch nothing ahead"))]
    pub(crate) ahead_stride: usize,
    /// Length of the sum. The last word of an odd one with bf16 counts by its first half alone.
    pub(crate) depth: usize,
    /// First output.
    pub(crate) y: *mut f32,
    /// Floats from one row of outputs to the next.
    pub(crate) y_stride: usize,
    /// Whether to add to what `y` holds.
    pub(crate) resumes: bool,
}

/// Computes one [`StridedTile`].
///
/// # Safety
/// The machine has `level`; the pointers are valid for the sizes given; `y` overlaps neither factor.
#[inline]
pub(crate) unsafe fn strided_tile(level: Level, tile: &StridedTile) {
    // SAFETY: the caller's promise, passed on.
    unsafe {
        #[cfg(target_arch = "x86_64")]
        match level {
            Level::Scalar => {}
            Level::Avx2 => return super::avx2::strided_tile(tile),
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx => return super::avx512::strided_tile(tile),
        }
        let _ = level;
        scalar::strided_tile(tile);
    }
}
