//! The gate of a gated feed-forward layer.

use crate::cpu::{by_level, lanes};
use crate::error::expect_len;
use crate::share::{Shared, rows_per_part};
use crate::{KernelError, Pool};

/// `out = gate * sigmoid(gate) * up`, element by element.
///
/// # Errors
/// [`KernelError::Shape`] when the lengths differ; `out` is then untouched.
pub fn silu_mul(pool: &Pool, gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
    expect_len("silu_mul", "up length", up.len(), gate.len())?;
    expect_len("silu_mul", "out length", out.len(), gate.len())?;
    let out = Shared::new(out);
    let per_part = rows_per_part(pool, gate.len(), 4); // an exponential costs as much as a few sums
    pool.run(gate.len().div_ceil(per_part), &|part| {
        let start = part * per_part;
        let end = gate.len().min(start + per_part);
        // SAFETY: parts are disjoint stretches of `out`, which is as long as `gate`.
        let out = unsafe { out.piece(start, end - start) };
        gate_elements(pool.level(), &gate[start..end], &up[start..end], out);
    });
    Ok(())
}

by_level! {
    fn gate_elements(gate: &[f32], up: &[f32], out: &mut [f32]) = gate_inline
}

#[inline(always)]
fn gate_inline(gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((out, gate), up) in out.iter_mut().zip(gate).zip(up) {
        *out = gate / (1.0 + lanes::exp(-gate)) * up;
    }
}
