//! The operation itself: its checks, and which way to multiply.

use super::rows::{Layout, RowCut, laid_out};
use super::vectors;
#[cfg(target_arch = "x86_64")]
use super::{bytes, tiles};
use crate::cpu::Kernel;
use crate::error::expect_len;
use crate::share::Shared;
use crate::{KernelError, PackedMatrix, Pool};

/// Bytes of weights a thread keeps in its second-level cache while activation tiles pass: half of the smallest
/// second-level cache around (1 MiB).
pub(super) const CACHED_WEIGHT_BYTES: usize = 512 << 10;
/// Parts a thread gets of a product by tile registers, so that a thread that starts late or is held up leaves the others
/// something to take.
#[cfg(target_arch = "x86_64")]
pub(super) const PARTS_A_THREAD: usize = 8;

/// One matrix that rows are multiplied with, and where its outputs go.
#[derive(Debug)]
pub struct Product<'a> {
    /// The matrix.
    pub weight: &'a PackedMatrix,
    /// Added to the outputs, `[rows]`.
    pub bias: Option<&'a [f32]>,
    /// The outputs, `[m, rows]`.
    pub y: &'a mut [f32],
}

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
    linear_each(pool, x, &mut [Product { weight: w, bias, y }])
}

/// Multiplies the same activation rows with several matrices; neighbours of one format and width share the rows as laid out for it.
///
/// # Shapes
/// `x`: `[m, cols]`, the others as [`Product`] says.
/// # Errors
/// [`KernelError::Shape`] when lengths do not fit; every `y` is then untouched.
pub fn linear_each(pool: &Pool, x: &[f32], products: &mut [Product<'_>]) -> Result<(), KernelError> {
    for product in &*products {
        check(x, product)?;
    }
    let is_alike =
        |a: &Product, b: &Product| (a.weight.format(), a.weight.cols()) == (b.weight.format(), b.weight.cols());
    for alike in products.chunk_by_mut(is_alike) {
        let w = alike[0].weight;
        let m = x.len() / w.cols();
        if m == 0 {
            continue;
        }
        #[cfg(target_arch = "x86_64")]
        if pool.level() == crate::Level::Amx && w.format() == crate::WeightFormat::Bf16 {
            let cut = RowCut::of(m, tiles::MAX_ROWS);
            // Every tile is as high as the first, so that the registers keep one shape.
            let layout = Layout { packing: crate::cpu::XPacking::Bf16Rows, row_count: &|_| cut.rows_per_tile };
            laid_out(pool, x, w, (&layout, &cut), |rows| {
                for product in alike {
                    tiles::multiply(pool, &cut, rows, product.weight, &product.target());
                }
            });
            continue;
        }
        #[cfg(target_arch = "x86_64")]
        if pool.level() == crate::Level::Amx && w.format().is_quantised() && m >= bytes::MIN_ROWS {
            let cut = bytes::cut_rows(m);
            let layout = Layout { packing: crate::cpu::XPacking::ByteRows, row_count: &|_| cut.rows_per_tile };
            laid_out(pool, x, w, (&layout, &cut), |tiles| {
                for product in alike {
                    bytes::multiply(pool, &cut, tiles, product.weight, &product.target());
                }
            });
            continue;
        }
        let kernel = Kernel::of(pool.level(), w.format(), w.cols());
        let cut = RowCut::filled(m, kernel.max_rows(), |rows| kernel.row_count_for(rows));
        let layout = Layout { packing: kernel.packing, row_count: &|rows| kernel.row_count_for(rows) };
        laid_out(pool, x, w, (&layout, &cut), |tiles| vectors::multiply(pool, (&kernel, &cut), tiles, alike));
    }
    Ok(())
}

fn check(x: &[f32], product: &Product) -> Result<(), KernelError> {
    let (rows, cols) = (product.weight.rows(), product.weight.cols());
    if cols == 0 || !x.len().is_multiple_of(cols) {
        return Err(KernelError::Shape { op: "linear", what: "x length (a multiple)", found: x.len(), wanted: cols });
    }
    expect_len("linear", "y length", product.y.len(), x.len() / cols * rows)?;
    product.bias.map_or(Ok(()), |bias| expect_len("linear", "bias length", bias.len(), rows))
}

impl Product<'_> {
    pub(super) fn target(&mut self) -> Target<'_> {
        Target { bias: self.bias, y: Shared::new(self.y) }
    }
}

/// Where sums go.
pub(super) struct Target<'a> {
    pub(super) bias: Option<&'a [f32]>,
    pub(super) y: Shared<f32>,
}
