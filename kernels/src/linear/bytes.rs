//! Products with quantised weights by tile registers: 16 rows times 16 outputs at a time.
//!
//! A part takes some panels. A piece of a panel's codes becomes signed bytes, over which all tiles of rows pass: both stay in
//! the caches next to the processor. Sums lie in a buffer of the part's own until all inputs are added.

use super::finish::{Finished, TILE};
use super::product::{PARTS_A_THREAD, Target};
use super::rows::{RowCut, Tiles};
use crate::cpu::amx::{BYTE_ROW_COUNTS, ByteProduct, ROW_RUN_WORDS, multiply_bytes, release, shape_for_bytes};
use crate::cpu::avx512::{SIGNED_RUN_BYTES, sign_codes};
use crate::cpu::{Ahead, Out};
use crate::panels::{QUANT_ROWS, QuantLayout, quant_layout};
use crate::quant::{RUN, RUNS_PER_BLOCK};
use crate::share::{Line, with_scratch};
use crate::{PackedMatrix, Pool};
use std::cell::Cell;
use std::ops::Range;

/// With fewer rows vectors are faster.
pub(super) const MIN_ROWS: usize = 17;
/// Runs added up before going on to the next panel: 16 KiB of signed codes.
const RUNS_AT_ONCE: usize = 32;
/// Panels of a part whose sums leave together.
const PANELS_AT_ONCE: usize = 8;
/// Tiles of rows that pass over a part's panels before its sums leave: 512 rows.
const TILES_AT_ONCE: usize = 32;

thread_local! {
    /// Signed codes that a thread works on.
    static CODES: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
    /// Sums of the part a thread works on.
    static SUMS: Cell<Vec<Line>> = const { Cell::new(Vec::new()) };
}

/// Cuts `m` rows into tiles that are all as high as the first, so that the registers keep one shape.
pub(super) fn cut_rows(m: usize) -> RowCut {
    let (counts, max) = (BYTE_ROW_COUNTS, BYTE_ROW_COUNTS[BYTE_ROW_COUNTS.len() - 1]);
    RowCut::filled(m, max, |rows| *counts.iter().find(|&&m| m >= rows).expect("no tile has more than the largest"))
}

/// Multiplies laid-out `tiles` of rows with all panels.
pub(super) fn multiply(pool: &Pool, cut: &RowCut, tiles: &Tiles, w: &PackedMatrix, target: &Target) {
    let product = Product { cut, tiles, w, layout: quant_layout(w.format()), runs: w.cols() / RUN };
    let num_panels = w.rows().div_ceil(QUANT_ROWS);
    let per_part = num_panels.div_ceil(pool.threads() * PARTS_A_THREAD);
    pool.run(num_panels.div_ceil(per_part), &|part| {
        let end = ((part + 1) * per_part).min(num_panels);
        // SAFETY: the pool's level has tiles.
        unsafe { shape_for_bytes(w.format(), cut.rows_per_tile) };
        for first in (part * per_part..end).step_by(PANELS_AT_ONCE) {
            let panels = first..(first + PANELS_AT_ONCE).min(end);
            // Threads take parts in turn, so this is where this one is likely to go on.
            let next = if panels.end < end { panels.end } else { (part + pool.threads()) * per_part };
            for first_tile in (0..cut.num_tiles()).step_by(TILES_AT_ONCE) {
                let tiles = first_tile..(first_tile + TILES_AT_ONCE).min(cut.num_tiles());
                product.compute(&panels, next, &tiles, |sums| {
                    let finished = Finished {
                        sums,
                        tile_sums: cut.rows_per_tile * QUANT_ROWS,
                        panel_outputs: QUANT_ROWS,
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

/// What the parts of a product read.
struct Product<'a> {
    cut: &'a RowCut,
    tiles: &'a Tiles<'a>,
    w: &'a PackedMatrix,
    layout: QuantLayout,
    runs: usize,
}

impl Product<'_> {
    /// Adds all inputs, then hands the sums out: `[panel][tile][row][output]`. Fetches the beginning of panel `next`.
    fn compute(&self, panels: &Range<usize>, next: usize, tiles: &Range<usize>, done: impl FnOnce(&[f32])) {
        let tile_sums = self.cut.rows_per_tile * QUANT_ROWS;
        with_scratch(&SUMS, panels.len() * tiles.len() * tile_sums, |sums: &mut [f32]| {
            with_scratch(&CODES, RUNS_AT_ONCE * SIGNED_RUN_BYTES, |codes: &mut [u8]| {
                for from in (0..self.runs).step_by(RUNS_AT_ONCE) {
                    let piece = from..(from + RUNS_AT_ONCE).min(self.runs);
                    for (panel, sums) in panels.clone().zip(sums.chunks_exact_mut(tiles.len() * tile_sums)) {
                        let coming = if panel + 1 < panels.end {
                            self.codes_at(panel + 1, &piece)
                        } else if piece.end < self.runs {
                            self.codes_at(panels.start, &(piece.end..(piece.end + RUNS_AT_ONCE).min(self.runs)))
                        } else {
                            self.codes_at(next, &(0..RUNS_AT_ONCE.min(self.runs)))
                        };
                        self.add(panel, &piece, tiles, (codes, sums), &coming);
                    }
                }
            });
            done(sums);
        });
    }

    /// Adds the products of some runs of a panel with `tiles` of rows, and fetches what is `coming`.
    fn add(
        &self,
        panel: usize,
        runs: &Range<usize>,
        tiles: &Range<usize>,
        (codes, sums): (&mut [u8], &mut [f32]),
        coming: &Range<usize>,
    ) {
        let w = self.w;
        let start = w.panels()[self.codes_at(panel, runs)].as_ptr();
        // SAFETY: the level of tiles has AVX-512; the panel has these runs, `codes` has room for them.
        unsafe { sign_codes(w.format(), start, runs.len(), codes.as_mut_ptr()) };
        let scales = runs.start / self.layout.runs_per_block * self.layout.scale_bytes;
        let scales = &w.panels()[panel * w.panel_bytes() + self.runs * self.layout.code_bytes + scales..];
        let rows = self.cut.rows_per_tile;
        for ((call, tile), sums) in tiles.clone().enumerate().zip(sums.chunks_exact_mut(rows * QUANT_ROWS)) {
            let product = ByteProduct {
                format: w.format(),
                codes: codes.as_ptr(),
                scales: scales.as_ptr(),
                x: self.tiles.tile(tile).wrapping_add(runs.start * ROW_RUN_WORDS * rows),
                m: rows,
                runs: runs.len(),
                ahead: Ahead::share(w.panels(), coming, call * runs.len(), tiles.len() * runs.len()),
            };
            let (y, bias) = (sums.as_mut_ptr(), std::ptr::null());
            let out = Out { y, stride: QUANT_ROWS, rows, lanes: QUANT_ROWS, bias, resumes: runs.start > 0 };
            // SAFETY: tiles are shaped for as many rows; codes, scales and rows have these runs; `sums` are whole rows.
            unsafe { multiply_bytes(&product, &out) };
        }
    }

    /// Where the codes of some runs of a panel lie; empty behind the last panel.
    fn codes_at(&self, panel: usize, runs: &Range<usize>) -> Range<usize> {
        let at = panel * self.w.panel_bytes();
        if at >= self.w.panels().len() {
            return 0..0;
        }
        at + runs.start * self.layout.code_bytes..at + runs.end * self.layout.code_bytes
    }
}

const _: () = assert!(QUANT_ROWS == TILE, "a panel is a tile wide");
const _: () = assert!(RUNS_AT_ONCE.is_multiple_of(RUNS_PER_BLOCK), "pieces are whole blocks");
