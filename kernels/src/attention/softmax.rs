//! The running softmax: one block of scores becomes weights, and sums made under another peak are rescaled.

use crate::BLOCK_TOKENS;
use crate::cpu::by_level;
use crate::cpu::lanes::{LANES, exp, sum};
use crate::kv::KvDtype;
use std::ops::Range;

/// Peaks, weights and values of rows.
type SumsMut<'a> = (&'a mut [f32], &'a mut [f32], &'a mut [f32]);
/// The same, to read.
type SumsRef<'a> = (&'a [f32], &'a [f32], &'a [f32]);

/// Which keys of a block the rows of a tile see.
#[derive(Debug, Clone, Copy)]
pub(super) struct BlockRows {
    pub(super) num_rows: usize,
    /// Rows of one query.
    pub(super) group: usize,
    /// Position of the first query.
    pub(super) position: usize,
    /// Latest positions a query sees.
    pub(super) window: usize,
    /// Position of the block's first key.
    pub(super) block_start: usize,
    /// Floats from one row of values to the next.
    pub(super) pitch: usize,
}

impl BlockRows {
    /// The keys of the block that a row sees.
    #[inline(always)]
    fn seen_by(&self, row: usize) -> Range<usize> {
        let position = self.position + row / self.group;
        let first = (position + 1).saturating_sub(self.window);
        let start = first.saturating_sub(self.block_start).min(BLOCK_TOKENS);
        let end = (position + 1).saturating_sub(self.block_start).min(BLOCK_TOKENS);
        start..end.max(start)
    }

    /// The keys from the first to the last that any row sees.
    pub(super) fn seen_by_any(&self) -> Range<usize> {
        // Later rows see later keys.
        self.seen_by(0).start..self.seen_by(self.num_rows - 1).end.max(self.seen_by(0).start)
    }
}

by_level! {
    /// Turns the scores `[rows][32]` of a block into weights and rescales the sums to the new peaks.
    pub(super) fn soften(rows: &BlockRows, scores: &mut [f32], sums: SumsMut<'_>) = soften_rows
}

#[inline(always)]
fn soften_rows(rows: &BlockRows, scores: &mut [f32], (peaks, weights, values): SumsMut<'_>) {
    let (scores, _) = scores.as_chunks_mut::<BLOCK_TOKENS>();
    for (row, scores) in scores.iter_mut().enumerate() {
        let seen = if row < rows.num_rows { rows.seen_by(row) } else { 0..0 };
        if seen.is_empty() {
            scores.fill(0.0);
            continue;
        }
        let halves: &mut [[f32; LANES]; 2] = scores.as_chunks_mut().0.try_into().expect("a block is two registers");
        if seen.len() < BLOCK_TOKENS {
            hide(halves, &seen);
        }
        let old = peaks[row];
        let highest = max(halves);
        let peak = if highest > old { highest } else { old };
        let mut partial = [0.0f32; LANES];
        for half in halves {
            for i in 0..LANES {
                half[i] = exp(half[i] - peak);
                partial[i] += half[i];
            }
        }
        let factor = exp(old - peak);
        weights[row] = weights[row].mul_add(factor, sum(partial));
        peaks[row] = peak;
        if factor != 1.0 {
            for v in &mut values[row * rows.pitch..(row + 1) * rows.pitch] {
                *v *= factor;
            }
        }
    }
}

/// Keys outside of `seen` get the score of no weight.
#[inline(always)]
fn hide(halves: &mut [[f32; LANES]; 2], seen: &Range<usize>) {
    let (start, end) = (seen.start as u32, seen.end as u32);
    for (h, half) in halves.iter_mut().enumerate() {
        for (i, score) in half.iter_mut().enumerate() {
            let key = (h * LANES + i) as u32;
            *score = if (key >= start) & (key < end) { *score } else { f32::NEG_INFINITY };
        }
    }
}

/// The largest score, in a fixed tree. A NaN among them may be passed over: its weight becomes NaN all the same.
#[inline(always)]
fn max([a, b]: &[[f32; LANES]; 2]) -> f32 {
    let mut highest = [0.0; LANES];
    for i in 0..LANES {
        highest[i] = if a[i] > b[i] { a[i] } else { b[i] };
    }
    let mut width = LANES / 2;
    while width > 0 {
        for i in 0..width {
            highest[i] = if highest[i] > highest[i + width] { highest[i] } else { highest[i + width] };
        }
        width /= 2;
    }
    highest[0]
}

by_level! {
    /// Adds the sums of a later segment to those of the segments before it.
    pub(super) fn merge_rows(pitch: usize, total: SumsMut<'_>, segment: SumsRef<'_>) = merge
}

#[inline(always)]
fn merge(pitch: usize, (peaks, weights, values): SumsMut<'_>, segment: SumsRef<'_>) {
    for row in 0..peaks.len() {
        let (old, new) = (peaks[row], segment.0[row]);
        // A row without keys in this segment has no weight there.
        if segment.1[row] == 0.0 {
            continue;
        }
        let peak = if new > old { new } else { old };
        let (keep, take) = (exp(old - peak), exp(new - peak));
        peaks[row] = peak;
        weights[row] = (weights[row] * keep) + segment.1[row] * take;
        let values = &mut values[row * pitch..(row + 1) * pitch];
        for (v, s) in values.iter_mut().zip(&segment.2[row * pitch..(row + 1) * pitch]) {
            *v = *v * keep + s * take;
        }
    }
}

by_level! {
    /// Converts stored elements to floats; what `target` has beyond them becomes zero.
    pub(super) fn widen(dtype: KvDtype, stored: &[u8], target: &mut [f32]) = widen_row
}

#[inline(always)]
fn widen_row(dtype: KvDtype, stored: &[u8], target: &mut [f32]) {
    let len = stored.len() / dtype.bytes();
    let (elements, padding) = target.split_at_mut(len);
    match dtype {
        KvDtype::F32 => {
            for (t, s) in elements.iter_mut().zip(stored.as_chunks::<4>().0) {
                *t = f32::from_ne_bytes(*s);
            }
        }
        KvDtype::Bf16 => {
            for (t, s) in elements.iter_mut().zip(stored.as_chunks::<2>().0) {
                *t = f32::from_bits(u32::from(u16::from_ne_bytes(*s)) << 16);
            }
        }
    }
    padding.fill(0.0);
}
