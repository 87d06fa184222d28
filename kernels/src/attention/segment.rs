//! One segment of a tile: scores of all its keys, their softmax, and the sum of the values weighted by it.
//!
//! A tile whose rows fit one kernel reads keys and values where they are stored and widens them in registers; one of
//! more rows reads each of them several times and widens them once, into a buffer that stays in the first-level cache.
//! Both add the same products in the same order. Where bf16 is multiplied in pairs nothing is widened: keys are read where
//! they are stored by tiles of any size, and values of several blocks are copied together only to make the sums longer that
//! a kernel keeps in registers. Rows are left out of what none of a kernel's rows sees, so that the triangle at the end of
//! a prompt costs little more than half of its square.

use super::softmax::{SegmentRows, soften, soften_row_to_bf16};
use super::tile::{Tile, TileSizes, TileWork};
use super::widen::{Stored, copy, widen};
use super::work::{Inputs, SEGMENT_BLOCKS};
use crate::BLOCK_TOKENS;
use crate::cpu::{Factors, StridedTile, strided_tile};
use crate::kv::{KvDtype, PANEL_COLUMNS, WORD_BYTES};
use std::ops::Range;

/// Blocks whose values are copied together, 32 columns at a time: as much as the first-level cache holds easily.
pub(super) const CHUNK_BLOCKS: usize = 4;
/// Floats from one row of scores to the next: the positions of a segment, and a cache line more, so that the rows that a
/// kernel reads together lie in different sets of the first-level cache.
pub(super) const SCORE_PITCH: usize = SEGMENT_BLOCKS * BLOCK_TOKENS + 16;
/// The same for weights in bf16.
pub(super) const ROUNDED_PITCH: usize = SEGMENT_BLOCKS * BLOCK_TOKENS + 32;

impl Tile {
    /// Computes the sums of one segment of positions.
    pub(super) fn attend(&self, inputs: &Inputs, segment: usize, work: &mut TileWork) {
        let rows = SegmentRows {
            num_rows: self.num_queries * self.sizes.group,
            m: self.sizes.m,
            group: self.sizes.group,
            position: self.position,
            window: self.window,
            start: segment * SEGMENT_BLOCKS * BLOCK_TOKENS,
            len: SEGMENT_BLOCKS * BLOCK_TOKENS,
        };
        let first = self.first_block.max(segment * SEGMENT_BLOCKS);
        let last = self.last_block.min((segment + 1) * SEGMENT_BLOCKS - 1);
        let ids = &inputs.batch.tables[self.table_start + first..=self.table_start + last];
        let blocks = Blocks { inputs, kv_head: self.kv_head, ids, start: first % SEGMENT_BLOCKS * BLOCK_TOKENS };
        #[cfg(target_arch = "x86_64")]
        if self.sizes.products == super::tile::Products::Tiles {
            return self.sizes.attend_in_tiles(&rows, &blocks, work);
        }
        self.sizes.score(&rows, &blocks, work);
        self.sizes.soften(&rows, work);
        work.segment.value.fill(0.0);
        if self.sizes.in_place {
            self.sizes.gather_in_place(&rows, &blocks, work);
        } else {
            self.sizes.gather(&rows, &blocks, work);
        }
    }
}

/// The blocks of one segment that a tile reads.
pub(super) struct Blocks<'a> {
    inputs: &'a Inputs<'a>,
    kv_head: usize,
    pub(super) ids: &'a [u32],
    /// First key of the first block, counted from the segment's first position.
    pub(super) start: usize,
}

impl Blocks<'_> {
    /// Keys and values of a block.
    pub(super) fn stored(&self, index: usize) -> (&[u8], &[u8]) {
        self.inputs.kv.block(self.ids[index] as usize, self.kv_head)
    }

    /// The keys of a block.
    fn keys(&self, index: usize) -> Stored<'_> {
        Stored { dtype: self.dtype(), bytes: self.stored(index).0, cols: BLOCK_TOKENS }
    }

    /// The values of a block from column `column` on, as many columns as are a panel.
    fn panel(&self, index: usize, column: usize) -> Stored<'_> {
        let (dtype, bytes) = (self.dtype(), self.dtype().bytes());
        let cols = PANEL_COLUMNS.min(self.inputs.kv.shape().head_dim - column);
        let panel = &self.stored(index).1[column * BLOCK_TOKENS * bytes..][..cols * BLOCK_TOKENS * bytes];
        Stored { dtype, bytes: panel, cols }
    }

    fn dtype(&self) -> KvDtype {
        self.inputs.kv.shape().dtype
    }

    /// The positions of a block, counted from the segment's first.
    pub(super) fn positions(&self, index: usize) -> Range<usize> {
        let start = self.start + index * BLOCK_TOKENS;
        start..start + BLOCK_TOKENS
    }
}

impl TileSizes {
    /// How queries are multiplied with keys, and weights with values, that lie as they are stored.
    fn factors_in_place(&self, dtype: KvDtype) -> Factors {
        match dtype {
            _ if self.products.round() => Factors::Bf16,
            KvDtype::F32 => Factors::F32,
            KvDtype::Bf16 => Factors::WidenedBf16,
        }
    }

    /// Turns the scores of a segment into weights.
    fn soften(&self, rows: &SegmentRows, work: &mut TileWork) {
        let sums = &mut work.segment;
        if !self.products.round() {
            return soften(self.level, rows, work.scores, sums.peak, sums.weight);
        }
        let rounded = work.rounded.chunks_exact_mut(ROUNDED_PITCH);
        for (row, (scores, rounded)) in work.scores.chunks_exact_mut(SCORE_PITCH).zip(rounded).enumerate() {
            (sums.peak[row], sums.weight[row]) = soften_row_to_bf16(self.level, rows, row, scores, rounded);
        }
    }

    /// Computes the scores of all blocks.
    fn score(&self, rows: &SegmentRows, blocks: &Blocks, work: &mut TileWork) {
        let bytes = blocks.dtype().bytes();
        for index in 0..blocks.ids.len() {
            let (keys, values) = blocks.stored(index);
            let positions = blocks.positions(index);
            // Blocks lie anywhere, so the machine cannot guess the next one.
            let is_last = index + 1 == blocks.ids.len();
            let next = if is_last { blocks.stored(0).1 } else { blocks.stored(index + 1).0 };
            let (mut w, mut factors) = (keys.as_ptr(), self.factors_in_place(blocks.dtype()));
            if !self.in_place && !self.products.round() {
                widen(self.level, blocks.keys(index), work.copied);
                (w, factors) = (work.copied.as_ptr().cast(), Factors::F32);
            }
            for row in (0..self.rows).step_by(self.m) {
                if intersection(&rows.seen_by_rows_from(row), &positions).is_empty() {
                    continue;
                }
                let tile = StridedTile {
                    factors,
                    x: work.q[row * self.q_pitch()..].as_ptr(),
                    x_stride: self.q_pitch(),
                    m: self.m,
                    w,
                    w_stride: BLOCK_TOKENS,
                    ahead: if row == 0 { next.as_ptr() } else { values.as_ptr() },
                    ahead_stride: BLOCK_TOKENS * bytes,
                    depth: self.dim,
                    y: work.scores[row * SCORE_PITCH + positions.start..].as_mut_ptr(),
                    y_stride: SCORE_PITCH,
                    resumes: false,
                };
                // SAFETY: the pool's level exists; queries, keys and scores are whole for `m` rows.
                unsafe { strided_tile(self.level, &tile) };
            }
        }
    }

    /// Adds up the values, copied a few blocks and 32 columns at a time.
    fn gather(&self, rows: &SegmentRows, blocks: &Blocks, work: &mut TileWork) {
        let (factors, per_word) = if self.products.round() { (Factors::Bf16, 2) } else { (Factors::F32, 1) };
        for first in (0..blocks.ids.len()).step_by(CHUNK_BLOCKS) {
            let chunk = first..blocks.ids.len().min(first + CHUNK_BLOCKS);
            let positions = blocks.positions(chunk.start).start..blocks.positions(chunk.end - 1).end;
            for column in (0..self.pitch).step_by(PANEL_COLUMNS) {
                let targets = work.copied.chunks_mut(BLOCK_TOKENS / per_word * PANEL_COLUMNS);
                for (index, target) in chunk.clone().zip(targets) {
                    let panel = blocks.panel(index, column);
                    let lay_out = if self.products.round() { copy } else { widen };
                    lay_out(self.level, panel, target);
                }
                for row in (0..self.rows).step_by(self.m) {
                    let seen = whole_words(intersection(&rows.seen_by_rows_from(row), &positions));
                    if seen.is_empty() {
                        continue;
                    }
                    let w = work.copied[(seen.start - positions.start) / per_word * PANEL_COLUMNS..].as_ptr().cast();
                    let values = Values { factors, w, ahead: w, ahead_stride: 0 };
                    self.add_values(row, column, seen, values, work);
                }
            }
        }
    }

    /// Adds up the values where they are stored.
    fn gather_in_place(&self, rows: &SegmentRows, blocks: &Blocks, work: &mut TileWork) {
        let (all, dtype) = (rows.seen_by_all(), blocks.dtype());
        for index in 0..blocks.ids.len() {
            let positions = blocks.positions(index);
            let seen = whole_words(intersection(&all, &positions));
            if seen.is_empty() {
                continue;
            }
            let next = (index + 1).min(blocks.ids.len() - 1);
            let at = (seen.start - positions.start) / dtype.per_word() * PANEL_COLUMNS * WORD_BYTES;
            for column in (0..self.pitch).step_by(PANEL_COLUMNS) {
                let values = Values {
                    factors: self.factors_in_place(dtype),
                    w: blocks.panel(index, column).bytes[at..].as_ptr(),
                    ahead: blocks.panel(next, column).bytes[at..].as_ptr(),
                    ahead_stride: PANEL_COLUMNS * dtype.bytes(),
                };
                self.add_values(0, column, seen.clone(), values, work);
            }
        }
    }

    /// Adds 32 columns of the values of the keys `seen` to the sums of the rows from `row` on.
    ///
    /// What lies beyond `seen` is left out: it may never have been written, and anything times a NaN is NaN.
    fn add_values(&self, row: usize, column: usize, seen: Range<usize>, values: Values, work: &mut TileWork) {
        let (x, x_stride) = if self.products.round() {
            (work.rounded[row * ROUNDED_PITCH + seen.start..].as_ptr().cast(), ROUNDED_PITCH / 2)
        } else {
            (work.scores[row * SCORE_PITCH + seen.start..].as_ptr().cast(), SCORE_PITCH)
        };
        let tile = StridedTile {
            factors: values.factors,
            x,
            x_stride,
            m: self.m,
            w: values.w,
            w_stride: PANEL_COLUMNS,
            ahead: values.ahead,
            ahead_stride: values.ahead_stride,
            depth: seen.len(),
            y: work.segment.value[row * self.pitch + column..].as_mut_ptr(),
            y_stride: self.pitch,
            resumes: true,
        };
        // SAFETY: the pool's level exists; weights, values and sums are whole for `m` rows. Pairs of weights are whole
        // words: `seen` begins with one, and rows are whole words apart, all from the start of a cache line on.
        unsafe { strided_tile(self.level, &tile) };
    }
}

/// Where the values of some keys lie, 32 columns of them; the fields are those of [`StridedTile`].
struct Values {
    factors: Factors,
    w: *const u8,
    ahead: *const u8,
    ahead_stride: usize,
}

pub(super) fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// The same from the start of a word of two on. The key before the first shares its register of weights: it has none.
fn whole_words(keys: Range<usize>) -> Range<usize> {
    if keys.is_empty() { keys } else { keys.start & !1..keys.end }
}
