//! Matrix products.

use half::{bf16, f16};
use millgate_kernels::cuda::{self, Activation, Buffer, Gpu, MatMul, View};

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

/// A device of its own in deterministic mode, which is for good.
fn deterministic(gpu: &Gpu) -> Gpu {
    let gpu = Gpu::open(gpu.info().ordinal).unwrap();
    gpu.make_deterministic();
    gpu
}

/// Rows of inputs and weights for `MatMul::dense(rows, inputs, outputs)`.
fn operands(gpu: &Gpu, (rows, inputs, outputs): (usize, usize, usize)) -> (Buffer<bf16>, Buffer<bf16>) {
    let mut random = Random(5);
    let mut matrix = |len| gpu.upload(&rounded::<bf16>(&random.floats(len)).0).unwrap();
    (matrix(rows * inputs), matrix(outputs * inputs))
}

fn multiplied(gpu: &Gpu, x: View<'_, bf16>, w: &Buffer<bf16>, inputs: usize) -> Vec<f32> {
    let (rows, outputs) = (x.len() / inputs, w.len() / inputs);
    let mut y = poisoned::<f32>(gpu, rows * outputs);
    cuda::matmul(gpu, x, w.view(), y.view_mut(), MatMul::dense(rows, inputs, outputs)).unwrap();
    y.read().unwrap()
}

/// An algorithm that is best for many rows and takes no single one, and sizes that none is made for, are among them.
#[test]
fn in_deterministic_mode_a_row_alone_has_the_bits_it_has_among_others() {
    let Some(gpu) = gpu() else { return };
    for (rows, inputs, outputs) in [(64, 512, 96), (64, 512, 33), (40, 65, 9)] {
        let gpu = deterministic(gpu);
        let (x, w) = operands(&gpu, (rows, inputs, outputs));
        let all = multiplied(&gpu, x.view(), &w, inputs);
        for (start, count) in [(0, 1), (17, 1), (rows - 1, 1), (3, 2), (5, 30)] {
            let some = multiplied(&gpu, x.slice(start * inputs..(start + count) * inputs), &w, inputs);
            assert!(some == all[start * outputs..(start + count) * outputs], "{count} of {inputs} x {outputs} differ");
        }
    }
}

#[test]
fn in_deterministic_mode_bits_depend_neither_on_what_ran_before_nor_on_where_rows_lie() {
    let Some(gpu) = gpu() else { return };
    let (rows, inputs, outputs) = (64, 512, 96);
    let (first, second) = (deterministic(gpu), deterministic(gpu));
    let (x, w) = operands(&first, (rows, inputs, outputs));
    let wide = multiplied(&first, x.view(), &w, inputs);
    let few = multiplied(&first, x.slice(..5 * inputs), &w, inputs);
    // The other way round, and 16 bytes further on.
    let (x, w) = operands(&second, (rows, inputs, outputs));
    let mut moved = second.zeroed::<bf16>(rows * inputs + 8).unwrap();
    moved.slice_mut(8..).copy_from(x.view()).unwrap();
    assert!(multiplied(&second, moved.slice(8..8 + 5 * inputs), &w, inputs) == few);
    assert!(multiplied(&second, moved.slice(8..), &w, inputs) == wide);
}

#[test]
fn a_product_that_no_algorithm_is_made_for_is_told_once_and_what_that_means() {
    let Some(gpu) = gpu() else { return };
    let told = |gpu: &Gpu| {
        let (x, w) = operands(gpu, (7, 65, 9));
        let rows = [7, 5, 7].map(|rows| multiplied(gpu, x.slice(..rows * 65), &w, 65));
        assert_eq!(rows[0], rows[2]);
        gpu.take_fallbacks().iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let free = Gpu::open(gpu.info().ordinal).unwrap();
    let texts = [told(&free), told(&deterministic(gpu))];
    // Which sizes a card has no algorithm for is its own affair.
    if gpu.info().name.contains("emulated") {
        let begin = "cuBLASLt has no algorithm for products of 65 inputs and 9 outputs: ";
        assert_eq!(
            texts[0],
            [format!("{begin}cuBLAS computes them, perhaps slower and not to the same bits in every step")]
        );
        assert_eq!(texts[1], [format!("{begin}each row is multiplied alone to keep its bits, which is slow")]);
    }
    assert!(free.take_fallbacks().is_empty());
}
