//! Drawing tokens, and products with quantised weights.

use half::bf16;
use millgate_kernels::WeightFormat;
use millgate_kernels::cuda::{
    self, CudaError, DrawOutcome, DrawRow, Gpu, QuantisedMatrix, QuantisedRows, SampleInput, SampleScratch,
};

use crate::{Card, Cost, Shape, median_seconds, noise, report};

pub(crate) fn draws(gpu: &Gpu, card: &Card, shape: &Shape) -> Result<(), CudaError> {
    for &rows in shape.rows.iter().filter(|&&rows| rows <= 128) {
        let narrow = noise(gpu, rows * shape.vocab)?;
        let mut logits = gpu.alloc::<f32>(narrow.len())?;
        cuda::convert(gpu, narrow.view(), logits.view_mut())?;
        let words: Vec<u32> = (0..rows as u32).flat_map(|row| draw(row).words()).collect();
        let (words, count) = (gpu.upload(&words)?, gpu.upload(&[rows as u32])?);
        let (adjustments, previous) = (gpu.zeroed::<u32>(4)?, gpu.zeroed::<u32>(1)?);
        let (mut tokens, mut results) = (gpu.zeroed::<u32>(rows)?, gpu.zeroed::<u32>(rows * DrawOutcome::WORDS)?);
        let mut scratch = SampleScratch::new(gpu, rows, shape.vocab)?;
        let input = SampleInput {
            logits: logits.view(),
            rows: words.view(),
            count: count.view(),
            adjustments: adjustments.view(),
            previous: previous.view(),
        };
        let seconds =
            median_seconds(gpu, || cuda::sample(gpu, &input, &mut scratch, tokens.view_mut(), results.view_mut()))?;
        report(card, "draw, top-k and top-p", rows, seconds, &Cost { bytes: 4 * rows * shape.vocab, flops: 0 });
    }
    quantised(gpu, card, shape)
}

fn draw(row: u32) -> DrawRow {
    DrawRow {
        row,
        temperature: 0.8,
        top_k: 50,
        top_p: 0.95,
        min_p: 0.0,
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
        seed: u64::from(row),
        choice: 0,
        position: 7,
        logprobs: None,
        adjustments: (0, 0),
        pending: None,
    }
}

fn quantised(gpu: &Gpu, card: &Card, shape: &Shape) -> Result<(), CudaError> {
    let (inputs, outputs) = (shape.hidden.next_multiple_of(256), 2 * shape.mlp);
    for (name, format) in [("Q8_0 gate and up", WeightFormat::Q8_0), ("Q4_K gate and up", WeightFormat::Q4K)] {
        let len = format.bytes_for(outputs, inputs).unwrap_or(0);
        let bytes: Vec<u8> = (0..len).map(|i| (i * 31 % 61) as u8).collect();
        let matrix = QuantisedMatrix::new(gpu, format, (outputs, inputs), &bytes)?;
        for &rows in shape.rows.iter().filter(|&&rows| rows <= 8) {
            let mut x = QuantisedRows::new(gpu, inputs)?;
            let (values, mut y) = (noise(gpu, rows * inputs)?, gpu.alloc::<bf16>(rows * outputs)?);
            let seconds = median_seconds(gpu, || {
                x.fill(gpu, values.view(), (rows, inputs, inputs))?;
                cuda::quantised_linear(gpu, &x, &matrix, y.view_mut(), outputs)
            })?;
            report(card, name, rows, seconds, &Cost { bytes: len, flops: 2 * rows * inputs * outputs });
        }
    }
    Ok(())
}
