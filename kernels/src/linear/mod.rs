//! `y = x · wᵀ + bias`, the operation most of the time goes to.
//!
//! Activations are laid out once ([`crate::cpu::pack_activations`]), then panels of outputs are shared among the threads. Few
//! rows: every panel is read from memory once, as fast as memory goes. Many rows: a group of panels stays in the
//! second-level cache while all rows pass over it.

#[cfg(target_arch = "x86_64")]
mod tiles;
mod vectors;

use crate::cpu::{ActivationRows, Kernel, XPacking, pack_activations};
use crate::error::expect_len;
use crate::share::{Line, Shared, with_scratch};
use crate::{KernelError, Level, PackedMatrix, Pool, WeightFormat};
use std::cell::Cell;

/// Bytes of weights a thread keeps in its second-level cache while activation tiles pass: half of the smallest
/// second-level cache around (1 MiB).
const CACHED_WEIGHT_BYTES: usize = 512 << 10;
/// Parts a thread gets, so that a thread that starts late or is held up leaves the others something to take.
const PARTS_A_THREAD: usize = 8;
/// Fewer activations than this are laid out by the caller alone.
const SHARE_ACTIVATIONS_FROM: usize = 16 << 10;

thread_local! {
    /// Laid-out activations, kept between calls so that a step allocates nothing.
    static LAID_OUT: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
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
    if pool.level() == Level::Amx && w.format() == WeightFormat::Bf16 {
        let cut = RowCut::of(m, tiles::MAX_ROWS);
        // Every tile is as high as the first, so that the registers keep one shape.
        let layout = Layout { packing: XPacking::Bf16Rows, row_count: &|_| cut.rows_per_tile };
        laid_out(pool, x, w, (&layout, &cut), |tiles| tiles::multiply(pool, &cut, tiles, w, &target));
        return Ok(());
    }
    let kernel = Kernel::of(pool.level(), w.format());
    let cut = RowCut::of(m, kernel.max_rows());
    let layout = Layout { packing: kernel.packing, row_count: &|rows| kernel.row_count_for(rows) };
    laid_out(pool, x, w, (&layout, &cut), |tiles| vectors::multiply(pool, (&kernel, &cut), tiles, w, &target));
    Ok(())
}

/// How `m` rows are cut into tiles of nearly equal size.
struct RowCut {
    m: usize,
    rows_per_tile: usize,
}

impl RowCut {
    fn of(m: usize, max_rows: usize) -> Self {
        Self { m, rows_per_tile: m.div_ceil(m.div_ceil(max_rows)) }
    }

    fn num_tiles(&self) -> usize {
        self.m.div_ceil(self.rows_per_tile)
    }

    /// First row and number of rows.
    fn tile(&self, index: usize) -> (usize, usize) {
        let first = index * self.rows_per_tile;
        (first, self.rows_per_tile.min(self.m - first))
    }
}

/// How a kernel wants its rows.
struct Layout<'a> {
    packing: XPacking,
    /// Rows a tile is filled up to.
    row_count: &'a (dyn Fn(usize) -> usize + Sync),
}

/// Rows laid out for a kernel, cut into tiles.
struct Tiles<'a> {
    words: &'a [u32],
    /// Words of the largest tile: where the next one starts.
    tile_words: usize,
}

impl Tiles<'_> {
    fn tile(&self, index: usize) -> *const u32 {
        self.words[index * self.tile_words..].as_ptr()
    }
}

fn laid_out(pool: &Pool, x: &[f32], w: &PackedMatrix, (layout, cut): (&Layout, &RowCut), work: impl FnOnce(&Tiles)) {
    let cols = w.cols();
    let words_per_row = layout.packing.words_per_row(cols);
    let tile_words = (layout.row_count)(cut.rows_per_tile) * words_per_row;
    with_scratch(&LAID_OUT, cut.num_tiles() * tile_words, |words| {
        let start = Shared::new(words);
        let lay_out = |index: usize| {
            let (first, rows) = cut.tile(index);
            let m = (layout.row_count)(rows);
            let x = &x[first * cols..(first + rows) * cols];
            // SAFETY: tile `index` starts at `index * tile_words`, has at most as many words, and is one part's alone.
            let tile = unsafe { start.piece(index * tile_words, m * words_per_row) };
            let input = ActivationRows { x, cols, m, packing: layout.packing, format: w.format() };
            pack_activations(pool.level(), &input, tile);
        };
        if x.len() < SHARE_ACTIVATIONS_FROM {
            (0..cut.num_tiles()).for_each(lay_out);
        } else {
            pool.run(cut.num_tiles(), &lay_out);
        }
        work(&Tiles { words, tile_words });
    });
}

/// Where sums go.
struct Target<'a> {
    bias: Option<&'a [f32]>,
    y: Shared<f32>,
}
