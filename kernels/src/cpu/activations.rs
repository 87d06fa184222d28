//! Lays activation rows out for the kernels: side by side, rounded to bf16 or to scaled bytes where the weights ask.

use super::by_level;
use super::lanes::to_bf16;
use super::tile::{BF16_STRETCH, LIFT, XPacking};
use crate::quant::{BLOCK, RUN, RUNS_PER_BLOCK, activation_scale, offset, quarters, run_shift, sum_bytes};
use crate::{Level, WeightFormat};

/// The rows of one tile and how they are wanted.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ActivationRows<'a> {
    /// `[rows, cols]`, at most `m` rows; the missing ones become zero.
    pub(crate) x: &'a [f32],
    /// Inputs of a row.
    pub(crate) cols: usize,
    /// Rows side by side in the tile.
    pub(crate) m: usize,
    /// Layout wanted.
    pub(crate) packing: XPacking,
    /// Format of the weights.
    pub(crate) format: WeightFormat,
}

/// Rows from which on four are laid out at a time rather than one.
#[cfg(target_arch = "x86_64")]
const ABREAST_FROM: usize = 3;

/// Fills `tile`, `m * packing.words_per_row(cols)` words, with the rows of `input`.
pub(crate) fn pack_activations(level: Level, input: &ActivationRows<'_>, tile: &mut [u32]) {
    if input.x.len() < input.m * input.cols || !input.cols.is_multiple_of(BF16_STRETCH) {
        tile.fill(0);
    }
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 && input.m >= ABREAST_FROM && input.may_be_abreast() {
        // SAFETY: the machine has the pool's level.
        return unsafe { super::avx512::pack_abreast(input, tile) };
    }
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 && matches!(input.packing, XPacking::Bytes | XPacking::ByteBlocks | XPacking::ByteRows) {
        for (row, x) in input.x.chunks_exact(input.cols).enumerate() {
            // SAFETY: the machine has the pool's level.
            unsafe { super::avx512::pack_bytes(x, &input.place(row), tile) };
        }
        return;
    }
    pack_plain(level, input, tile);
}

by_level! {
    fn pack_plain(input: &ActivationRows<'_>, tile: &mut [u32]) = pack
}

#[inline(always)]
fn pack(input: &ActivationRows<'_>, tile: &mut [u32]) {
    let m = input.m;
    for (r, x) in input.x.chunks_exact(input.cols).enumerate() {
        match input.packing {
            XPacking::F32 => place(x.iter().map(|v| v.to_bits()), &mut tile[r..], m),
            XPacking::Bf16AsF32 => place(x.iter().map(|v| u32::from(to_bf16(*v)) << 16), &mut tile[r..], m),
            XPacking::Bf16Pairs => {
                let (pairs, odd) = x.as_chunks::<2>();
                let odd = odd.iter().map(|&v| bf16_pair(v, 0.0));
                place(pairs.iter().map(|&[a, b]| bf16_pair(a, b)).chain(odd), &mut tile[r..], m);
            }
            XPacking::Bf16Rows => {
                for (x, tile) in x.chunks(BF16_STRETCH).zip(tile.chunks_mut(BF16_STRETCH / 2 * m)) {
                    let words = &mut tile[BF16_STRETCH / 2 * r..][..BF16_STRETCH / 2];
                    let (pairs, odd) = x.as_chunks::<2>();
                    for (word, &[a, b]) in words.iter_mut().zip(pairs) {
                        *word = bf16_pair(a, b);
                    }
                    if let &[last] = odd {
                        words[pairs.len()] = bf16_pair(last, 0.0);
                    }
                }
            }
            XPacking::Bytes | XPacking::ByteBlocks | XPacking::ByteRows => pack_bytes(x, &input.place(r), tile),
        }
    }
}

/// Two neighbours rounded to bf16, the first in the low half.
#[inline(always)]
pub(crate) fn bf16_pair(first: f32, second: f32) -> u32 {
    u32::from(to_bf16(first)) | u32::from(to_bf16(second)) << 16
}

#[inline(always)]
fn place(words: impl Iterator<Item = u32>, tile: &mut [u32], m: usize) {
    if m == 1 {
        for (cell, word) in tile.iter_mut().zip(words) {
            *cell = word;
        }
    } else {
        for (cell, word) in tile.iter_mut().step_by(m).zip(words) {
            *cell = word;
        }
    }
}

#[inline(always)]
fn pack_bytes(x: &[f32], place: &ByteRow, tile: &mut [u32]) {
    if place.has_blocks() {
        for (x, tile) in x.as_chunks().0.iter().zip(tile.chunks_mut(RUNS_PER_BLOCK * place.run_words())) {
            block(x).put(place, tile);
        }
    } else {
        for (x, tile) in x.as_chunks().0.iter().zip(tile.chunks_mut(place.run_words())) {
            run(x).put(place, tile);
        }
    }
}

/// Where the words of a row of bytes go: among `m` rows, in words of which every run of a tile has as many.
#[derive(Debug, Clone, Copy)]
pub(super) struct ByteRow {
    pub(super) format: WeightFormat,
    packing: XPacking,
    m: usize,
    row: usize,
}

impl ActivationRows<'_> {
    /// Whether rows lie side by side in whole runs.
    #[cfg(target_arch = "x86_64")]
    fn may_be_abreast(&self) -> bool {
        match self.packing {
            XPacking::Bytes | XPacking::ByteBlocks => true,
            XPacking::Bf16Pairs => self.cols.is_multiple_of(RUN),
            _ => false,
        }
    }

    fn place(&self, row: usize) -> ByteRow {
        ByteRow { format: self.format, packing: self.packing, m: self.m, row }
    }
}

impl ByteRow {
    /// Whether scales are of whole blocks.
    #[inline(always)]
    pub(super) fn has_blocks(&self) -> bool {
        match self.packing {
            XPacking::ByteRows => self.format.has_long_blocks(),
            packing => packing == XPacking::ByteBlocks,
        }
    }

    /// Words of all rows for a run.
    #[inline(always)]
    pub(super) fn run_words(&self) -> usize {
        self.m * self.packing.run_words()
    }

    /// Writes the codes of a run.
    #[inline(always)]
    fn put_codes(&self, tile: &mut [u32], codes: &ByteCodes) {
        if matches!(self.packing, XPacking::ByteRows) {
            tile[self.row * CODE_WORDS..][..CODE_WORDS].copy_from_slice(&codes.words);
        } else {
            place(codes.words.into_iter(), &mut tile[self.row..], self.m);
        }
    }

    /// Writes word `index` of those that follow the codes of a run.
    #[inline(always)]
    fn put(&self, tile: &mut [u32], index: usize, word: u32) {
        tile[(CODE_WORDS + index) * self.m + self.row] = word;
    }
}

/// Words of the codes of a run.
const CODE_WORDS: usize = RUN / 4;

/// Thirty-two signed bytes.
#[derive(Default, Clone, Copy)]
pub(super) struct ByteCodes {
    /// Four codes each.
    pub(super) words: [u32; CODE_WORDS],
    /// Of the codes of either half.
    pub(super) sums: [i32; 2],
}

/// A run of activations with its scale.
#[derive(Default)]
pub(super) struct ByteRun {
    pub(super) codes: ByteCodes,
    pub(super) scale: f32,
}

/// A block: runs whose codes stand for `scale / 2^shift`.
#[derive(Default)]
pub(super) struct ByteBlock {
    pub(super) runs: [ByteCodes; RUNS_PER_BLOCK],
    pub(super) shifts: [u32; RUNS_PER_BLOCK],
    pub(super) scale: f32,
}

/// Adding 1.5 * 2²³ rounds to nearest even and leaves the integer in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;
/// Runs, or blocks, whose largest number is smaller are zero.
pub(super) const SILENT: f32 = 1e-30;

/// Where integer sums start: the bits of `lift`, less what the unsigned codes' offset adds to every product.
#[inline(always)]
fn start(lift: f32, format: WeightFormat, sum: i32) -> u32 {
    lift.to_bits().wrapping_add_signed(-i32::from(offset(format)) * sum)
}

impl ByteRun {
    /// Writes the words of a run: codes, scale; for vectors also [`LIFT`] times the scale and where the sum starts.
    #[inline(always)]
    pub(super) fn put(&self, place: &ByteRow, tile: &mut [u32]) {
        let Self { codes, scale } = self;
        place.put_codes(tile, codes);
        place.put(tile, 0, scale.to_bits());
        if place.packing == XPacking::Bytes {
            place.put(tile, 1, (LIFT * scale).to_bits());
            place.put(tile, 2, start(LIFT, place.format, codes.sums[0] + codes.sums[1]));
        }
    }
}

impl ByteBlock {
    /// Writes the words of a block.
    ///
    /// For vectors every run has codes, the block's scale, the lift to be taken off sums, [`LIFT`] / 2^shift, then where
    /// sums start, with `Q6K` those of either half. With minima sums start at the lift, and runs 0 to 3 have a word of
    /// [`sum_bytes`] each: the high ones of runs 0–3 and 4–7, the low ones of runs 0–3 and 4–7.
    /// For tile registers every run has codes, a word and 2^-shift. The word is the block's scale in run 0, and of
    /// [`sum_bytes`] in runs 1 to 4.
    #[inline(always)]
    pub(super) fn put(&self, place: &ByteRow, tile: &mut [u32]) {
        let is_for_vectors = place.packing == XPacking::ByteBlocks;
        let mut sums = [[0u8; RUNS_PER_BLOCK]; 2];
        for (r, (codes, tile)) in self.runs.iter().zip(tile.chunks_mut(place.run_words())).enumerate() {
            place.put_codes(tile, codes);
            let shift = self.shifts[r];
            if is_for_vectors {
                place.put(tile, 0, self.scale.to_bits());
                let lift = f32::from_bits(LIFT.to_bits() - (shift << 23));
                place.put(tile, 1, lift.to_bits());
                if place.format == WeightFormat::Q6K {
                    place.put(tile, 2, start(lift, place.format, codes.sums[0]));
                    place.put(tile, 3, start(lift, place.format, codes.sums[1]));
                } else {
                    place.put(tile, 2, start(lift, place.format, codes.sums[0] + codes.sums[1]));
                }
            } else {
                if r == 0 {
                    place.put(tile, 0, self.scale.to_bits());
                }
                place.put(tile, 1, (127 - shift) << 23);
            }
            [sums[0][r], sums[1][r]] = sum_bytes(quarters(codes.sums[0] + codes.sums[1], shift));
        }
        if place.format.has_minima() {
            let (first_run, index) = if is_for_vectors { (0, 2) } else { (1, 0) };
            let words = sums.as_flattened().as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
            for (tile, word) in tile.chunks_mut(place.run_words()).skip(first_run).zip(words) {
                place.put(tile, index, word);
            }
        }
    }
}

/// What a run of a block multiplies with before it rounds; `inverse`: 127 divided by the block's peak.
#[inline(always)]
pub(super) fn inverse_of_run(inverse: f32, shift: u32) -> f32 {
    inverse * f32::from_bits((127 + shift) << 23)
}

/// As [`crate::reference::quantise_run`].
#[inline(always)]
fn run(x: &[f32; RUN]) -> ByteRun {
    let peak = f32::from_bits(peak_bits(x));
    if peak < SILENT {
        return ByteRun::default();
    }
    ByteRun { codes: codes(x, 127.0 / peak), scale: activation_scale(peak) }
}

/// As [`crate::reference::quantise_block`].
#[inline(always)]
fn block(x: &[f32; BLOCK]) -> ByteBlock {
    let runs = x.as_chunks::<RUN>().0;
    let peaks: [u32; RUNS_PER_BLOCK] = std::array::from_fn(|r| peak_bits(&runs[r]));
    let block_peak = peaks.into_iter().fold(0, u32::max);
    let peak = f32::from_bits(block_peak);
    if peak < SILENT {
        return ByteBlock::default();
    }
    let shifts = peaks.map(|run_peak| run_shift(block_peak, run_peak));
    let inverse = 127.0 / peak;
    let runs = std::array::from_fn(|r| codes(&runs[r], inverse_of_run(inverse, shifts[r])));
    ByteBlock { runs, shifts, scale: activation_scale(peak) }
}

#[inline(always)]
fn peak_bits(x: &[f32; RUN]) -> u32 {
    let mut peak_bits = 0u32;
    for v in x {
        let bits = v.to_bits() & 0x7fff_ffff;
        peak_bits = if bits > peak_bits { bits } else { peak_bits };
    }
    peak_bits
}

#[inline(always)]
fn codes(x: &[f32; RUN], inverse: f32) -> ByteCodes {
    let codes: [u8; RUN] = std::array::from_fn(|i| (x[i] * inverse + ROUND).to_bits() as u8);
    let mut sums = [0i32; 2];
    for i in 0..RUN / 2 {
        sums[0] += i32::from(codes[i].cast_signed());
        sums[1] += i32::from(codes[RUN / 2 + i].cast_signed());
    }
    let words = std::array::from_fn(|g| u32::from_le_bytes(codes.as_chunks().0[g]));
    ByteCodes { words, sums }
}
