//! The gate of a gated feed-forward layer.

use crate::error::expect_len;
use crate::{KernelError, Pool, reference};

/// `out = gate * sigmoid(gate) * up`, element by element.
///
/// # Errors
/// [`KernelError::Shape`] when the lengths differ; `out` is then untouched.
pub fn silu_mul(_pool: &Pool, gate: &[f32], up: &[f32], out: &mut [f32]) -> Result<(), KernelError> {
    expect_len("silu_mul", "up length", up.len(), gate.len())?;
    expect_len("silu_mul", "out length", out.len(), gate.len())?;
    reference::silu_mul(gate, up, out);
    Ok(())
}
