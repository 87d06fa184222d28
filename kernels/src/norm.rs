//! Root-mean-square norm, alone and fused with the residual sum in front of it.

use crate::error::expect_len;
use crate::{KernelError, Pool, reference};

/// `out = x / sqrt(mean(x²) + eps) * weight`, row by row.
///
/// # Shapes
/// `x`, `out`: `[rows, width]`, where `width` is the length of `weight`.
/// # Errors
/// [`KernelError::Shape`] when the lengths do not fit; `out` is then untouched.
pub fn rms_norm(_pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> Result<(), KernelError> {
    check_rows("rms_norm", x.len(), weight.len(), out.len())?;
    reference::rms_norm(x, weight, eps, out);
    Ok(())
}

/// `residual += x; out = rms_norm(residual)`.
///
/// # Shapes
/// `residual`, `x`, `out`: `[rows, width]`, where `width` is the length of `weight`.
/// # Errors
/// [`KernelError::Shape`] when the lengths do not fit; nothing is written then.
pub fn add_rms_norm(
    pool: &Pool,
    residual: &mut [f32],
    x: &[f32],
    weight: &[f32],
    eps: f32,
    out: &mut [f32],
) -> Result<(), KernelError> {
    check_rows("add_rms_norm", x.len(), weight.len(), out.len())?;
    expect_len("add_rms_norm", "residual length", residual.len(), x.len())?;
    add(pool, residual, x)?;
    rms_norm(pool, residual, weight, eps, out)
}

/// `residual += x`.
///
/// # Errors
/// [`KernelError::Shape`] when the lengths differ.
pub fn add(_pool: &Pool, residual: &mut [f32], x: &[f32]) -> Result<(), KernelError> {
    expect_len("add", "x length", x.len(), residual.len())?;
    reference::add(residual, x);
    Ok(())
}

fn check_rows(op: &'static str, x: usize, width: usize, out: usize) -> Result<(), KernelError> {
    if width == 0 || !x.is_multiple_of(width) {
        return Err(KernelError::Shape { op, what: "weight length (must divide x)", found: width, wanted: x });
    }
    expect_len(op, "out length", out, x)
}
