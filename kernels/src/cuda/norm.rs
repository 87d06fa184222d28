//! Root-mean-square norm, with the residual sum before it.

use super::launch::{Args, Cut, aligned, packs};
use super::{Activation, CudaError, Gpu, View, ViewMut};
use crate::KernelError;
use crate::error::expect_len;

/// Packs of [`Activation::LANES`] that one thread keeps: `PACKS` of `rms_norm.cu`.
const PACKS: usize = 4;

/// `out = x / sqrt(mean(x²) + eps) * weight`, rows of `weight.len()`.
///
/// # Shapes
/// `x`, `out`: `[rows, width]`.
/// # Errors
/// [`KernelError::Shape`] or [`KernelError::Range`] when lengths do not fit; nothing is queued then.
pub fn rms_norm<T: Activation>(
    gpu: &Gpu,
    x: View<'_, T>,
    weight: View<'_, T>,
    eps: f32,
    out: ViewMut<'_, T>,
) -> Result<(), CudaError> {
    aligned("rms_norm", &[x, weight, out.view()])?;
    let cut = check("rms_norm", x.len(), weight.len(), out.len(), T::LANES)?;
    let args = Args::new().input(x).optional::<T>(None).input(weight).output(&out).int(weight.len()).float(eps);
    // SAFETY: `check` saw that every row lies within all three, and that a block covers a row.
    unsafe { gpu.launch(["rms_norm", T::SUFFIX, ""], cut, &args) }
}

/// `residual += x; out = rms_norm(residual)`.
///
/// # Shapes
/// `x`, `residual`, `out`: `[rows, width]`, where `width` is `weight.len()`.
/// # Errors
/// As [`rms_norm`].
pub fn add_rms_norm<T: Activation>(
    gpu: &Gpu,
    x: View<'_, T>,
    residual: ViewMut<'_, T>,
    weight: View<'_, T>,
    eps: f32,
    out: ViewMut<'_, T>,
) -> Result<(), CudaError> {
    aligned("add_rms_norm", &[x, residual.view(), weight, out.view()])?;
    let cut = check("add_rms_norm", x.len(), weight.len(), out.len(), T::LANES)?;
    expect_len("add_rms_norm", "residual length", residual.len(), x.len())?;
    let args = Args::new().input(x).output(&residual).input(weight).output(&out).int(weight.len()).float(eps);
    // SAFETY: as in `rms_norm`; the residual is as long as `x`.
    unsafe { gpu.launch(["rms_norm", T::SUFFIX, ""], cut, &args) }
}

fn check(op: &'static str, x: usize, width: usize, out: usize, lanes: usize) -> Result<Cut, KernelError> {
    if width == 0 || !x.is_multiple_of(width) {
        return Err(KernelError::Shape { op, what: "weight length (must divide x)", found: width, wanted: x });
    }
    expect_len(op, "out length", out, x)?;
    row_threads(op, width, lanes).map(|threads| Cut::new(x / width, threads))
}

/// Threads of a block that works on a row of `width`, each on up to [`PACKS`] packs of `lanes`.
fn row_threads(op: &'static str, width: usize, lanes: usize) -> Result<usize, KernelError> {
    let packs = packs(op, width, lanes)?;
    if packs > 1024 * PACKS {
        return Err(KernelError::Range { op, what: "width", found: width, limit: 1024 * PACKS * lanes + 1 });
    }
    Ok(packs.next_multiple_of(32).min(1024))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_that_a_block_cannot_cover_are_refused_by_name() {
        assert_eq!(row_threads("rms_norm", 4096, 8), Ok(512));
        assert_eq!(row_threads("rms_norm", 40, 8), Ok(32));
        assert_eq!(row_threads("rms_norm", 32768, 8), Ok(1024));
        let wide = row_threads("rms_norm", 32776, 8).unwrap_err().to_string();
        assert_eq!(wide, "rms_norm: width 32776 is out of range, the limit is 32769");
        let odd = row_threads("rms_norm", 41, 8).unwrap_err().to_string();
        assert_eq!(odd, "rms_norm: width (a multiple of 16 bytes) is 41, wanted 48");
        assert!(check("rms_norm", 100, 48, 100, 8).is_err());
        assert!(check("rms_norm", 96, 48, 95, 8).is_err());
    }
}
