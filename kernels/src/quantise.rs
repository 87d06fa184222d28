//! Floats to blocks: quantising at load time, and weights for benches and tests.
//!
//! Scales follow from the extremes of each block. Programs that search for the best scales lose a little less.

use crate::error::expect_len;
use crate::{KernelError, WeightFormat};
use half::{bf16, f16};

/// Writes `x` as one row of `format`.
///
/// # Errors
/// [`KernelError::Format`] when `x` is no whole number of blocks or holds a value that is not finite (or, as f16 scale,
/// would not be), [`KernelError::Shape`] when `row` is not exactly as long as the format needs.
pub fn quantise_row(format: WeightFormat, x: &[f32], row: &mut [u8]) -> Result<(), KernelError> {
    let refuse = |problem: String| KernelError::Format { format: format.name(), problem };
    let wanted = format.bytes_for(1, x.len()).ok_or_else(|| {
        refuse(format!("{} weights are no whole number of blocks of {}", x.len(), format.block_weights()))
    })?;
    expect_len("quantise_row", "row bytes", row.len(), wanted)?;
    if let Some(index) = x.iter().position(|v| !v.is_finite()) {
        return Err(refuse(format!("weight {index} is not finite")));
    }
    for (x, block) in x.chunks_exact(format.block_weights()).zip(row.chunks_exact_mut(format.block_bytes())) {
        match format {
            WeightFormat::F32 => block.copy_from_slice(&x[0].to_le_bytes()),
            WeightFormat::F16 => block.copy_from_slice(&f16::from_f32(x[0]).to_le_bytes()),
            WeightFormat::Bf16 => block.copy_from_slice(&bf16::from_f32(x[0]).to_le_bytes()),
            WeightFormat::Q8_0 => eight_bits(x, block),
            WeightFormat::Q4_0 => four_bits(x, block),
            WeightFormat::Q4K => with_minima(x, block, 15),
            WeightFormat::Q5K => with_minima(x, block, 31),
            WeightFormat::Q6K => six_bits(x, block),
        }
    }
    crate::quant::check(format, row)
}

/// Stores a scale and returns what a reader will see.
fn put_half(block: &mut [u8], at: usize, value: f32) -> f32 {
    let half = f16::from_f32(value);
    block[at..at + 2].copy_from_slice(&half.to_le_bytes());
    half.to_f32()
}

/// `x / scale`, and 0 without a scale.
fn steps(x: f32, scale: f32) -> f32 {
    if scale == 0.0 { 0.0 } else { (x / scale).round_ties_even() }
}

fn peak(x: &[f32]) -> f32 {
    x.iter().fold(0.0, |a, v| v.abs().max(a))
}

fn eight_bits(x: &[f32], block: &mut [u8]) {
    let d = put_half(block, 0, peak(x) / 127.0);
    for (code, &x) in block[2..].iter_mut().zip(x) {
        *code = (steps(x, d) as i8).cast_unsigned();
    }
}

fn four_bits(x: &[f32], block: &mut [u8]) {
    // Codes reach from -8 to 7: the extreme gets the -8, whatever its sign.
    let extreme = x.iter().fold(0.0f32, |a, &v| if v.abs() > a.abs() { v } else { a });
    let d = put_half(block, 0, extreme / -8.0);
    let code = |x: f32| (steps(x, d) + 8.0).clamp(0.0, 15.0) as u8;
    for i in 0..16 {
        block[2 + i] = code(x[i]) | code(x[i + 16]) << 4;
    }
}

fn with_minima(x: &[f32], block: &mut [u8], most: u8) {
    let mut spans = [(0.0f32, 0.0f32); 8];
    for (span, x) in spans.iter_mut().zip(x.chunks_exact(32)) {
        let lowest = x.iter().fold(0.0f32, |a, &v| a.min(v));
        let highest = x.iter().fold(lowest, |a, &v| a.max(v));
        *span = ((highest - lowest) / f32::from(most), -lowest);
    }
    let d = put_half(block, 0, spans.iter().fold(0.0f32, |a, s| a.max(s.0)) / 63.0);
    let d_min = put_half(block, 2, spans.iter().fold(0.0f32, |a, s| a.max(s.1)) / 63.0);
    let (scale_bytes, code_bytes) = block[4..].split_at_mut(12);
    // Five-bit codes have their top bits in 32 bytes before the rest.
    let (top, low) = code_bytes.split_at_mut(if most > 15 { 32 } else { 0 });
    top.fill(0);
    low.fill(0);
    scale_bytes.fill(0);
    for (sub, (span, x)) in spans.iter().zip(x.chunks_exact(32)).enumerate() {
        let scale = steps(span.0, d).min(63.0) as u8;
        let min = steps(span.1, d_min).min(63.0) as u8;
        if sub < 4 {
            scale_bytes[sub] |= scale;
            scale_bytes[sub + 4] |= min;
        } else {
            scale_bytes[sub + 4] = (scale & 15) | (min & 15) << 4;
            scale_bytes[sub - 4] |= (scale >> 4) << 6;
            scale_bytes[sub] |= (min >> 4) << 6;
        }
        let (scale, min) = (d * f32::from(scale), d_min * f32::from(min));
        for (i, &x) in x.iter().enumerate() {
            let code = steps(x + min, scale).clamp(0.0, f32::from(most)) as u8;
            low[sub / 2 * 32 + i] |= (code & 15) << (4 * (sub % 2));
            if most > 15 {
                top[i] |= (code >> 4) << sub;
            }
        }
    }
}

fn six_bits(x: &[f32], block: &mut [u8]) {
    let scales: Vec<f32> = x.chunks_exact(16).map(|x| peak(x) / 31.0).collect();
    let d = put_half(block, 208, peak(&scales) / 127.0);
    block[..192].fill(0);
    for (group, (scale, x)) in scales.iter().zip(x.chunks_exact(16)).enumerate() {
        let scale = steps(*scale, d).min(127.0);
        block[192 + group] = scale as u8;
        // Sixteen groups: two parts of eight; a part's four runs of 32 share its bytes.
        let (part, run) = (group / 8, group % 8 / 2);
        for (i, &x) in x.iter().enumerate() {
            let at = group % 2 * 16 + i;
            let code = (steps(x, d * scale) + 32.0).clamp(0.0, 63.0) as u8;
            block[64 * part + 32 * (run % 2) + at] |= (code & 15) << (4 * (run / 2));
            block[128 + 32 * part + at] |= (code >> 4) << (2 * run);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::dequantise_row;

    #[test]
    fn weights_come_back_within_the_step_of_their_format() {
        // Uneven on purpose: some groups of sixteen are large, some small, some one-sided.
        let x: Vec<f32> = (0..512).map(|i| ((i * i) as f32 * 0.7).sin() * (1.0 + (i / 16 % 3) as f32) + 0.5).collect();
        for (format, step) in [
            (WeightFormat::F32, 0.0),
            (WeightFormat::F16, 1e-3),
            (WeightFormat::Bf16, 8e-3),
            (WeightFormat::Q8_0, 0.015),
            (WeightFormat::Q6K, 0.09),
            (WeightFormat::Q5K, 0.16),
            (WeightFormat::Q4K, 0.3),
            (WeightFormat::Q4_0, 0.45),
        ] {
            let mut row = vec![0xaa; format.bytes_for(1, x.len()).unwrap()];
            quantise_row(format, &x, &mut row).unwrap();
            let mut back = vec![0.0; x.len()];
            dequantise_row(format, &row, &mut back).unwrap();
            let worst = x.iter().zip(&back).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
            assert!(worst <= step, "{format:?} is off by {worst}");
        }
    }

    #[test]
    fn zeros_stay_zero_and_what_is_no_number_is_refused() {
        for format in WeightFormat::ALL {
            let len = 2 * format.block_weights();
            let mut row = vec![0xaa; format.bytes_for(1, len).unwrap()];
            quantise_row(format, &vec![0.0; len], &mut row).unwrap();
            let mut back = vec![1.0; len];
            dequantise_row(format, &row, &mut back).unwrap();
            assert!(back.iter().all(|&v| v == 0.0), "{format:?}");
            assert!(quantise_row(format, &vec![f32::NAN; len], &mut row).is_err());
            assert!(quantise_row(format, &vec![0.0; len], &mut row[1..]).is_err());
            // Too large for an f16 scale.
            let huge = quantise_row(format, &vec![3e38; len], &mut row);
            assert_eq!(huge.is_err(), !matches!(format, WeightFormat::F32 | WeightFormat::Bf16), "{format:?}");
        }
    }
}
