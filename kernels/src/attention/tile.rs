//! One tile of attention: consecutive queries of a sequence, all query heads of one key/value head.

use super::segment::{CHUNK_BLOCKS, ROUNDED_PITCH, SCORE_PITCH};
use super::softmax::merge_rows;
use super::work::{Inputs, SEGMENT_BLOCKS};
use crate::cpu::lanes::LANES;
use crate::cpu::{Kernel, by_level, scale_to_pairs};
use crate::kv::{KvDtype, KvShape, PANEL_COLUMNS};
use crate::share::{Shared, as_numbers};
use crate::{BLOCK_TOKENS, Level, WeightFormat};
use std::ops::RangeInclusive;

/// What one tile computes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Tile {
    /// Row of its first query in the batch.
    pub(super) first_row: usize,
    pub(super) num_queries: usize,
    /// Position of its first query.
    pub(super) position: usize,
    pub(super) kv_head: usize,
    /// Where the sequence's block ids start.
    pub(super) table_start: usize,
    /// First block any of its queries sees.
    pub(super) first_block: usize,
    /// Last block any of its queries sees.
    pub(super) last_block: usize,
    /// Latest positions a query sees.
    pub(super) window: usize,
    pub(super) sizes: TileSizes,
}

/// Sizes of the buffers of a tile.
#[derive(Debug, Clone, Copy)]
pub(super) struct TileSizes {
    pub(super) level: Level,
    pub(super) dim: usize,
    /// `dim` in whole kernel widths.
    pub(super) pitch: usize,
    /// Query heads of the key/value head.
    pub(super) group: usize,
    /// Rows the kernels take at once.
    pub(super) m: usize,
    /// Rows, rounded up to whole `m`.
    pub(super) rows: usize,
    pub(super) products: Products,
    /// Whether the kernels read keys and values where they are stored: they do when they read them once only.
    pub(super) in_place: bool,
}

/// How queries are multiplied with keys, and weights with values.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Products {
    /// In f32.
    Floats,
    /// In dot products of bf16 pairs.
    Pairs,
    /// In tile registers of bf16 pairs.
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Products {
    /// The same for all rows of a cache, however many are computed at once.
    pub(super) fn of(level: Level, shape: KvShape) -> Self {
        match level {
            _ if shape.dtype == KvDtype::F32 => Self::Floats,
            level if level.dots_bf16() => Self::Pairs,
            // A tile takes 32 elements; those of shorter heads would have to be copied.
            #[cfg(target_arch = "x86_64")]
            Level::Amx if shape.head_dim.is_multiple_of(crate::cpu::amx::STRETCH) => Self::Tiles,
            _ => Self::Floats,
        }
    }

    /// Query rows (queries times heads of a group) of one tile: as many as the second-level cache holds easily, and a
    /// multiple of the row counts of the kernels. Tile registers are so fast that keys and values must come from there.
    pub(super) fn most_rows(self) -> usize {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Tiles => 384,
            Self::Floats | Self::Pairs => 96,
        }
    }

    /// Whether queries and weights are rounded to bf16, and multiplied with keys and values as they are stored.
    pub(super) fn round(self) -> bool {
        self != Self::Floats
    }
}

/// Running sums of the rows of a tile.
pub(super) struct Sums<'a> {
    /// Largest score so far.
    pub(super) peak: &'a mut [f32],
    /// Sum of the weights.
    pub(super) weight: &'a mut [f32],
    /// Weighted sum of the values, `[rows][pitch]`.
    pub(super) value: &'a mut [f32],
}

/// The buffers of a tile.
pub(super) struct TileWork<'a> {
    /// Scaled queries, `[rows][q_pitch]`: floats, or pairs of bf16.
    pub(super) q: &'a mut [u32],
    /// Scores, then weights, of one segment, `[softened rows][SCORE_PITCH]`.
    pub(super) scores: &'a mut [f32],
    /// The weights in bf16, `[softened rows][ROUNDED_PITCH]`; empty where they are not rounded.
    pub(super) rounded: &'a mut [u16],
    /// Keys of one block `[dim][32]` as floats, or 32 columns of the values of several, as floats or in pairs; with tiles
    /// the values of the last block as far as they are seen.
    pub(super) copied: &'a mut [u32],
    /// Of the current segment.
    pub(super) segment: Sums<'a>,
    /// Of all segments so far.
    pub(super) total: Sums<'a>,
}

impl Sums<'_> {
    pub(super) fn reset(&mut self) {
        self.peak.fill(f32::NEG_INFINITY);
        self.weight.fill(0.0);
        self.value.fill(0.0);
    }

    pub(super) fn copy_to(&self, result: &mut [f32]) {
        let (value, rest) = result.split_at_mut(self.value.len());
        let (peak, rest) = rest.split_at_mut(self.peak.len());
        value.copy_from_slice(self.value);
        peak.copy_from_slice(self.peak);
        rest[..self.weight.len()].copy_from_slice(self.weight);
    }
}

impl TileSizes {
    pub(super) fn of(level: Level, inputs: &Inputs, queries: usize) -> Self {
        let dim = inputs.kv.shape().head_dim;
        let products = Products::of(level, inputs.kv.shape());
        let rows = queries * inputs.group();
        let m = rows_at_once(level, products, rows);
        let pitch = dim.next_multiple_of(PANEL_COLUMNS);
        let rows = rows.next_multiple_of(m);
        let in_place = rows == m && dim == pitch;
        Self { level, dim, pitch, group: inputs.group(), m, rows, products, in_place }
    }

    /// Words of a row of queries.
    pub(super) fn q_pitch(&self) -> usize {
        if self.products.round() { self.dim / 2 } else { self.dim }
    }

    /// Floats of [`Sums`]: whole cache lines.
    pub(super) fn result(&self) -> usize {
        self.rows * self.pitch + (2 * self.rows).next_multiple_of(LANES)
    }

    /// Floats of [`TileWork`].
    pub(super) fn scratch(&self) -> usize {
        self.rows * self.q_pitch()
            + self.softened_rows() * SCORE_PITCH
            + self.rounded()
            + self.copied()
            + 2 * self.result()
    }

    /// Rows whose scores and weights are kept at once.
    fn softened_rows(&self) -> usize {
        match self.products {
            // Two groups: tiles multiply for one while the other is softened.
            #[cfg(target_arch = "x86_64")]
            Products::Tiles => self.rows.min(2 * self.m),
            _ => self.rows,
        }
    }

    fn rounded(&self) -> usize {
        if self.products.round() { self.softened_rows() * ROUNDED_PITCH / 2 } else { 0 }
    }

    fn copied(&self) -> usize {
        match self.products {
            #[cfg(target_arch = "x86_64")]
            Products::Tiles => self.dim * BLOCK_TOKENS / 2,
            _ if self.in_place => 0,
            _ => self.dim.max(CHUNK_BLOCKS * BLOCK_TOKENS) * PANEL_COLUMNS,
        }
    }

    pub(super) fn divide<'a>(&self, scratch: &'a mut [f32]) -> TileWork<'a> {
        // The vectors the kernels load come first: their sizes are whole cache lines.
        let (copied, rest) = scratch.split_at_mut(self.copied());
        let (scores, rest) = rest.split_at_mut(self.softened_rows() * SCORE_PITCH);
        let (segment, rest) = rest.split_at_mut(self.result());
        let (total, rest) = rest.split_at_mut(self.result());
        let (rounded, q) = rest.split_at_mut(self.rounded());
        TileWork {
            q: as_numbers(q),
            scores,
            rounded: as_numbers(rounded),
            copied: as_numbers(copied),
            segment: self.sums(segment),
            total: self.sums(total),
        }
    }

    /// The view of a stretch of [`TileSizes::result`] floats as sums.
    pub(super) fn sums<'a>(&self, floats: &'a mut [f32]) -> Sums<'a> {
        let (value, rest) = floats.split_at_mut(self.rows * self.pitch);
        let (peak, rest) = rest.split_at_mut(self.rows);
        Sums { peak, weight: &mut rest[..self.rows], value }
    }

    /// Adds a segment's sums to the total.
    pub(super) fn merge(&self, total: &mut Sums, segment: &Sums) {
        merge_rows(
            self.level,
            self.pitch,
            (&mut *total.peak, &mut *total.weight, &mut *total.value),
            (&*segment.peak, &*segment.weight, &*segment.value),
        );
    }
}

/// Rows that kernels take together: groups of nearly equal size waste the least padding.
fn rows_at_once(level: Level, products: Products, rows: usize) -> usize {
    let in_groups_of = |most: usize| rows.div_ceil(rows.div_ceil(most));
    match products {
        #[cfg(target_arch = "x86_64")]
        Products::Tiles => in_groups_of(crate::cpu::amx::MOST_ROWS),
        Products::Floats | Products::Pairs => {
            let kernel = Kernel::of(level, WeightFormat::F32, 1);
            kernel.row_count_for(in_groups_of(kernel.max_rows()))
        }
    }
}

impl Tile {
    pub(super) fn segments(&self) -> RangeInclusive<usize> {
        self.first_block / SEGMENT_BLOCKS..=self.last_block / SEGMENT_BLOCKS
    }

    pub(super) fn num_segments(&self) -> usize {
        self.segments().count()
    }

    /// Lays the queries out and clears the total.
    pub(super) fn start(&self, inputs: &Inputs, work: &mut TileWork) {
        let TileSizes { level, dim, group, .. } = self.sizes;
        let q_pitch = self.sizes.q_pitch();
        work.total.reset();
        work.q.fill(0);
        // Scores in units of ln 2, as the softmax wants them.
        let scale = inputs.batch.scale * std::f32::consts::LOG2_E;
        for query in 0..self.num_queries {
            for head in 0..group {
                let at = ((self.first_row + query) * inputs.heads + self.kv_head * group + head) * dim;
                let row = &mut work.q[(query * group + head) * q_pitch..][..q_pitch];
                let q = &inputs.q[at..at + dim];
                let lay_out = if self.sizes.products.round() { scale_to_pairs } else { scale_floats };
                lay_out(level, q, scale, row);
            }
        }
    }

    /// Writes the rows of the tile.
    ///
    /// # Safety
    /// `out` is as long as the queries, and nobody else writes this tile's rows and heads.
    pub(super) unsafe fn finish(&self, inputs: &Inputs, total: &Sums, out: Shared<f32>) {
        let TileSizes { level, dim, group, pitch, .. } = self.sizes;
        for query in 0..self.num_queries {
            for head in 0..group {
                let row = query * group + head;
                let at = ((self.first_row + query) * inputs.heads + self.kv_head * group + head) * dim;
                // SAFETY: the caller's promise; the shapes were checked.
                let out = unsafe { out.piece(at, dim) };
                divide(level, &total.value[row * pitch..], total.weight[row], out);
            }
        }
    }
}

by_level! {
    /// Divides values by the sum of their weights.
    fn divide(values: &[f32], weight: f32, out: &mut [f32]) = divide_inline
}

#[inline(always)]
fn divide_inline(values: &[f32], weight: f32, out: &mut [f32]) {
    let inverse = 1.0 / weight;
    for (out, value) in out.iter_mut().zip(values) {
        // Adding zero makes a negative zero positive: its sign could depend on the neighbouring rows.
        *out = value * inverse + 0.0;
    }
}

by_level! {
    /// Lays a query out as floats.
    fn scale_floats(q: &[f32], scale: f32, words: &mut [u32]) = scale_floats_inline
}

#[inline(always)]
fn scale_floats_inline(q: &[f32], scale: f32, words: &mut [u32]) {
    for (word, q) in words.iter_mut().zip(q) {
        *word = (q * scale).to_bits();
    }
}
