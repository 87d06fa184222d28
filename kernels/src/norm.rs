//! Root-mean-square norm, alone and fused with the residual sum in front of it.

use crate::cpu::{by_level, lanes};
use crate::error::expect_len;
use crate::share::{Shared, rows_per_part};
use crate::{KernelError, Pool};

/// `out = x / sqrt(mean(x²) + eps) * weight`, row by row.
///
/// # Shapes
/// `x`, `out`: `[rows, width]`, where `width` is the length of `weight`.
/// # Errors
/// [`KernelError::Shape`] when the lengths do not fit; `out` is then untouched.
pub fn rms_norm(pool: &Pool, x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) -> Result<(), KernelError> {
    check_rows("rms_norm", x.len(), weight.len(), out.len())?;
    let width = weight.len();
    let out = Shared::new(out);
    for_parts(pool, x.len() / width, width, &|start, len| {
        // SAFETY: parts are disjoint stretches of `out`, which is as long as `x`.
        let out = unsafe { out.piece(start, len) };
        norm_rows(pool.level(), &x[start..start + len], weight, eps, out);
    });
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
    let width = weight.len();
    let (residual, out) = (Shared::new(residual), Shared::new(out));
    for_parts(pool, x.len() / width, width, &|start, len| {
        // SAFETY: parts are disjoint stretches of `residual` and `out`, which are as long as `x`.
        let (residual, out) = unsafe { (residual.piece(start, len), out.piece(start, len)) };
        add_elements(pool.level(), residual, &x[start..start + len]);
        norm_rows(pool.level(), residual, weight, eps, out);
    });
    Ok(())
}

/// `residual += x`.
///
/// # Errors
/// [`KernelError::Shape`] when the lengths differ; `residual` is then untouched.
pub fn add(pool: &Pool, residual: &mut [f32], x: &[f32]) -> Result<(), KernelError> {
    expect_len("add", "x length", x.len(), residual.len())?;
    let residual = Shared::new(residual);
    for_parts(pool, x.len(), 1, &|start, len| {
        // SAFETY: parts are disjoint stretches of `residual`, which is as long as `x`.
        let residual = unsafe { residual.piece(start, len) };
        add_elements(pool.level(), residual, &x[start..start + len]);
    });
    Ok(())
}

/// Calls `work(start, len)` for stretches of whole rows.
fn for_parts(pool: &Pool, rows: usize, width: usize, work: &(dyn Fn(usize, usize) + Sync)) {
    let per_part = rows_per_part(pool, rows, width);
    pool.run(rows.div_ceil(per_part), &|part| {
        let first = part * per_part;
        work(first * width, per_part.min(rows - first) * width);
    });
}

fn check_rows(op: &'static str, x: usize, width: usize, out: usize) -> Result<(), KernelError> {
    if width == 0 || !x.is_multiple_of(width) {
        return Err(KernelError::Shape { op, what: "weight length (must divide x)", found: width, wanted: x });
    }
    expect_len(op, "out length", out, x)
}

by_level! {
    fn norm_rows(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) = norm_rows_inline
}

#[inline(always)]
fn norm_rows_inline(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    for (x, out) in x.chunks_exact(weight.len()).zip(out.chunks_exact_mut(weight.len())) {
        lanes::rms_norm_row(x, weight, eps, out);
    }
}

by_level! {
    fn add_elements(residual: &mut [f32], x: &[f32]) = add_inline
}

#[inline(always)]
fn add_inline(residual: &mut [f32], x: &[f32]) {
    for (r, x) in residual.iter_mut().zip(x) {
        *r += x;
    }
}
