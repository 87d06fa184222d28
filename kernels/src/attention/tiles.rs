//! A segment in tile registers: keys and values are multiplied where they are stored.
//!
//! A stretch of a product, what one tile is deep, is 32 elements of a key, or the values of one block. Rows of a kernel
//! that do not see a block skip it; where one sees some of it, all of it is multiplied, by weights of zero where a row
//! does not see it. What lies beyond the last key that any row sees may never have been written, and anything times a NaN
//! is NaN: of the block of that key, values are copied and the others set to zero.

use super::segment::{Blocks, ROUNDED_PITCH, SCORE_PITCH, intersection};
use super::softmax::{SegmentRows, soften_row_to_bf16};
use super::tile::{TileSizes, TileWork};
use crate::cpu::amx::{Rows, STRETCH, STRETCH_BYTES, Stretch, add_up, release, shape};
use crate::kv::{PANEL_COLUMNS, WORD_BYTES};
use crate::{BLOCK_TOKENS, Level};
use std::ptr::null;

/// Stretches of one panel of values after which the next are fetched: as long as memory takes.
const STRETCHES_AHEAD: usize = 8;

impl TileSizes {
    /// Computes the sums of one segment.
    pub(super) fn attend_in_tiles(&self, rows: &SegmentRows, blocks: &Blocks, work: &mut TileWork) {
        // SAFETY: products are of this kind only at a level that has tiles.
        unsafe { shape(self.m) };
        let last = copy_last_values(rows, blocks, work.copied);
        let values = Values { blocks, last };
        let num_groups = self.rows / self.m;
        let stretches = blocks.ids.len() * self.dim / STRETCH;
        self.score_group(rows, blocks, (0, work.q, &mut work.scores[..self.m * SCORE_PITCH]), || ());
        for group in 0..num_groups {
            let row = group * self.m;
            let (scores, next_scores) = halves(work.scores, self.m * SCORE_PITCH, group);
            let (weights, last_weights) = halves(work.rounded, self.m * ROUNDED_PITCH, group);
            let has_next = group + 1 < num_groups;
            let num_stretches = stretches * (usize::from(has_next) + usize::from(group > 0));
            let mut softener = Softener {
                level: self.level,
                rows,
                row,
                scores: scores.chunks_exact_mut(SCORE_PITCH),
                weights: weights.chunks_exact_mut(ROUNDED_PITCH),
                sums: work.segment.peak[row..].iter_mut().zip(&mut work.segment.weight[row..]),
                stretches_a_row: (num_stretches / self.m).max(1),
                stretches: 0,
            };
            if has_next {
                self.score_group(rows, blocks, (group + 1, work.q, next_scores), || softener.work());
            }
            if group > 0 {
                let before = (group - 1, &*last_weights, &mut *work.segment.value);
                self.gather_group(rows, &values, before, || softener.work());
            }
            while softener.soften_row() {}
        }
        let (weights, _) = halves(work.rounded, self.m * ROUNDED_PITCH, num_groups - 1);
        self.gather_group(rows, &values, (num_groups - 1, weights, work.segment.value), || ());
        // SAFETY: as above.
        unsafe { release() };
    }

    /// Computes the scores of a group of rows, their own alone; `meanwhile` is called once a stretch.
    fn score_group(
        &self,
        rows: &SegmentRows,
        blocks: &Blocks,
        (group, q, scores): (usize, &[u32], &mut [f32]),
        mut meanwhile: impl FnMut(),
    ) {
        let row = group * self.m;
        let seen = rows.seen_by_rows_from(row);
        for index in 0..blocks.ids.len() {
            let (keys, values) = blocks.stored(index);
            let next = match group {
                0 if index + 1 < blocks.ids.len() => blocks.stored(index + 1).0,
                _ => values,
            };
            let positions = blocks.positions(index);
            if intersection(&seen, &positions).is_empty() {
                continue;
            }
            let product = Rows {
                m: self.m,
                x: q[row * self.q_pitch()..].as_ptr().cast(),
                x_stride: self.q_pitch() * WORD_BYTES,
                y: scores[positions.start..].as_mut_ptr(),
                y_stride: SCORE_PITCH,
            };
            let stretches = (0..self.dim / STRETCH).map(|stretch| {
                meanwhile();
                Stretch {
                    w: keys[stretch * STRETCH_BYTES..].as_ptr(),
                    ahead: if group < 2 { next[stretch * STRETCH_BYTES..].as_ptr() } else { null() },
                }
            });
            // SAFETY: tiles are shaped for `m` rows; queries and scores are whole for so many, keys for a block.
            unsafe { add_up(&product, stretches) };
        }
    }

    /// Adds up the values for a group of rows by their weights alone; `meanwhile` is called once a stretch.
    fn gather_group(
        &self,
        rows: &SegmentRows,
        values: &Values,
        (group, weights, sums): (usize, &[u16], &mut [f32]),
        mut meanwhile: impl FnMut(),
    ) {
        let (row, start) = (group * self.m, values.blocks.start);
        let seen = rows.seen_by_rows_from(row);
        let sums = &mut sums[row * self.pitch..][..self.m * self.pitch];
        if seen.is_empty() {
            return sums.fill(0.0);
        }
        let seen = (seen.start - start) / BLOCK_TOKENS..(seen.end - start).div_ceil(BLOCK_TOKENS);
        let weights = &weights[start + seen.start * BLOCK_TOKENS..];
        for column in (0..self.dim).step_by(PANEL_COLUMNS) {
            let product = Rows {
                m: self.m,
                x: weights.as_ptr().cast(),
                x_stride: ROUNDED_PITCH * size_of::<u16>(),
                y: sums[column..].as_mut_ptr(),
                y_stride: self.pitch,
            };
            let stretches = seen.clone().map(|index| {
                meanwhile();
                Stretch {
                    w: values.panel(index, column),
                    ahead: if self.rows == self.m { values.ahead(index, column) } else { null() },
                }
            });
            // SAFETY: tiles are shaped for `m` rows; weights and sums are whole for so many, values for a block.
            unsafe { add_up(&product, stretches) };
        }
    }
}

/// The half of a buffer for a group of rows, and the one for the group before and the group after.
fn halves<T>(buffer: &mut [T], len: usize, group: usize) -> (&mut [T], &mut [T]) {
    let (even, odd) = buffer.split_at_mut(len);
    if group.is_multiple_of(2) { (even, odd) } else { (odd, even) }
}

/// Turns the scores of a group of rows into weights, a row now and then while tiles multiply other rows: the units that
/// do the one are idle in the other.
struct Softener<'a, Scores, Weights, Sums> {
    level: Level,
    rows: &'a SegmentRows,
    /// The next row.
    row: usize,
    scores: Scores,
    weights: Weights,
    /// Peaks and sums of weights.
    sums: Sums,
    /// After how many stretches it is time for the next row.
    stretches_a_row: usize,
    /// Since the last row.
    stretches: usize,
}

impl<'a, Scores, Weights, Sums> Softener<'_, Scores, Weights, Sums>
where
    Scores: Iterator<Item = &'a mut [f32]>,
    Weights: Iterator<Item = &'a mut [u16]>,
    Sums: Iterator<Item = (&'a mut f32, &'a mut f32)>,
{
    /// Called once a stretch.
    #[inline(always)]
    fn work(&mut self) {
        self.stretches += 1;
        if self.stretches == self.stretches_a_row {
            self.stretches = 0;
            self.soften_row();
        }
    }

    /// Whether there was a row.
    fn soften_row(&mut self) -> bool {
        let (Some(scores), Some(weights)) = (self.scores.next(), self.weights.next()) else { return false };
        let (peak, weight) = self.sums.next().expect("every row has sums");
        (*peak, *weight) = soften_row_to_bf16(self.level, self.rows, self.row, scores, weights);
        self.row += 1;
        true
    }
}

/// The values of a segment.
struct Values<'a> {
    blocks: &'a Blocks<'a>,
    /// The copy of those of the last block, if there is one.
    last: Option<*const u8>,
}

impl Values<'_> {
    /// Where 32 columns of a block begin.
    fn panel(&self, index: usize, column: usize) -> *const u8 {
        let at = column * BLOCK_TOKENS * WORD_BYTES / 2;
        match self.last {
            Some(last) if index + 1 == self.blocks.ids.len() => last.wrapping_add(at),
            _ => self.blocks.stored(index).1[at..].as_ptr(),
        }
    }

    /// Where begins what is wanted some stretches later.
    fn ahead(&self, index: usize, column: usize) -> *const u8 {
        let num_blocks = self.blocks.ids.len();
        let later = index + STRETCHES_AHEAD;
        let column = column + later / num_blocks * PANEL_COLUMNS;
        // SAFETY of what is made of it: a pointer that is only fetched may lie anywhere.
        self.blocks.stored(later % num_blocks).1.as_ptr().wrapping_add(column * BLOCK_TOKENS * WORD_BYTES / 2)
    }
}

/// Copies the values of the last block if no row sees all of it: those that are seen, and zeros.
fn copy_last_values(rows: &SegmentRows, blocks: &Blocks, copied: &mut [u32]) -> Option<*const u8> {
    let last = blocks.ids.len() - 1;
    let positions = blocks.positions(last);
    let seen = rows.seen_by_all().end - positions.start;
    if seen == BLOCK_TOKENS {
        return None;
    }
    let (panels, _) = copied.as_chunks_mut::<{ STRETCH_BYTES / WORD_BYTES }>();
    let (stored, _) = blocks.stored(last).1.as_chunks::<STRETCH_BYTES>();
    for (panel, stored) in panels.iter_mut().zip(stored) {
        let (words, _) = stored.as_chunks::<WORD_BYTES>();
        let (whole, rest) = panel.split_at_mut(seen / 2 * PANEL_COLUMNS);
        for (to, word) in whole.iter_mut().zip(words) {
            *to = u32::from_ne_bytes(*word);
        }
        rest.fill(0);
        if seen % 2 == 1 {
            // The first of a pair lies in the lower half.
            for (to, word) in rest[..PANEL_COLUMNS].iter_mut().zip(&words[whole.len()..]) {
                *to = u32::from_ne_bytes(*word) & 0xffff;
            }
        }
    }
    Some(copied.as_ptr().cast())
}
