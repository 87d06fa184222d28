//! Matrix products.

use half::{bf16, f16};
use millgate_kernels::cuda::{self, Activation, Gpu, MatMul};

use super::{check_close, gpu, poisoned, rounded};
use crate::random::Random;

fn wanted(shape: &MatMul, x: &[f32], w: &[f32]) -> Vec<f32> {
    let mut y = vec![f32::NAN; shape.rows * shape.outputs];
    for row in 0..shape.rows {
        for out in 0..shape.outputs {
            let (x, w) = (&x[row * shape.x_stride..][..shape.inputs], &w[out * shape.inputs..][..shape.inputs]);
            let sum: f64 = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w)).sum();
            y[row * shape.outputs + out] = sum as f32;
        }
    }
    y
}

fn product<T: Activation, Y: Activation>(shape: MatMul, ulps: f32) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(shape.inputs as u64);
    let (x, plain_x) = rounded::<T>(&random.floats(shape.rows * shape.x_stride));
    let (w, plain_w) = rounded::<T>(&random.floats(shape.outputs * shape.inputs));
    let (x, w) = (gpu.upload(&x).unwrap(), gpu.upload(&w).unwrap());
    let mut y = poisoned::<Y>(gpu, shape.rows * shape.y_stride);
    cuda::matmul(gpu, x.view(), w.view(), y.view_mut(), shape).unwrap();
    let wanted = wanted(&shape, &plain_x, &plain_w);
    let got: Vec<Y> = y.read().unwrap();
    let mut dense = Vec::new();
    for row in got.chunks_exact(shape.y_stride.max(1)) {
        dense.extend_from_slice(&row[..shape.outputs]);
        assert!(row[shape.outputs..].iter().all(|v| Y::to_f32(*v).is_nan()), "wrote beside its columns");
    }
    check_close("product", &gpu.upload(&dense).unwrap(), &wanted, shape.outputs, ulps);
}

#[test]
fn products_equal_sums_in_double_precision() {
    // Up to four rows, more, and inputs that are no whole packs take different ways.
    for (rows, inputs, outputs) in [
        (1, 64, 48),
        (2, 1032, 33),
        (3, 8, 1),
        (4, 4104, 17),
        (7, 128, 24),
        (33, 40, 16),
        (5, 65, 9),
        (2, 65, 9),
        (0, 8, 8),
    ] {
        let shape = MatMul::dense(rows, inputs, outputs);
        product::<f32, f32>(shape, 64.0);
        product::<bf16, bf16>(shape, 2.0);
        product::<f16, f16>(shape, 2.0);
        product::<bf16, f32>(shape, 64.0);
    }
}

#[test]
fn rows_may_be_parts_of_wider_ones() {
    product::<bf16, bf16>(MatMul { rows: 3, inputs: 32, outputs: 16, x_stride: 40, y_stride: 64 }, 2.0);
    product::<f16, f32>(MatMul { rows: 3, inputs: 32, outputs: 16, x_stride: 44, y_stride: 16 }, 64.0);
    product::<f32, f32>(MatMul { rows: 9, inputs: 8, outputs: 24, x_stride: 8, y_stride: 25 }, 64.0);
}

#[test]
fn in_deterministic_mode_a_row_alone_has_the_bits_it_has_among_others() {
    let Some(gpu) = gpu() else { return };
    // A device of its own: the mode is for good.
    let gpu = Gpu::open(gpu.info().ordinal).unwrap();
    gpu.make_deterministic();
    let (rows, inputs, outputs) = (64, 512, 96);
    let mut random = Random(5);
    let x = gpu.upload(&rounded::<bf16>(&random.floats(rows * inputs)).0).unwrap();
    let w = gpu.upload(&rounded::<bf16>(&random.floats(outputs * inputs)).0).unwrap();
    let mut all = poisoned::<bf16>(&gpu, rows * outputs);
    cuda::matmul(&gpu, x.view(), w.view(), all.view_mut(), MatMul::dense(rows, inputs, outputs)).unwrap();
    let all = all.read().unwrap();
    for row in [0, 17, 63] {
        let mut alone = poisoned::<bf16>(&gpu, outputs);
        let x = x.slice(row * inputs..(row + 1) * inputs);
        cuda::matmul(&gpu, x, w.view(), alone.view_mut(), MatMul::dense(1, inputs, outputs)).unwrap();
        assert_eq!(alone.read().unwrap(), all[row * outputs..(row + 1) * outputs]);
    }
}
