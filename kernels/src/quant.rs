//! GGUF block formats: layout, decoding to codes and to floats, checks for hostile bytes.
//!
//! Every quantised format is seen here as runs of 32 codes with one or two scales and a minimum ([`Codes`]):
//! `weight = scale[half] * (code - offset) - min`. Packing, the reference and dequantising all start from that view.
//! # Source
//! The GGUF block layouts of the `gguf` Python package (`gguf/quants.py`), which tests compare with.

use crate::{KernelError, WeightFormat};
use half::f16;

pub use crate::quantise::quantise_row;

/// Codes sharing one scale.
pub const RUN: usize = 32;
/// Weights of a block of the K formats.
pub const BLOCK: usize = 256;
/// Its runs.
pub(crate) const RUNS_PER_BLOCK: usize = BLOCK / RUN;

/// Thirty-two consecutive weights of one row, decoded but not yet multiplied out.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Codes {
    /// Unsigned codes.
    pub q: [u8; RUN],
    /// What a code of weight zero is (before `min`).
    pub offset: u8,
    /// Scale of the first and of the last sixteen weights; equal except in `Q6K`.
    pub scale: [f32; 2],
    /// Subtracted from every weight; zero in formats without minima.
    pub min: f32,
}

impl Codes {
    /// The thirty-two weights as floats.
    pub fn weights(&self) -> [f32; RUN] {
        std::array::from_fn(|i| {
            self.scale[i / 16] * f32::from(i16::from(self.q[i]) - i16::from(self.offset)) - self.min
        })
    }
}

fn half_at(bytes: &[u8], at: usize) -> f16 {
    f16::from_le_bytes([bytes[at], bytes[at + 1]])
}

/// Thirty-two consecutive weights as stored: codes, block scales and the small scales beside them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct RawCodes {
    pub(crate) q: [u8; RUN],
    pub(crate) d: f16,
    pub(crate) d_min: f16,
    /// Of each half; 1 where the format has none; signed in `Q6K`.
    pub(crate) scale: [u8; 2],
    pub(crate) min: u8,
}

/// Decodes run `run` (32 weights) of a quantised row.
///
/// # Shapes
/// `row`: whole blocks of `format`; `run < weights / 32`. Panics otherwise, and for dense formats: a caller's bug.
pub fn codes(format: WeightFormat, row: &[u8], run: usize) -> Codes {
    RawCodes::of(format, row, run).decoded(format)
}

impl RawCodes {
    /// Run `run` of a row as on disk.
    pub(crate) fn of(format: WeightFormat, row: &[u8], run: usize) -> Self {
        let runs_per_block = format.block_weights() / RUN;
        let start = run / runs_per_block * format.block_bytes();
        let block = &row[start..start + format.block_bytes()];
        let sub = run % runs_per_block;
        match format {
            WeightFormat::Q8_0 => Self::plain(block, std::array::from_fn(|i| block[2 + i] ^ 0x80)),
            WeightFormat::Q4_0 => {
                Self::plain(block, std::array::from_fn(|i| (block[2 + i % 16] >> (4 * (i / 16))) & 15))
            }
            WeightFormat::Q4K => {
                let q = std::array::from_fn(|i| (block[16 + sub / 2 * 32 + i] >> (4 * (sub % 2))) & 15);
                Self::with_min(block, sub, q)
            }
            WeightFormat::Q5K => {
                let q = std::array::from_fn(|i| {
                    let low = (block[48 + sub / 2 * 32 + i] >> (4 * (sub % 2))) & 15;
                    low | ((block[16 + i] >> sub) & 1) << 4
                });
                Self::with_min(block, sub, q)
            }
            WeightFormat::Q6K => Self::six_bits(block, sub),
            WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 => unreachable!("dense formats have no codes"),
        }
    }

    fn plain(block: &[u8], q: [u8; RUN]) -> Self {
        Self { q, d: half_at(block, 0), d_min: f16::ZERO, scale: [1, 1], min: 0 }
    }

    fn with_min(block: &[u8], sub: usize, q: [u8; RUN]) -> Self {
        let (scale, min) = k_scale_min(&block[4..16], sub);
        Self { q, d: half_at(block, 0), d_min: half_at(block, 2), scale: [scale, scale], min }
    }

    fn six_bits(block: &[u8], sub: usize) -> Self {
        // Each half of the block (128 weights) has 64 low bytes, 32 high bytes and 8 scales; its four runs share them.
        let (part, run) = (sub / 4, sub % 4);
        let low = &block[64 * part + 32 * (run % 2)..];
        let high = &block[128 + 32 * part..];
        let q = std::array::from_fn(|i| ((low[i] >> (4 * (run / 2))) & 15) | ((high[i] >> (2 * run)) & 3) << 4);
        let scale = std::array::from_fn(|half| block[192 + 8 * part + 2 * run + half]);
        Self { q, d: half_at(block, 208), d_min: f16::ZERO, scale, min: 0 }
    }

    /// Multiplies the scales out.
    pub(crate) fn decoded(&self, format: WeightFormat) -> Codes {
        let d = self.d.to_f32();
        let scale = |half: usize| match format {
            WeightFormat::Q6K => d * f32::from(self.scale[half].cast_signed()),
            _ => d * f32::from(self.scale[half]),
        };
        Codes {
            q: self.q,
            offset: offset(format),
            scale: [scale(0), scale(1)],
            min: self.d_min.to_f32() * f32::from(self.min),
        }
    }
}

/// What a code of weight zero is, before the minimum.
pub(crate) const fn offset(format: WeightFormat) -> u8 {
    match format {
        WeightFormat::Q8_0 => 128,
        WeightFormat::Q4_0 => 8,
        WeightFormat::Q6K => 32,
        _ => 0,
    }
}

/// Peaks of activations from here on have no scale.
pub(crate) const LARGEST_PEAK: f32 = 1e33;

/// The scale of a run of activations whose largest absolute value is `peak`: a code of 127 stands for the peak.
///
/// Rounded to 22 bits, so that small whole numbers times the scale are exact, which kernels rely on (those of formats
/// without long blocks). NaN for peaks that are no number or beyond 1e33: such a row stays visibly broken.
#[inline(always)]
pub(crate) fn activation_scale(peak: f32) -> f32 {
    if peak < LARGEST_PEAK { f32::from_bits((peak / 127.0).to_bits() & !3) } else { f32::NAN }
}

/// By how many powers of two the activations of a run are smaller than those of their block, given the bits of both
/// largest absolute values: its codes stand for that much less.
///
/// Whole powers, because they cost a kernel nothing: an integer sum that starts at the bits of `1.5 * 2^(23 - shift)` reads
/// as a float as that number plus `sum / 2^shift`. At most 15: nothing is left to gain beyond.
#[inline(always)]
pub(crate) fn run_shift(block_peak: u32, run_peak: u32) -> u32 {
    ((block_peak - run_peak) >> 23).min(15)
}

/// The sum of a run's codes for minima, in quarters of the block's scale, rounded: small enough for the two bytes of
/// [`sum_bytes`].
#[inline(always)]
pub(crate) fn quarters(sum: i32, shift: u32) -> i32 {
    (4 * sum + (1 << shift >> 1)) >> shift
}

/// A sum of [`quarters`] as two signed bytes, `128 * high + low`.
#[inline(always)]
pub(crate) fn sum_bytes(quarters: i32) -> [u8; 2] {
    let high = (quarters + 64) >> 7;
    [high as u8, (quarters - 128 * high) as u8]
}

/// The 6-bit scale and minimum of sub-block `sub`, packed into twelve bytes.
pub(crate) fn k_scale_min(packed: &[u8], sub: usize) -> (u8, u8) {
    if sub < 4 {
        (packed[sub] & 63, packed[sub + 4] & 63)
    } else {
        let scale = (packed[sub + 4] & 15) | (packed[sub - 4] >> 6) << 4;
        let min = (packed[sub + 4] >> 4) | (packed[sub] >> 6) << 4;
        (scale, min)
    }
}

/// Dequantises (or widens) one row.
///
/// # Errors
/// [`KernelError::Shape`] when `row` does not hold exactly `out.len()` weights.
pub fn dequantise_row(format: WeightFormat, row: &[u8], out: &mut [f32]) -> Result<(), KernelError> {
    let wanted = format.bytes_for(1, out.len()).unwrap_or(0);
    crate::error::expect_len("dequantise_row", "row bytes", row.len(), wanted)?;
    match format {
        WeightFormat::F32 => {
            for (o, b) in out.iter_mut().zip(row.chunks_exact(4)) {
                *o = f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
            }
        }
        WeightFormat::F16 => {
            for (o, b) in out.iter_mut().zip(row.chunks_exact(2)) {
                *o = f16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        WeightFormat::Bf16 => {
            for (o, b) in out.iter_mut().zip(row.chunks_exact(2)) {
                *o = half::bf16::from_le_bytes([b[0], b[1]]).to_f32();
            }
        }
        _ => {
            for (run, o) in out.chunks_exact_mut(RUN).enumerate() {
                o.copy_from_slice(&codes(format, row, run).weights());
            }
        }
    }
    Ok(())
}

/// Looks for what no honest weight file holds: a length that is no whole number of blocks, NaN or infinite scales
/// (quantised) or weights (dense).
///
/// # Errors
/// [`KernelError::Format`] naming the first offending block.
pub fn check(format: WeightFormat, bytes: &[u8]) -> Result<(), KernelError> {
    let size = format.block_bytes();
    if !bytes.len().is_multiple_of(size) {
        let problem = format!("{} bytes are no whole number of {size}-byte blocks", bytes.len());
        return Err(KernelError::Format { format: format.name(), problem });
    }
    if is_finite(format, bytes) {
        return Ok(());
    }
    let index = bytes.chunks_exact(size).position(|block| !is_finite(format, block)).unwrap_or(0);
    let problem = format!("block {index} holds a value that is not finite");
    Err(KernelError::Format { format: format.name(), problem })
}

/// Whether no scale (quantised) or weight (dense) of whole blocks is NaN or infinite: such have all exponent bits set.
///
/// Looks at all of them, so that the compiler can look at many at once.
pub(crate) fn is_finite(format: WeightFormat, bytes: &[u8]) -> bool {
    const HALF: i16 = 0x7c00;
    match format {
        WeightFormat::F32 => {
            let is_set = |b: &[u8; 4]| i32::from_le_bytes(*b) & 0x7f80_0000 == 0x7f80_0000;
            bytes.as_chunks().0.iter().fold(0, |any, b| any | i32::from(is_set(b))) == 0
        }
        WeightFormat::F16 => largest(bytes, |b: &[u8; 2]| i16::from_le_bytes(*b) & HALF) < HALF,
        WeightFormat::Bf16 => largest(bytes, |b: &[u8; 2]| i16::from_le_bytes(*b) & 0x7f80) < 0x7f80,
        WeightFormat::Q8_0 => largest(bytes, |b: &[u8; 34]| half_bits(b, 0) & HALF) < HALF,
        WeightFormat::Q4_0 => largest(bytes, |b: &[u8; 18]| half_bits(b, 0) & HALF) < HALF,
        WeightFormat::Q4K => {
            largest(bytes, |b: &[u8; 144]| (half_bits(b, 0) & HALF).max(half_bits(b, 2) & HALF)) < HALF
        }
        WeightFormat::Q5K => {
            largest(bytes, |b: &[u8; 176]| (half_bits(b, 0) & HALF).max(half_bits(b, 2) & HALF)) < HALF
        }
        WeightFormat::Q6K => largest(bytes, |b: &[u8; 210]| half_bits(b, 208) & HALF) < HALF,
    }
}

/// The largest of what `of` says of every block of `N` bytes.
fn largest<const N: usize>(bytes: &[u8], of: impl Fn(&[u8; N]) -> i16) -> i16 {
    bytes.as_chunks().0.iter().fold(0, |most, block| most.max(of(block)))
}

fn half_bits(block: &[u8], at: usize) -> i16 {
    i16::from_le_bytes([block[at], block[at + 1]])
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One block of fixed bytes with fixed scales.
    fn block(format: WeightFormat) -> Vec<u8> {
        let mut bytes: Vec<u8> =
            (0..format.block_bytes()).map(|i| ((i * 37 + 11 + (i * i) % 251) & 255) as u8).collect();
        let (d, d_min) = (f16::from_f32(0.011_718_75).to_le_bytes(), f16::from_f32(0.031_25).to_le_bytes());
        match format {
            WeightFormat::Q6K => bytes[208..].copy_from_slice(&d),
            WeightFormat::Q4K | WeightFormat::Q5K => {
                bytes[..2].copy_from_slice(&d);
                bytes[2..4].copy_from_slice(&d_min);
            }
            _ => bytes[..2].copy_from_slice(&d),
        }
        bytes
    }

    #[test]
    fn blocks_decode_as_the_gguf_package_decodes_them() {
        // Made with gguf 0.19's `quants.dequantize` from the same bytes: some weights, and the sum of weight * index.
        let wanted: [(WeightFormat, [f32; 7], f64); 5] = [
            (
                WeightFormat::Q8_0,
                [1.042_968_8, -1.464_843_8, -1.054_687_5, -0.210_937_5, 0.433_593_75, 0.0, 0.0],
                19.875,
            ),
            (
                WeightFormat::Q4_0,
                [0.011_718_75, -0.058_593_75, -0.023_437_5, -0.035_156_25, 0.023_437_5, 0.0, 0.0],
                -6.175_781_25,
            ),
            (
                WeightFormat::Q4K,
                [-1.593_75, 1.710_937_5, 1.710_937_5, 6.667_968_8, 6.667_968_8, 2.847_656_3, 0.132_812_5],
                41_076.402_343_75,
            ),
            (
                WeightFormat::Q5K,
                [2.812_5, 6.117_187_5, -0.492_187_5, 13.277_344, 15.480_469, 2.109_375, 1.691_406_3],
                130_106.148_437_5,
            ),
            (
                WeightFormat::Q6K,
                [22.394_531, -18.128_906, 26.660_156, -15.937_5, 21.914_063, -2.742_187_5, -26.507_813],
                -12_945.515_625,
            ),
        ];
        for (format, some, sum) in wanted {
            let mut weights = vec![0.0; format.block_weights()];
            dequantise_row(format, &block(format), &mut weights).unwrap();
            for (index, wanted) in [0, 1, 15, 16, 31, 100, 255].into_iter().zip(some) {
                if let Some(&found) = weights.get(index) {
                    assert_eq!(found, wanted, "{format:?} weight {index}");
                }
            }
            let found: f64 = weights.iter().zip(1..).map(|(&w, i)| f64::from(w) * f64::from(i)).sum();
            assert!((found - sum).abs() < 1e-6 * sum.abs(), "{format:?}: {found}, wanted {sum}");
        }
    }

    #[test]
    fn scales_that_are_no_numbers_are_found() {
        for format in WeightFormat::ALL {
            let one = match format {
                WeightFormat::F32 => 1.0f32.to_le_bytes().to_vec(),
                WeightFormat::F16 => f16::ONE.to_le_bytes().to_vec(),
                WeightFormat::Bf16 => half::bf16::ONE.to_le_bytes().to_vec(),
                _ => block(format),
            };
            let mut bytes = one.repeat(3);
            assert_eq!(check(format, &bytes), Ok(()));
            let mut end = bytes.len();
            assert!(check(format, &bytes[..end - 1]).is_err() || end == 1);
            if matches!(format, WeightFormat::Q8_0 | WeightFormat::Q4_0 | WeightFormat::Q4K | WeightFormat::Q5K) {
                end = 2 * format.block_bytes() + 2;
            }
            // All bits set: NaN in every float format.
            bytes[end - 2..end].fill(0xff);
            let problem = check(format, &bytes).unwrap_err().to_string();
            assert!(problem.contains("block 2"), "{problem}");
        }
    }
}
