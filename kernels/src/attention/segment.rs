//! One segment of a tile: scores of all its keys, their softmax, and the sum of the values weighted by it.
//!
//! A tile whose rows fit one kernel reads keys and values where they are stored and widens them in registers; one of
//! more rows reads each of them several times and widens them once, into a buffer that stays in the first-level cache.
//! Both add the same products in the same order. Rows are left out of what none of a kernel's rows sees, so that the
//! triangle at the end of a prompt costs little more than half of its square.

use super::softmax::{SegmentRows, soften};
use super::tile::{Tile, TileSizes, TileWork};
use super::widen::{Stored, widen};
use super::work::{Inputs, SEGMENT_BLOCKS};
use crate::BLOCK_TOKENS;
use crate::cpu::{StridedTile, f32_tile};
use crate::kv::KvDtype;
use std::ops::Range;

/// Columns the kernels compute at once.
pub(super) const COLUMNS: usize = 32;
/// Blocks whose values are widened together, 32 columns at a time: as much as the first-level cache holds easily.
pub(super) const CHUNK_BLOCKS: usize = 4;
/// Floats from one row of scores to the next: the positions of a segment, and a cache line more, so that the rows that a
/// kernel reads together lie in different sets of the first-level cache.
pub(super) const SCORE_PITCH: usize = SEGMENT_BLOCKS * BLOCK_TOKENS + 16;

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
        self.sizes.score(&rows, &blocks, work);
        let sums = &mut work.segment;
        soften(self.sizes.level, &rows, work.scores, sums.peak, sums.weight);
        sums.value.fill(0.0);
        if self.sizes.in_place {
            self.sizes.gather_in_place(&rows, &blocks, work);
        } else {
            self.sizes.gather(&rows, &blocks, work);
        }
    }
}

/// The blocks of one segment that a tile reads.
struct Blocks<'a> {
    inputs: &'a Inputs<'a>,
    kv_head: usize,
    ids: &'a [u32],
    /// First key of the first block, counted from the segment's first position.
    start: usize,
}

impl Blocks<'_> {
    /// Keys and values of a block.
    fn stored(&self, index: usize) -> (&[u8], &[u8]) {
        self.inputs.kv.block(self.ids[index] as usize, self.kv_head)
    }

    fn dtype(&self) -> KvDtype {
        self.inputs.kv.shape().dtype
    }

    /// The positions of a block, counted from the segment's first.
    fn positions(&self, index: usize) -> Range<usize> {
        let start = self.start + index * BLOCK_TOKENS;
        start..start + BLOCK_TOKENS
    }
}

impl TileSizes {
    /// Computes the scores of all blocks.
    fn score(&self, rows: &SegmentRows, blocks: &Blocks, work: &mut TileWork) {
        for index in 0..blocks.ids.len() {
            let (keys, values) = blocks.stored(index);
            let positions = blocks.positions(index);
            // Blocks lie anywhere, so the machine cannot guess the next one.
            let is_last = index + 1 == blocks.ids.len();
            let next = if is_last { blocks.stored(0).1 } else { blocks.stored(index + 1).0 };
            let (mut w, mut w_dtype) = (keys.as_ptr(), blocks.dtype());
            if !self.in_place {
                let stored = Stored { dtype: w_dtype, bytes: keys, stride: BLOCK_TOKENS, cols: BLOCK_TOKENS };
                widen(self.level, stored, work.wide);
                (w, w_dtype) = (work.wide.as_ptr().cast(), KvDtype::F32);
            }
            for row in (0..self.rows).step_by(self.m) {
                if intersection(&rows.seen_by_rows_from(row), &positions).is_empty() {
                    continue;
                }
                let tile = StridedTile {
                    x: work.q[row * self.dim..].as_ptr(),
                    x_stride: self.dim,
                    m: self.m,
                    w,
                    w_dtype,
                    w_stride: BLOCK_TOKENS,
                    ahead: if row == 0 { next.as_ptr() } else { values.as_ptr() },
                    ahead_stride: BLOCK_TOKENS * blocks.dtype().bytes(),
                    depth: self.dim,
                    y: work.scores[row * SCORE_PITCH + positions.start..].as_mut_ptr(),
                    y_stride: SCORE_PITCH,
                    resumes: false,
                };
                // SAFETY: the pool's level exists; queries, keys and scores are whole for `m` rows.
                unsafe { f32_tile(self.level, &tile) };
            }
        }
    }

    /// Adds up the values, widened a few blocks and 32 columns at a time.
    fn gather(&self, rows: &SegmentRows, blocks: &Blocks, work: &mut TileWork) {
        let bytes = blocks.dtype().bytes();
        for first in (0..blocks.ids.len()).step_by(CHUNK_BLOCKS) {
            let chunk = first..blocks.ids.len().min(first + CHUNK_BLOCKS);
            let positions = blocks.positions(chunk.start).start..blocks.positions(chunk.end - 1).end;
            for column in (0..self.pitch).step_by(COLUMNS) {
                let cols = COLUMNS.min(self.dim - column);
                for (index, target) in chunk.clone().zip(work.wide.chunks_mut(BLOCK_TOKENS * COLUMNS)) {
                    let values = &blocks.stored(index).1[column * bytes..];
                    widen(self.level, Stored { dtype: blocks.dtype(), bytes: values, stride: self.dim, cols }, target);
                }
                for row in (0..self.rows).step_by(self.m) {
                    let seen = intersection(&rows.seen_by_rows_from(row), &positions);
                    if seen.is_empty() {
                        continue;
                    }
                    let w = work.wide[(seen.start - positions.start) * COLUMNS..].as_ptr().cast();
                    let values = Values { w, w_dtype: KvDtype::F32, w_stride: COLUMNS, ahead: w, ahead_stride: 0 };
                    self.add_values(row, column, seen, values, work);
                }
            }
        }
    }

    /// Adds up the values where they are stored.
    fn gather_in_place(&self, rows: &SegmentRows, blocks: &Blocks, work: &mut TileWork) {
        let (all, bytes) = (rows.seen_by_all(), blocks.dtype().bytes());
        for index in 0..blocks.ids.len() {
            let positions = blocks.positions(index);
            let seen = intersection(&all, &positions);
            if seen.is_empty() {
                continue;
            }
            let next = (index + 1).min(blocks.ids.len() - 1);
            for column in (0..self.pitch).step_by(COLUMNS) {
                let at = ((seen.start - positions.start) * self.dim + column) * bytes;
                let values = Values {
                    w: blocks.stored(index).1[at..].as_ptr(),
                    w_dtype: blocks.dtype(),
                    w_stride: self.dim,
                    ahead: blocks.stored(next).1[at..].as_ptr(),
                    ahead_stride: self.dim * bytes,
                };
                self.add_values(0, column, seen.clone(), values, work);
            }
        }
    }

    /// Adds 32 columns of the values of the keys `seen` to the sums of the rows from `row` on.
    ///
    /// `seen` leaves out what no row sees: it may never have been written, and anything times a NaN is NaN.
    fn add_values(&self, row: usize, column: usize, seen: Range<usize>, values: Values, work: &mut TileWork) {
        let tile = StridedTile {
            x: work.scores[row * SCORE_PITCH + seen.start..].as_ptr(),
            x_stride: SCORE_PITCH,
            m: self.m,
            w: values.w,
            w_dtype: values.w_dtype,
            w_stride: values.w_stride,
            ahead: values.ahead,
            ahead_stride: values.ahead_stride,
            depth: seen.len(),
            y: work.segment.value[row * self.pitch + column..].as_mut_ptr(),
            y_stride: self.pitch,
            resumes: true,
        };
        // SAFETY: the pool's level exists; weights, values and sums are whole for `m` rows.
        unsafe { f32_tile(self.level, &tile) };
    }
}

/// Where the values of some keys lie, 32 columns of them; the fields are those of [`StridedTile`].
struct Values {
    w: *const u8,
    w_dtype: KvDtype,
    w_stride: usize,
    ahead: *const u8,
    ahead_stride: usize,
}

fn intersection(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}
