//! Softmax of the scores of one segment, and the merging of segments.
//!
//! Scores come in units of `ln 2`: powers of two take fewer steps than powers of e. Where values are multiplied in bf16, the
//! weights are rounded to bf16 before they are added up, so that they are shares of one whole.

use super::segment::SCORE_PITCH;
use crate::cpu::lanes::{LANES, exp2_below_zero, sum};
use crate::cpu::{by_level, weigh_in_bf16};
use crate::{BLOCK_TOKENS, Level};
use std::ops::Range;

/// Which keys of a segment the rows of a tile see. Keys are counted from the segment's first position.
#[derive(Debug, Clone, Copy)]
pub(super) struct SegmentRows {
    pub(super) num_rows: usize,
    /// Rows that the kernels take at once.
    pub(super) m: usize,
    /// Rows of one query.
    pub(super) group: usize,
    /// Position of the first query.
    pub(super) position: usize,
    /// Latest positions a query sees.
    pub(super) window: usize,
    /// Position of the segment's first key.
    pub(super) start: usize,
    /// Positions of a segment.
    pub(super) len: usize,
}

impl SegmentRows {
    /// The keys that a row sees.
    #[inline(always)]
    pub(super) fn seen_by(&self, row: usize) -> Range<usize> {
        let position = self.position + row / self.group;
        let first = (position + 1).saturating_sub(self.window);
        let start = first.saturating_sub(self.start).min(self.len);
        let end = (position + 1).saturating_sub(self.start).min(self.len);
        start..end.max(start)
    }

    /// The keys from the first to the last that any of the rows from `row` on sees which the kernels take together.
    #[inline(always)]
    pub(super) fn seen_by_rows_from(&self, row: usize) -> Range<usize> {
        self.seen_by_any(row..(row + self.m).min(self.num_rows))
    }

    /// The keys from the first to the last that any row sees.
    pub(super) fn seen_by_all(&self) -> Range<usize> {
        self.seen_by_any(0..self.num_rows)
    }

    #[inline(always)]
    fn seen_by_any(&self, rows: Range<usize>) -> Range<usize> {
        // Later rows see later keys. The first may see nothing any more, or the last nothing yet.
        let (first, last) = (self.seen_by(rows.start), self.seen_by(rows.end - 1));
        first.start..last.end.max(first.end)
    }

    /// Registers of scores with keys that a row sees, and the others before and after in blocks that any row of its kernel
    /// sees.
    #[inline(always)]
    fn registers(&self, row: usize) -> (Range<usize>, [Range<usize>; 2]) {
        const BLOCK: usize = BLOCK_TOKENS / LANES;
        let common = self.seen_by_rows_from(row / self.m * self.m);
        let seen = if row < self.num_rows { self.seen_by(row) } else { 0..0 };
        let own = seen.start / LANES..seen.end.div_ceil(LANES);
        let blocks = common.start / BLOCK_TOKENS..common.end.div_ceil(BLOCK_TOKENS);
        let unseen = [blocks.start * BLOCK..own.start, own.end..blocks.end * BLOCK];
        (own, unseen)
    }

    /// Gives the keys that share the outermost registers of a row, unseen, the score of no weight.
    #[inline(always)]
    fn hide(&self, row: usize, own: &mut [[f32; LANES]]) {
        let seen = self.seen_by(row);
        if let Some(first) = own.first_mut() {
            first[..seen.start % LANES].fill(f32::NEG_INFINITY);
        }
        if let Some(last) = own.last_mut() {
            last[(seen.end - 1) % LANES + 1..].fill(f32::NEG_INFINITY);
        }
    }
}

by_level! {
    /// Turns the scores `[rows][SCORE_PITCH]` of a segment into weights; returns each row's largest score and sum of
    /// weights in `peaks` and `weights`. Keys that other rows of a kernel see, and a row does not, have no weight.
    pub(super) fn soften(rows: &SegmentRows, scores: &mut [f32], peaks: &mut [f32], weights: &mut [f32]) = soften_rows
}

#[inline(always)]
fn soften_rows(rows: &SegmentRows, scores: &mut [f32], peaks: &mut [f32], weights: &mut [f32]) {
    let (scores, _) = scores.as_chunks_mut::<SCORE_PITCH>();
    for (row, scores) in scores.iter_mut().enumerate() {
        let (registers, _) = scores.as_chunks_mut::<LANES>();
        let (own, unseen) = rows.registers(row);
        for unseen in unseen {
            registers.get_mut(unseen).unwrap_or_default().fill([0.0; LANES]);
        }
        let registers = &mut registers[own];
        rows.hide(row, registers);
        peaks[row] = highest(registers);
        weights[row] = weigh(registers, peaks[row]);
    }
}

/// The same for one row, with weights rounded to bf16 and written to `rounded`; returns its largest score and sum of
/// weights.
pub(super) fn soften_row_to_bf16(
    level: Level,
    rows: &SegmentRows,
    row: usize,
    scores: &mut [f32],
    rounded: &mut [u16],
) -> (f32, f32) {
    let (scores, _) = scores.as_chunks_mut::<LANES>();
    let (rounded, _) = rounded.as_chunks_mut::<LANES>();
    let (own, unseen) = rows.registers(row);
    for unseen in unseen {
        rounded.get_mut(unseen).unwrap_or_default().fill([0; LANES]);
    }
    let (scores, rounded) = (&mut scores[own.clone()], &mut rounded[own]);
    rows.hide(row, scores);
    weigh_in_bf16(level, scores, rounded)
}

/// The largest score. A NaN among them may be passed over: its weight becomes NaN all the same.
#[inline(always)]
fn highest(registers: &[[f32; LANES]]) -> f32 {
    // Four chains: a maximum takes several cycles.
    const CHAINS: usize = 4;
    let mut chains = [[f32::NEG_INFINITY; LANES]; CHAINS];
    let (quads, rest) = registers.as_chunks::<CHAINS>();
    for quad in quads {
        for (chain, register) in chains.iter_mut().zip(quad) {
            *chain = larger(chain, register);
        }
    }
    for register in rest {
        chains[0] = larger(&chains[0], register);
    }
    let mut lanes = larger(&larger(&chains[0], &chains[1]), &larger(&chains[2], &chains[3]));
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            lanes[i] = if lanes[i] > lanes[i + width] { lanes[i] } else { lanes[i + width] };
        }
        width /= 2;
    }
    lanes[0]
}

#[inline(always)]
fn larger(a: &[f32; LANES], b: &[f32; LANES]) -> [f32; LANES] {
    let mut larger = [0.0; LANES];
    for i in 0..LANES {
        larger[i] = if a[i] > b[i] { a[i] } else { b[i] };
    }
    larger
}

/// Turns scores into weights; returns their sum.
#[inline(always)]
fn weigh(registers: &mut [[f32; LANES]], peak: f32) -> f32 {
    let mut partial = [0.0f32; LANES];
    for register in registers {
        for i in 0..LANES {
            register[i] = exp2_below_zero(register[i] - peak);
            partial[i] += register[i];
        }
    }
    sum(partial)
}

by_level! {
    /// Adds the sums of a later segment to those of the segments before it.
    pub(super) fn merge_rows(pitch: usize, total: SumsMut<'_>, segment: SumsRef<'_>) = merge
}

/// Peaks, weights and values of rows.
type SumsMut<'a> = (&'a mut [f32], &'a mut [f32], &'a mut [f32]);
/// The same, to read.
type SumsRef<'a> = (&'a [f32], &'a [f32], &'a [f32]);

#[inline(always)]
fn merge(pitch: usize, (peaks, weights, values): SumsMut<'_>, segment: SumsRef<'_>) {
    for row in 0..peaks.len() {
        let (old, new) = (peaks[row], segment.0[row]);
        // A row without keys in this segment has no weight there.
        if segment.1[row] == 0.0 {
            continue;
        }
        let peak = if new > old { new } else { old };
        let (keep, take) = (exp2_below_zero(old - peak), exp2_below_zero(new - peak));
        peaks[row] = peak;
        weights[row] = (weights[row] * keep) + segment.1[row] * take;
        let values = &mut values[row * pitch..(row + 1) * pitch];
        for (v, s) in values.iter_mut().zip(&segment.2[row * pitch..(row + 1) * pitch]) {
            *v = *v * keep + s * take;
        }
    }
}
