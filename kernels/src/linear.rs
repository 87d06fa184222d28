//! `y = x · wᵀ + bias`, the operation most of the time goes to.

use crate::error::expect_len;
use crate::{KernelError, PackedMatrix, Pool, reference};

/// Multiplies activation rows with a packed matrix.
///
/// # Shapes
/// `x`: `[m, cols]`, `y`: `[m, rows]`, `bias`: `[rows]`.
/// # Errors
/// [`KernelError::Shape`] when lengths do not fit; `y` is then untouched.
pub fn linear(
    _pool: &Pool,
    x: &[f32],
    w: &PackedMatrix,
    bias: Option<&[f32]>,
    y: &mut [f32],
) -> Result<(), KernelError> {
    let (rows, cols) = (w.rows(), w.cols());
    if cols == 0 || !x.len().is_multiple_of(cols) {
        return Err(KernelError::Shape { op: "linear", what: "x length (a multiple)", found: x.len(), wanted: cols });
    }
    let m = x.len() / cols;
    expect_len("linear", "y length", y.len(), m * rows)?;
    if let Some(bias) = bias {
        expect_len("linear", "bias length", bias.len(), rows)?;
    }
    reference::linear(x, &reference::Matrix { format: w.format(), rows, cols, bytes: w.data() }, bias, y);
    Ok(())
}
