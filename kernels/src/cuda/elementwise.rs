//! Operations element by element: the gate of the feed-forward layer, biases, conversions.

use super::launch::{Args, Cut, aligned, packs};
use super::{Activation, CudaError, Gpu, View, ViewMut};
use crate::KernelError;
use crate::error::expect_len;

/// Threads of a block.
const THREADS: usize = 256;

/// `out = gate * sigmoid(gate) * up`, where a row of `gate_up` is its gate, then its up.
///
/// # Shapes
/// `gate_up`: `[rows, 2 * width]`, `out`: `[rows, width]`.
/// # Errors
/// [`KernelError::Shape`] when lengths do not fit; nothing is queued then.
pub fn silu_mul<T: Activation>(
    gpu: &Gpu,
    gate_up: View<'_, T>,
    width: usize,
    out: ViewMut<'_, T>,
) -> Result<(), CudaError> {
    aligned("silu_mul", &[gate_up, out.view()])?;
    let cut = rows("silu_mul", out.len(), width, T::LANES)?;
    expect_len("silu_mul", "gate_up length", gate_up.len(), 2 * out.len())?;
    let args = Args::new().input(gate_up).output(&out).int(width);
    // SAFETY: both hold whole rows, as many of `gate_up` as of `out`.
    unsafe { gpu.launch(["silu_mul", T::SUFFIX, ""], cut, &args) }
}

/// `y += bias`, row by row.
///
/// # Shapes
/// `y`: `[rows, width]`, where `width` is the length of `bias`.
/// # Errors
/// [`KernelError::Shape`] when lengths do not fit; nothing is queued then.
pub fn add_bias<T: Activation>(gpu: &Gpu, bias: View<'_, T>, y: ViewMut<'_, T>) -> Result<(), CudaError> {
    aligned("add_bias", &[bias, y.view()])?;
    let cut = rows("add_bias", y.len(), bias.len(), T::LANES)?;
    let args = Args::new().input(bias).output(&y).int(bias.len());
    // SAFETY: `y` holds whole rows as wide as the bias.
    unsafe { gpu.launch(["add_bias", T::SUFFIX, ""], cut, &args) }
}

/// `to[i] = from[i]`, rounded to nearest even.
///
/// # Errors
/// [`KernelError::Shape`] when lengths differ.
pub fn convert<A: Activation, B: Activation>(
    gpu: &Gpu,
    from: View<'_, A>,
    to: ViewMut<'_, B>,
) -> Result<(), CudaError> {
    expect_len("convert", "length", from.len(), to.len())?;
    aligned("convert", &[from])?;
    aligned("convert", &[to.view()])?;
    if A::SUFFIX == B::SUFFIX {
        return Err(KernelError::Shape { op: "convert", what: "number of types", found: 1, wanted: 2 }.into());
    }
    let cut = Cut::new(from.len().div_ceil(4 * THREADS), THREADS);
    let args = Args::new().input(from).output(&to).long(from.len() as u64);
    // SAFETY: both sides have this length, which the kernel keeps to.
    unsafe { gpu.launch(["convert", A::SUFFIX, B::SUFFIX], cut, &args) }
}

/// A grid over rows and the packs of a row.
fn rows(op: &'static str, len: usize, width: usize, lanes: usize) -> Result<Cut, KernelError> {
    let packs = packs(op, width, lanes)?;
    if !len.is_multiple_of(width) {
        return Err(KernelError::Shape { op, what: "width (must divide the rows)", found: width, wanted: len });
    }
    let threads = packs.next_multiple_of(32).min(THREADS);
    Ok(Cut::grid((len / width, packs.div_ceil(threads), 1), threads))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_covers_every_pack_of_every_row() {
        let cut = rows("silu_mul", 3 * 14336, 14336, 8).unwrap();
        assert_eq!((cut.grid, cut.threads), ((3, 7, 1), 256));
        let cut = rows("silu_mul", 5 * 24, 24, 8).unwrap();
        assert_eq!((cut.grid, cut.threads), ((5, 1, 1), 32));
        assert!(rows("silu_mul", 5 * 24 + 8, 24, 8).is_err());
        assert!(rows("silu_mul", 60, 12, 8).is_err());
    }
}
