//! Activation rows, cut into tiles and laid out for a kernel.

use crate::cpu::{ActivationRows, XPacking, pack_activations};
use crate::share::{Line, Shared, with_scratch};
use crate::{PackedMatrix, Pool};
use std::cell::Cell;

/// Fewer activations than this are laid out by the caller alone.
const SHARE_ACTIVATIONS_FROM: usize = 16 << 10;

thread_local! {
    /// Laid-out activations, kept between calls so that a step allocates nothing.
    static LAID_OUT: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// How `m` rows are cut into tiles of nearly equal size.
pub(super) struct RowCut {
    m: usize,
    pub(super) rows_per_tile: usize,
}

impl RowCut {
    pub(super) fn of(m: usize, max_rows: usize) -> Self {
        Self { m, rows_per_tile: m.div_ceil(m.div_ceil(max_rows)) }
    }

    /// The same with tiles of the size `row_count` says, which leaves a smaller last one instead of filling up all.
    pub(super) fn filled(m: usize, max_rows: usize, row_count: impl Fn(usize) -> usize) -> Self {
        Self { m, rows_per_tile: row_count(Self::of(m, max_rows).rows_per_tile) }
    }

    pub(super) fn num_tiles(&self) -> usize {
        self.m.div_ceil(self.rows_per_tile)
    }

    /// First row and number of rows.
    pub(super) fn tile(&self, index: usize) -> (usize, usize) {
        let first = index * self.rows_per_tile;
        (first, self.rows_per_tile.min(self.m - first))
    }
}

/// How a kernel wants its rows.
pub(super) struct Layout<'a> {
    pub(super) packing: XPacking,
    /// Rows a tile is filled up to.
    pub(super) row_count: &'a (dyn Fn(usize) -> usize + Sync),
}

/// Rows laid out for a kernel, cut into tiles.
pub(super) struct Tiles<'a> {
    words: &'a [u32],
    /// Words of the largest tile: where the next one starts.
    tile_words: usize,
}

impl Tiles<'_> {
    /// Bytes of `num_tiles` tiles.
    pub(super) fn bytes(&self, num_tiles: usize) -> usize {
        num_tiles * self.tile_words * size_of::<u32>()
    }

    pub(super) fn tile(&self, index: usize) -> *const u32 {
        self.words[index * self.tile_words..].as_ptr()
    }
}

/// Calls `work` with the rows of `x` laid out.
pub(super) fn laid_out(
    pool: &Pool,
    x: &[f32],
    w: &PackedMatrix,
    (layout, cut): (&Layout, &RowCut),
    work: impl FnOnce(&Tiles),
) {
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
