//! Matrix products: few rows by a kernel of our own that is bound by memory, more through cuBLASLt.

use super::blas::{Places, Types};
use super::launch::{Args, Cut};
use super::{Activation, CudaError, Gpu, View, ViewMut};
use crate::KernelError;
use crate::error::expect_len;

/// Rows that `matvec.cu` takes at most.
const FEW_ROWS: usize = 4;
/// Outputs of a block of it: two a warp.
const BLOCK_OUTPUTS: usize = 16;

/// Sizes of a product `y = x · wᵀ`, in elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct MatMul {
    /// Rows of `x` and of `y`.
    pub rows: usize,
    /// Width of a row of `x` and of `w`.
    pub inputs: usize,
    /// Rows of `w`, width of a row of `y`.
    pub outputs: usize,
    /// From one row of `x` to the next.
    pub x_stride: usize,
    /// From one row of `y` to the next.
    pub y_stride: usize,
}

impl MatMul {
    /// Rows of `x` and `y` lie one after the other without gaps.
    pub fn dense(rows: usize, inputs: usize, outputs: usize) -> Self {
        Self { rows, inputs, outputs, x_stride: inputs, y_stride: outputs }
    }
}

/// `y = x · wᵀ` with sums in f32 (and f32 products exact to f32, no TF32).
///
/// # Shapes
/// `x`: `[rows, inputs]`, `w`: `[outputs, inputs]`, `y`: `[rows, outputs]` in `T` or f32; rows of `x` and `y` may be
/// parts of wider ones.
/// # Errors
/// [`KernelError::Shape`] when lengths do not fit, [`CudaError::Blas`] when cuBLAS refuses.
pub fn matmul<T: Activation, Y: Activation>(
    gpu: &Gpu,
    x: View<'_, T>,
    w: View<'_, T>,
    y: ViewMut<'_, Y>,
    shape: MatMul,
) -> Result<(), CudaError> {
    check_shape(&shape, x.len(), w.len(), y.len())?;
    if shape.rows == 0 || shape.outputs == 0 {
        return Ok(());
    }
    if shape.rows <= FEW_ROWS && !gpu.is_deterministic() && is_aligned(&shape, &x, &w) {
        return few_rows(gpu, x, w, y, shape);
    }
    gpu.bind()?;
    if let Some(mut captured) = gpu.captured() {
        captured.memory.extend([x.memory().clone(), w.memory().clone(), y.memory().clone()]);
    }
    let types = Types { x: T::BLAS_TYPE, y: Y::BLAS_TYPE };
    let places = Places { x: x.address() as _, w: w.address() as _, y: y.address() as _ };
    let mut blas = gpu.blas();
    let blas = blas.as_mut().expect("an open device has cuBLAS");
    // SAFETY: `check_shape` saw that the last row of each matrix ends within its memory, which outlives queued work.
    unsafe { blas.multiply(gpu, shape, types, places) }
}

fn few_rows<T: Activation, Y: Activation>(
    gpu: &Gpu,
    x: View<'_, T>,
    w: View<'_, T>,
    y: ViewMut<'_, Y>,
    shape: MatMul,
) -> Result<(), CudaError> {
    let name = ["matvec_1", "matvec_2", "matvec_3", "matvec_4"][shape.rows - 1];
    let cut = Cut::new(shape.outputs.div_ceil(BLOCK_OUTPUTS), 256);
    let args = Args::new().input(x).input(w).output(&y).int(shape.inputs).int(shape.outputs);
    let args = args.int(shape.x_stride).int(shape.y_stride);
    // SAFETY: `check_shape` saw that the last row of each matrix ends within its memory, and `is_aligned` that every
    // row starts where wide loads may.
    unsafe { gpu.launch([name, T::SUFFIX, Y::SUFFIX], cut, &args) }
}

/// Whether every row of both starts at a multiple of 16 bytes.
fn is_aligned<T: Activation>(shape: &MatMul, x: &View<'_, T>, w: &View<'_, T>) -> bool {
    let is_whole = |len: usize| len.is_multiple_of(T::LANES);
    let starts = x.address().is_multiple_of(16) && w.address().is_multiple_of(16);
    starts && is_whole(shape.inputs) && is_whole(shape.x_stride)
}

fn check_shape(shape: &MatMul, x: usize, w: usize, y: usize) -> Result<(), KernelError> {
    const OP: &str = "matmul";
    expect_len(OP, "w length", w, shape.outputs * shape.inputs)?;
    let range = |what, found: usize, limit| Err(KernelError::Range { op: OP, what, found, limit });
    if shape.x_stride < shape.inputs {
        return range("inputs", shape.inputs, shape.x_stride + 1);
    }
    if shape.y_stride < shape.outputs {
        return range("outputs", shape.outputs, shape.y_stride + 1);
    }
    if shape.rows == 0 {
        return Ok(());
    }
    let x_end = (shape.rows - 1) * shape.x_stride + shape.inputs;
    let y_end = (shape.rows - 1) * shape.y_stride + shape.outputs;
    if x_end > x {
        return range("end of x", x_end, x + 1);
    }
    if y_end > y {
        return range("end of y", y_end, y + 1);
    }
    match [shape.rows, shape.inputs, shape.outputs, shape.x_stride, shape.y_stride].into_iter().max() {
        Some(largest) if largest > i32::MAX as usize => range("a size", largest, i32::MAX as usize),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_product_that_leaves_its_memory_is_refused_by_name() {
        let dense = MatMul::dense(3, 8, 5);
        assert_eq!(check_shape(&dense, 24, 40, 15), Ok(()));
        let text = |result: Result<(), KernelError>| result.unwrap_err().to_string();
        assert_eq!(text(check_shape(&dense, 23, 40, 15)), "matmul: end of x 24 is out of range, the limit is 24");
        assert_eq!(text(check_shape(&dense, 24, 39, 15)), "matmul: w length is 39, wanted 40");
        assert_eq!(text(check_shape(&dense, 24, 40, 14)), "matmul: end of y 15 is out of range, the limit is 15");
        let wide = MatMul { y_stride: 9, ..dense };
        assert_eq!(check_shape(&wide, 24, 40, 23), Ok(()));
        assert!(check_shape(&wide, 24, 40, 22).is_err());
        assert!(check_shape(&MatMul { x_stride: 7, ..dense }, 24, 40, 15).is_err());
    }
}
