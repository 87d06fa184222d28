//! Lays activation rows out for the kernels: side by side, rounded to bf16 or to scaled bytes where the weights ask.

use super::by_level;
use super::lanes::to_bf16;
use super::tile::{BF16_STRETCH, LIFT, RUN_WORDS, XPacking};
use crate::quant::{RUN, activation_scale, offset};
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

/// Fills `tile`, `m * packing.words_per_row(cols)` words, with the rows of `input`.
pub(crate) fn pack_activations(level: Level, input: &ActivationRows<'_>, tile: &mut [u32]) {
    if input.x.len() < input.m * input.cols || !input.cols.is_multiple_of(BF16_STRETCH) {
        tile.fill(0);
    }
    #[cfg(target_arch = "x86_64")]
    if level >= Level::Avx512 && input.packing == XPacking::Bytes {
        for (r, x) in input.x.chunks_exact(input.cols).enumerate() {
            // SAFETY: the machine has the pool's level.
            unsafe { super::avx512::pack_bytes(x, input.format, &mut tile[r..], input.m) };
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
            XPacking::Bytes => pack_bytes(x, input.format, &mut tile[r..], m),
        }
    }
}

#[inline(always)]
fn bf16_pair(first: f32, second: f32) -> u32 {
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
fn pack_bytes(x: &[f32], format: WeightFormat, tile: &mut [u32], m: usize) {
    for (x, tile) in x.as_chunks().0.iter().zip(tile.chunks_mut(RUN_WORDS * m)) {
        run(x).put(format, tile, m);
    }
}

/// A run of activations as signed bytes with one scale.
#[derive(Default)]
pub(super) struct ByteRun {
    /// Four codes each.
    pub(super) words: [u32; RUN / 4],
    pub(super) scale: f32,
    /// Of the codes of either half.
    pub(super) sums: [i32; 2],
}

/// Adding 1.5 * 2²³ rounds to nearest even and leaves the integer in the low bits.
pub(super) const ROUND: f32 = 12_582_912.0;
/// Runs whose largest number is smaller are zero.
pub(super) const SILENT: f32 = 1e-30;

impl ByteRun {
    /// Writes the words of a run, `m` words apart, with the sums that weights of `format` need.
    #[inline(always)]
    pub(super) fn put(&self, format: WeightFormat, tile: &mut [u32], m: usize) {
        let Self { words, scale, sums } = self;
        for (cell, word) in tile.iter_mut().step_by(m).zip(words) {
            *cell = *word;
        }
        tile[8 * m] = scale.to_bits();
        tile[9 * m] = (LIFT * scale).to_bits();
        // Codes are unsigned: what `offset` adds to every product is taken off by starting the sum below zero.
        let start = |sum: i32| LIFT.to_bits().wrapping_add_signed(-i32::from(offset(format)) * sum);
        match format {
            WeightFormat::Q4K | WeightFormat::Q5K => tile[10 * m] = ((sums[0] + sums[1]) as f32 * scale).to_bits(),
            WeightFormat::Q6K => {
                tile[10 * m] = start(sums[0]);
                tile[11 * m] = start(sums[1]);
            }
            _ => tile[10 * m] = start(sums[0] + sums[1]),
        }
    }
}

/// As [`crate::reference::quantise_run`].
#[inline(always)]
fn run(x: &[f32; RUN]) -> ByteRun {
    let mut peak_bits = 0u32;
    for v in x {
        let bits = v.to_bits() & 0x7fff_ffff;
        peak_bits = if bits > peak_bits { bits } else { peak_bits };
    }
    let peak = f32::from_bits(peak_bits);
    if peak < SILENT {
        return ByteRun::default();
    }
    let inverse = 127.0 / peak;
    let codes: [u8; RUN] = std::array::from_fn(|i| (x[i] * inverse + ROUND).to_bits() as u8);
    let mut sums = [0i32; 2];
    for i in 0..RUN / 2 {
        sums[0] += i32::from(codes[i].cast_signed());
        sums[1] += i32::from(codes[RUN / 2 + i].cast_signed());
    }
    let words = std::array::from_fn(|g| u32::from_le_bytes(codes.as_chunks().0[g]));
    ByteRun { words, scale: activation_scale(peak), sums }
}
