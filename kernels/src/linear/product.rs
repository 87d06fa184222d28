//! The operation itself: its checks, and which way to multiply.

use super::rows::{Layout, RowCut, laid_out};
use super::vectors;
use crate::cpu::Kernel;
use crate::error::expect_len;
use crate::share::Shared;
use crate::{KernelError, PackedMatrix, Pool};

/// Bytes of weights a thread keeps in its second-level cache while activation tiles pass: half of the smallest
/// second-level cache around (1 MiB).
pub(super) const CACHED_WEIGHT_BYTES: usize = 512 << 10;
/// Parts a thread gets, so that a thread that starts late or is held up leaves the others something to take.
pub(super) const PARTS_A_THREAD: usize = 8;

/// Multiplies activation rows with a packed matrix.
///
/// # Shapes
/// `x`: `[m, cols]`, `y`: `[m, rows]`, `bias`: `[rows]`.
/// # Errors
/// [`KernelError::Shape`] when lengths do not fit; `y` is then untouched.
pub fn linear(
    pool: &Pool,
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
    if y.is_empty() {
        return Ok(());
    }
    let target = Target { bias, y: Shared::new(y) };
    #[cfg(target_arch = "x86_64")]
    if pool.level() == crate::Level::Amx && w.format() == crate::WeightFormat::Bf16 {
        use super::tiles;
        let cut = RowCut::of(m, tiles::MAX_ROWS);
        // Every tile is as high as the first, so that the registers keep one shape.
        let layout = Layout { packing: crate::cpu::XPacking::Bf16Rows, row_count: &|_| cut.rows_per_tile };
        laid_out(pool, x, w, (&layout, &cut), |tiles| tiles::multiply(pool, &cut, tiles, w, &target));
        return Ok(());
    }
    let kernel = Kernel::of(pool.level(), w.format());
    let cut = RowCut::of(m, kernel.max_rows());
    let layout = Layout { packing: kernel.packing, row_count: &|rows| kernel.row_count_for(rows) };
    laid_out(pool, x, w, (&layout, &cut), |tiles| vectors::multiply(pool, (&kernel, &cut), tiles, w, &target));
    Ok(())
}

/// Where sums go.
pub(super) struct Target<'a> {
    pub(super) bias: Option<&'a [f32]>,
    pub(super) y: Shared<f32>,
}
