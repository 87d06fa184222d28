//! `y = x · wᵀ + bias`, the operation most of the time goes to.
//!
//! Activations are laid out once ([`crate::cpu::pack_activations`]), then panels of outputs are shared among the threads. Few
//! rows: every panel is read from memory once, as fast as memory goes. Many rows: a group of panels stays in the
//! second-level cache while all rows pass over it.

use crate::cpu::{ActivationRows, Kernel, Out, TileInput, pack_activations};
use crate::error::expect_len;
use crate::panels::panel_rows;
use crate::share::Shared;
use crate::{KernelError, PackedMatrix, Pool};
use std::cell::Cell;

/// Bytes of weights a thread keeps in its second-level cache while activation tiles pass: half of the smallest
/// second-level cache around (1 MiB).
const CACHED_WEIGHT_BYTES: usize = 512 << 10;
/// Bytes of one dense panel to be used before going on to the next tile of rows.
const CACHED_PANEL_BYTES: usize = 128 << 10;
/// Parts a thread gets, so that a thread that starts late or is held up leaves the others something to take.
const PARTS_A_THREAD: usize = 8;
/// Fewer activations than this are laid out by the caller alone.
const SHARE_ACTIVATIONS_FROM: usize = 16 << 10;

thread_local! {
    /// Laid-out activations, kept between calls so that a step allocates nothing.
    static SCRATCH: Cell<Vec<u32>> = const { Cell::new(Vec::new()) };
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
    let kernel = Kernel::of(pool.level(), w.format());
    let cut = RowCut::of(m, &kernel, cols);
    let mut scratch = SCRATCH.take();
    scratch.resize(scratch.len().max(cut.num_tiles() * cut.tile_words), 0);
    let tiles = &mut scratch[..cut.num_tiles() * cut.tile_words];
    lay_out(pool, x, w, (&kernel, &cut), tiles);
    multiply(pool, (&kernel, &cut), tiles, w, &Target { bias, y: Shared::new(y) });
    SCRATCH.set(scratch);
    Ok(())
}

/// How `m` rows are cut into tiles of nearly equal size.
struct RowCut {
    m: usize,
    rows_per_tile: usize,
    /// Words of the largest tile: where the next one starts.
    tile_words: usize,
}

impl RowCut {
    fn of(m: usize, kernel: &Kernel, cols: usize) -> Self {
        let num_tiles = m.div_ceil(kernel.max_rows());
        let rows_per_tile = m.div_ceil(num_tiles);
        let tile_words = kernel.row_count_for(rows_per_tile) * kernel.packing.words_per_row(cols);
        Self { m, rows_per_tile, tile_words }
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

fn lay_out(pool: &Pool, x: &[f32], w: &PackedMatrix, (kernel, cut): (&Kernel, &RowCut), tiles: &mut [u32]) {
    let cols = w.cols();
    let start = Shared::new(tiles);
    let work = |index: usize| {
        let (first, rows) = cut.tile(index);
        let m = kernel.row_count_for(rows);
        let x = &x[first * cols..(first + rows) * cols];
        let words = m * kernel.packing.words_per_row(cols);
        // SAFETY: tile `index` starts at `index * tile_words`, has at most `tile_words` words, and is one part's alone.
        let tile = unsafe { start.piece(index * cut.tile_words, words) };
        let input = ActivationRows { x, cols, m, packing: kernel.packing, format: w.format() };
        pack_activations(pool.level(), &input, tile);
    };
    if x.len() < SHARE_ACTIVATIONS_FROM {
        (0..cut.num_tiles()).for_each(work);
    } else {
        pool.run(cut.num_tiles(), &work);
    }
}

struct Target<'a> {
    bias: Option<&'a [f32]>,
    y: Shared<f32>,
}

fn multiply(pool: &Pool, (kernel, cut): (&Kernel, &RowCut), tiles: &[u32], w: &PackedMatrix, target: &Target) {
    let height = panel_rows(w.format());
    let num_panels = w.rows().div_ceil(height);
    let span = inputs_at_a_time(w, cut.num_tiles());
    let panels_per_part = {
        let balanced = num_panels.div_ceil(pool.threads() * PARTS_A_THREAD);
        let bytes = w.panel_bytes() / w.cols().div_ceil(span);
        let cached = if cut.num_tiles() > 1 { (CACHED_WEIGHT_BYTES / bytes.max(1)).max(1) } else { usize::MAX };
        // Even, so that two panels can be taken at once.
        balanced.min(cached).next_multiple_of(2)
    };
    pool.run(num_panels.div_ceil(panels_per_part), &|part| {
        let panels = part * panels_per_part..((part + 1) * panels_per_part).min(num_panels);
        for from in (0..w.cols()).step_by(span) {
            let to = (from + span).min(w.cols());
            for tile in 0..cut.num_tiles() {
                let (first, rows) = cut.tile(tile);
                let m = kernel.row_count_for(rows);
                let at_once = if m <= kernel.two_panels_up_to { 2 } else { 1 };
                for panel in panels.clone().step_by(at_once) {
                    let input = TileInput {
                        format: w.format(),
                        panel: w.panels()[panel * w.panel_bytes()..].as_ptr(),
                        panel_bytes: w.panel_bytes(),
                        panels: at_once.min(panels.end - panel),
                        x: tiles[tile * cut.tile_words..].as_ptr(),
                        m,
                        cols: w.cols(),
                        from,
                        to,
                    };
                    let output = panel * height;
                    let is_last = to == w.cols();
                    let out = Out {
                        y: target.y.at(first * w.rows() + output),
                        stride: w.rows(),
                        rows,
                        lanes: (input.panels * height).min(w.rows() - output),
                        bias: target.bias.filter(|_| is_last).map_or(std::ptr::null(), |b| b[output..].as_ptr()),
                        resumes: from > 0,
                    };
                    // SAFETY: the pool's level exists here; panel, tile and bias are whole; `y` holds `m` rows, of which
                    // this part alone writes the columns of its panels, inside `lanes`.
                    unsafe { (kernel.tile)(&input, &out) };
                }
            }
        }
    });
}

/// How many inputs to add up before going on to the next tile: all, unless a dense panel would fall out of the cache.
fn inputs_at_a_time(w: &PackedMatrix, num_tiles: usize) -> usize {
    if num_tiles == 1 || w.format().is_quantised() {
        return w.cols();
    }
    let bytes_per_input = w.panel_bytes() / w.cols();
    (CACHED_PANEL_BYTES / bytes_per_input.max(1)).next_multiple_of(2).min(w.cols())
}
