//! Products with bf16 weights by tile registers: 32 rows times 32 outputs at a time.
//!
//! A part takes some panels. Sums lie in a buffer of its own until all inputs are added: a tile of rows and a panel, some
//! inputs of each, stay in the first-level cache, the panels and sums of the part in the second.

use super::finish::Finished;
use super::product::{PARTS_A_THREAD, Target};
use super::rows::{RowCut, Tiles};
use crate::cpu::amx::{PAIR_BYTES, STRETCH, Sums, TileProduct, multiply as multiply_tiles, release, shape};
use crate::panels::DENSE_ROWS;
use crate::share::{Line, with_scratch};
use crate::{PackedMatrix, Pool};
use std::cell::Cell;
use std::ops::Range;

/// Rows of the largest tile of rows.
pub(super) const MAX_ROWS: usize = 32;
/// Inputs added before going on to the next tile of rows.
const SPAN: usize = 256;
/// Sums of a tile of rows and a panel.
const TILE_SUMS: usize = size_of::<Sums>() / size_of::<f32>();
/// Panels of a part when many tiles of rows pass over them.
const PANELS_AT_ONCE: usize = 8;
/// Tiles of rows that pass over a part's panels before its sums leave: 512 rows.
const TILES_AT_ONCE: usize = 16;

thread_local! {
    /// Sums of the part a thread works on.
    static SUMS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// What the parts of a product read.
struct Product<'a> {
    cut: &'a RowCut,
    tiles: &'a Tiles<'a>,
    w: &'a PackedMatrix,
    span: usize,
}

/// Multiplies laid-out `tiles` of rows with all panels.
pub(super) fn multiply(pool: &Pool, cut: &RowCut, tiles: &Tiles, w: &PackedMatrix, target: &Target) {
    let num_tiles = cut.num_tiles();
    // One tile of rows takes weights as they come from memory.
    let span = if num_tiles == 1 { w.cols() } else { SPAN.min(w.cols()) };
    let product = Product { cut, tiles, w, span };
    let num_panels = w.rows().div_ceil(DENSE_ROWS);
    let at_once = if num_tiles == 1 { 1 } else { PANELS_AT_ONCE };
    let per_part = num_panels.div_ceil(pool.threads() * PARTS_A_THREAD);
    pool.run(num_panels.div_ceil(per_part), &|part| {
        let end = ((part + 1) * per_part).min(num_panels);
        // SAFETY: the pool's level has tiles.
        unsafe { shape(cut.rows_per_tile) };
        for first in (part * per_part..end).step_by(at_once) {
            let panels = first..(first + at_once).min(end);
            for first_tile in (0..num_tiles).step_by(TILES_AT_ONCE) {
                let tiles = first_tile..(first_tile + TILES_AT_ONCE).min(num_tiles);
                product.compute(&panels, &tiles, |sums| {
                    let finished = Finished {
                        sums,
                        tile_sums: TILE_SUMS,
                        panel_outputs: DENSE_ROWS,
                        panels: &panels,
                        tiles: &tiles,
                        cut,
                        rows: w.rows(),
                    };
                    finished.write(pool.level(), target);
                });
            }
        }
        // SAFETY: as above.
        unsafe { release() };
    });
}

impl Product<'_> {
    /// Adds all inputs, then hands the sums out: `[panel][tile]`, [`TILE_SUMS`] each.
    fn compute(&self, panels: &Range<usize>, tiles: &Range<usize>, done: impl FnOnce(&[f32])) {
        with_scratch(&SUMS, panels.len() * tiles.len() * TILE_SUMS, |sums: &mut [f32]| {
            for from in (0..self.w.cols()).step_by(self.span) {
                let inputs = from..(from + self.span).min(self.w.cols());
                let panel = |index: usize| {
                    let at = (panels.start + index) * self.w.panel_bytes() + from / 2 * PAIR_BYTES;
                    self.w.panels()[at..].as_ptr()
                };
                for (t, tile) in tiles.clone().enumerate() {
                    for p in 0..panels.len() {
                        let product = TileProduct {
                            w: panel(p),
                            x: self.tiles.tile(tile).wrapping_add(from / 2 * self.cut.rows_per_tile),
                            m: self.cut.rows_per_tile,
                            inputs: inputs.len(),
                            resumes: from > 0,
                        };
                        let sums = &mut sums[(p * tiles.len() + t) * TILE_SUMS..][..TILE_SUMS];
                        // SAFETY: tiles are shaped for this many rows; panel and rows hold these inputs; the scratch lies on
                        // cache lines, of which a tile's sums are whole ones.
                        unsafe { multiply_tiles(&product, sums.as_mut_ptr().cast()) };
                    }
                }
            }
            done(sums);
        });
    }
}

const _: () = assert!(SPAN.is_multiple_of(STRETCH), "spans are whole stretches");
