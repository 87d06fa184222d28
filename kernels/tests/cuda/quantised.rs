//! Quantised weights: products straight from the file's blocks, and plain numbers made of them.

use half::{bf16, f16};
use millgate_kernels::cuda::{self, Activation, QuantisedMatrix, QuantisedRows};
use millgate_kernels::{WeightFormat, quant, reference};

use super::{check_close, gpu, poisoned, rounded};
use crate::random::Random;

const FORMATS: [WeightFormat; 5] =
    [WeightFormat::Q8_0, WeightFormat::Q4_0, WeightFormat::Q4K, WeightFormat::Q5K, WeightFormat::Q6K];

fn product<T: Activation>(format: WeightFormat, rows: usize, outputs: usize, blocks: usize) {
    let Some(gpu) = gpu() else { return };
    let inputs = blocks * format.block_weights();
    let mut random = Random((rows * outputs + inputs) as u64);
    let bytes = random.weights(format, outputs, inputs);
    let (x_stride, y_stride) = (inputs + 8, outputs + 3);
    let (x, plain) = rounded::<T>(&random.floats(rows * x_stride));
    let matrix = QuantisedMatrix::new(gpu, format, (outputs, inputs), &bytes).unwrap();
    let mut quantised = QuantisedRows::new(gpu, inputs).unwrap();
    quantised.fill(gpu, gpu.upload(&x).unwrap().view(), (rows, inputs, x_stride)).unwrap();
    let mut y = poisoned::<T>(gpu, rows * y_stride);
    cuda::quantised_linear(gpu, &quantised, &matrix, y.view_mut(), y_stride).unwrap();

    let dense: Vec<f32> = plain.chunks(x_stride).flat_map(|row| &row[..inputs]).copied().collect();
    let mut wanted = vec![f32::NAN; rows * outputs];
    let weights = reference::Matrix { format, rows: outputs, cols: inputs, bytes: &bytes };
    reference::linear_by_runs(&dense, &weights, None, &mut wanted);
    let got = y.read().unwrap();
    let mut own = Vec::new();
    for row in got.chunks(y_stride) {
        own.extend_from_slice(&row[..outputs]);
        assert!(row[outputs..].iter().all(|v| v.to_f32().is_nan()), "wrote beside its outputs");
    }
    let ulps = if T::SUFFIX == "f32" { 256.0 } else { 1.0 };
    check_close(format.name(), &gpu.upload(&own).unwrap(), &wanted, outputs, ulps);
}

#[test]
fn products_equal_the_reference_for_every_format_and_up_to_eight_rows() {
    for format in FORMATS {
        for (rows, outputs, blocks) in [(1, 1, 1), (1, 33, 3), (2, 5, 2), (3, 9, 5), (5, 6, 1), (8, 7, 2)] {
            product::<f32>(format, rows, outputs, blocks);
        }
        product::<bf16>(format, 2, 19, 4);
        product::<f16>(format, 1, 4, 9);
    }
}

fn plain<T: Activation + PartialEq>(format: WeightFormat, outputs: usize, blocks: usize) {
    let Some(gpu) = gpu() else { return };
    let inputs = blocks * format.block_weights();
    let mut random = Random((outputs * inputs) as u64);
    let bytes = random.weights(format, outputs, inputs);
    let matrix = QuantisedMatrix::new(gpu, format, (outputs, inputs), &bytes).unwrap();
    let mut out = poisoned::<T>(gpu, outputs * inputs);
    cuda::dequantise(gpu, &matrix, out.view_mut()).unwrap();
    let mut wanted = vec![f32::NAN; outputs * inputs];
    for (row, wanted) in bytes.chunks(bytes.len() / outputs).zip(wanted.chunks_mut(inputs)) {
        quant::dequantise_row(format, row, wanted).unwrap();
    }
    let wanted: Vec<T> = wanted.into_iter().map(T::from_f32).collect();
    assert!(out.read().unwrap() == wanted, "{} as {}", format.name(), T::SUFFIX);
}

#[test]
fn plain_numbers_have_the_bits_that_the_cpu_gives_them() {
    for format in FORMATS {
        for (outputs, blocks) in [(1, 1), (3, 5), (40, 2)] {
            plain::<f32>(format, outputs, blocks);
            plain::<bf16>(format, outputs, blocks);
            plain::<f16>(format, outputs, blocks);
        }
    }
}

#[test]
fn a_broken_activation_breaks_its_row_and_no_other() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(3);
    let bytes = random.weights(WeightFormat::Q4K, 4, 256);
    let matrix = QuantisedMatrix::new(gpu, WeightFormat::Q4K, (4, 256), &bytes).unwrap();
    let mut x = random.floats(2 * 256);
    x[40] = f32::NAN;
    let mut rows = QuantisedRows::new(gpu, 256).unwrap();
    rows.fill(gpu, gpu.upload(&x).unwrap().view(), (2, 256, 256)).unwrap();
    let mut y = poisoned::<f32>(gpu, 8);
    cuda::quantised_linear(gpu, &rows, &matrix, y.view_mut(), 4).unwrap();
    let y = y.read().unwrap();
    assert!(y[..4].iter().all(|v| v.is_nan()) && y[4..].iter().all(|v| v.is_finite()), "{y:?}");
}
