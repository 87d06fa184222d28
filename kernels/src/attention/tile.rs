//! One tile of attention: consecutive queries of a sequence, all query heads of one key/value head.

use super::softmax::{BlockRows, merge_rows, soften};
use super::work::{Inputs, SEGMENT_BLOCKS};
use crate::cpu::{Kernel, StridedTile, f32_tile, prefetch};
use crate::kv::KvDtype;
use crate::share::Shared;
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
    level: Level,
    dim: usize,
    /// `dim` in whole kernel widths.
    pitch: usize,
    /// Query heads of the key/value head.
    group: usize,
    /// Rows the kernels take at once.
    m: usize,
    /// Rows, rounded up to whole `m`.
    rows: usize,
}

/// Running sums of the rows of a tile.
pub(super) struct Sums<'a> {
    /// Largest score so far.
    peak: &'a mut [f32],
    /// Sum of the weights.
    weight: &'a mut [f32],
    /// Weighted sum of the values, `[rows][pitch]`.
    value: &'a mut [f32],
}

/// The buffers of a tile.
pub(super) struct TileWork<'a> {
    /// Scaled queries, `[rows / m][dim][m]`.
    q: &'a mut [f32],
    /// Scores, then weights, of one block, `[rows][32]`.
    scores: &'a mut [f32],
    /// Keys of one block as f32, `[dim][32]`.
    keys: &'a mut [f32],
    /// Values of one block as f32, `[32][pitch]`.
    values: &'a mut [f32],
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
        let (peak, rest) = result.split_at_mut(self.peak.len());
        let (weight, value) = rest.split_at_mut(self.weight.len());
        peak.copy_from_slice(self.peak);
        weight.copy_from_slice(self.weight);
        value.copy_from_slice(self.value);
    }
}

impl TileSizes {
    pub(super) fn of(level: Level, inputs: &Inputs, queries: usize) -> Self {
        let dim = inputs.kv.shape().head_dim;
        let kernel = Kernel::of(level, WeightFormat::F32);
        let rows = queries * inputs.group();
        // Row groups of nearly equal size waste the least padding.
        let m = kernel.row_count_for(rows.div_ceil(rows.div_ceil(kernel.max_rows())));
        let pitch = dim.next_multiple_of(BLOCK_TOKENS);
        Self { level, dim, pitch, group: inputs.group(), m, rows: rows.next_multiple_of(m) }
    }

    /// Floats of [`Sums`].
    pub(super) fn result(&self) -> usize {
        self.rows * (self.pitch + 2)
    }

    /// Floats of [`TileWork`].
    pub(super) fn scratch(&self) -> usize {
        self.rows * (self.dim + BLOCK_TOKENS) + BLOCK_TOKENS * (self.dim + self.pitch) + 2 * self.result()
    }

    pub(super) fn divide<'a>(&self, scratch: &'a mut [f32]) -> TileWork<'a> {
        // The vectors the kernels load come first: their sizes are whole cache lines.
        let (keys, rest) = scratch.split_at_mut(BLOCK_TOKENS * self.dim);
        let (values, rest) = rest.split_at_mut(BLOCK_TOKENS * self.pitch);
        let (scores, rest) = rest.split_at_mut(self.rows * BLOCK_TOKENS);
        let (segment, rest) = rest.split_at_mut(self.result());
        let (total, q) = rest.split_at_mut(self.result());
        TileWork { q, scores, keys, values, segment: self.sums(segment), total: self.sums(total) }
    }

    /// The view of a stretch of [`TileSizes::result`] floats as sums.
    pub(super) fn sums<'a>(&self, floats: &'a mut [f32]) -> Sums<'a> {
        let (peak, rest) = floats.split_at_mut(self.rows);
        let (weight, value) = rest.split_at_mut(self.rows);
        Sums { peak, weight, value }
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

impl Tile {
    pub(super) fn segments(&self) -> RangeInclusive<usize> {
        self.first_block / SEGMENT_BLOCKS..=self.last_block / SEGMENT_BLOCKS
    }

    pub(super) fn num_segments(&self) -> usize {
        self.segments().count()
    }

    /// Lays the queries out and clears the total.
    pub(super) fn start(&self, inputs: &Inputs, work: &mut TileWork) {
        let TileSizes { dim, group, m, .. } = self.sizes;
        work.total.reset();
        work.q.fill(0.0);
        for query in 0..self.num_queries {
            for head in 0..group {
                let at = ((self.first_row + query) * inputs.heads + self.kv_head * group + head) * dim;
                let row = query * group + head;
                let column = &mut work.q[row / m * m * dim + row % m..];
                for (cell, q) in column.iter_mut().step_by(m).zip(&inputs.q[at..at + dim]) {
                    *cell = q * inputs.batch.scale;
                }
            }
        }
    }

    /// Computes the sums of one segment of positions.
    pub(super) fn attend(&self, inputs: &Inputs, segment: usize, work: &mut TileWork) {
        let sizes = &self.sizes;
        work.segment.reset();
        let first = self.first_block.max(segment * SEGMENT_BLOCKS);
        let last = self.last_block.min((segment + 1) * SEGMENT_BLOCKS - 1);
        for block in first..=last {
            let id = inputs.batch.tables[self.table_start + block] as usize;
            let (keys, values) = inputs.kv.block(id, self.kv_head);
            if block < last {
                // Blocks lie anywhere, so the machine cannot guess the next one.
                let next = inputs.kv.block(inputs.batch.tables[self.table_start + block + 1] as usize, self.kv_head);
                prefetch(next.0);
                prefetch(next.1);
            }
            let rows = BlockRows {
                num_rows: self.num_queries * sizes.group,
                group: sizes.group,
                position: self.position,
                window: self.window,
                block_start: block * BLOCK_TOKENS,
                pitch: sizes.pitch,
            };
            let keys =
                widened(inputs.kv.shape().dtype, keys, (sizes.dim, BLOCK_TOKENS, BLOCK_TOKENS), work.keys, sizes);
            for group in (0..sizes.rows).step_by(sizes.m) {
                let tile = StridedTile {
                    x: work.q[group * sizes.dim..].as_ptr(),
                    x_is_packed: true,
                    m: sizes.m,
                    w: keys.as_ptr(),
                    w_stride: BLOCK_TOKENS,
                    depth: sizes.dim,
                    y: work.scores[group * BLOCK_TOKENS..].as_mut_ptr(),
                    y_stride: BLOCK_TOKENS,
                    resumes: false,
                };
                // SAFETY: the pool's level exists; queries, keys and scores are whole for `m` rows.
                unsafe { f32_tile(sizes.level, &tile) };
            }
            let sums = &mut work.segment;
            soften(sizes.level, &rows, work.scores, (&mut *sums.peak, &mut *sums.weight, &mut *sums.value));
            let values =
                widened(inputs.kv.shape().dtype, values, (BLOCK_TOKENS, sizes.dim, sizes.pitch), work.values, sizes);
            // Keys no row sees may never have been written, and anything times a NaN is NaN: leave them out.
            let seen = rows.seen_by_any();
            for group in (0..sizes.rows).step_by(sizes.m) {
                for column in (0..sizes.pitch).step_by(BLOCK_TOKENS) {
                    let tile = StridedTile {
                        x: work.scores[group * BLOCK_TOKENS + seen.start..].as_ptr(),
                        x_is_packed: false,
                        m: sizes.m,
                        w: values[seen.start * sizes.pitch + column..].as_ptr(),
                        w_stride: sizes.pitch,
                        depth: seen.len(),
                        y: sums.value[group * sizes.pitch + column..].as_mut_ptr(),
                        y_stride: sizes.pitch,
                        resumes: true,
                    };
                    // SAFETY: the pool's level exists; weights, values and sums are whole for `m` rows.
                    unsafe { f32_tile(sizes.level, &tile) };
                }
            }
        }
    }

    /// Writes the rows of the tile.
    ///
    /// # Safety
    /// `out` is as long as the queries, and nobody else writes this tile's rows and heads.
    pub(super) unsafe fn finish(&self, inputs: &Inputs, total: &Sums, out: Shared<f32>) {
        let TileSizes { dim, group, pitch, .. } = self.sizes;
        for query in 0..self.num_queries {
            for head in 0..group {
                let row = query * group + head;
                let at = ((self.first_row + query) * inputs.heads + self.kv_head * group + head) * dim;
                // SAFETY: the caller's promise; the shapes were checked.
                let out = unsafe { out.piece(at, dim) };
                let inverse = 1.0 / total.weight[row];
                for (out, value) in out.iter_mut().zip(&total.value[row * pitch..]) {
                    // Adding zero makes a negative zero positive: its sign could depend on the neighbouring rows.
                    *out = value * inverse + 0.0;
                }
            }
        }
    }
}

/// A block's `[rows][cols]` elements as floats with `pitch` floats a row: in place where they are stored like that.
fn widened<'a>(
    dtype: KvDtype,
    stored: &'a [u8],
    (rows, cols, pitch): (usize, usize, usize),
    buffer: &'a mut [f32],
    sizes: &TileSizes,
) -> &'a [f32] {
    if dtype == KvDtype::F32 && cols == pitch {
        // SAFETY: any bits are a float, and blocks start at multiples of 32 floats in page-aligned memory.
        let (before, floats, _) = unsafe { stored.align_to::<f32>() };
        assert!(before.is_empty(), "blocks are aligned");
        return floats;
    }
    if cols == pitch {
        super::softmax::widen(sizes.level, dtype, stored, &mut buffer[..rows * cols]);
        return buffer;
    }
    for row in 0..rows {
        let target = &mut buffer[row * pitch..(row + 1) * pitch];
        let bytes = cols * dtype.bytes();
        super::softmax::widen(sizes.level, dtype, &stored[row * bytes..(row + 1) * bytes], target);
    }
    buffer
}
