//! Products by vectors: the kernels of [`crate::cpu::Kernel`] add a few rows to a panel's outputs.

use super::product::{CACHED_WEIGHT_BYTES, Product, Target};
use super::rows::{RowCut, Tiles};
use crate::cpu::{Ahead, Kernel, Out, TileInput};
use crate::panels::panel_rows;
use crate::quant::RUN;
use crate::{PackedMatrix, Pool};
use std::ops::Range;

/// Parts a thread gets, so that a thread that starts late or is held up leaves the others something to take.
const PARTS_A_THREAD: usize = 16;
/// Up to this many tiles of rows the next weights are fetched meanwhile.
const FEW_TILES: usize = 4;
/// Bytes of one dense panel to be used, at most, before going on to the next tile of rows.
const CACHED_PANEL_BYTES: usize = 128 << 10;

/// Multiplies laid-out `tiles` of rows with all panels of matrices of one format and width: in one go, so that threads wait
/// for each other once.
pub(super) fn multiply(pool: &Pool, (kernel, cut): (&Kernel, &RowCut), tiles: &Tiles, products: &mut [Product<'_>]) {
    let w = products[0].weight;
    let panels_of = |product: &Product| product.weight.rows().div_ceil(panel_rows(w.format()));
    let span = inputs_at_a_time(w, cut.num_tiles());
    let all: usize = products.iter().map(panels_of).sum();
    let balanced = all.div_ceil(pool.threads() * PARTS_A_THREAD);
    let panels_per_group = panels_per_group(tiles, cut, w, (span, balanced));
    let panels_per_part = balanced.next_multiple_of(panels_per_group);
    let mut num_parts = 0;
    let passes: Vec<Pass> = (products.iter_mut())
        .map(|product| {
            let first_part = num_parts;
            num_parts += panels_of(product).div_ceil(panels_per_part);
            Pass { kernel, cut, tiles, w: product.weight, span, first_part, target: product.target() }
        })
        .collect();
    pool.run(num_parts, &|part| {
        let index = passes.partition_point(|pass| pass.first_part <= part) - 1;
        let (pass, part) = (&passes[index], part - passes[index].first_part);
        let num_panels = pass.w.rows().div_ceil(panel_rows(w.format()));
        let end = ((part + 1) * panels_per_part).min(num_panels);
        for first in (part * panels_per_part..end).step_by(panels_per_group) {
            let group = first..(first + panels_per_group).min(end);
            // Threads take parts in turn, so this is where this one is likely to go on.
            let next = if group.end < end { group.end } else { (part + pool.threads()) * panels_per_part };
            pass.multiply(group, next..(next + panels_per_group).min(num_panels));
        }
    });
}

/// Whether arithmetic and memory take about as long, so that they had better work at the same time: with one tile of rows
/// weights are used as they come, with many the wait for them hardly counts.
fn fetches_ahead(cut: &RowCut) -> bool {
    (2..=FEW_TILES).contains(&cut.num_tiles())
}

/// Panels to pass all rows over before going on to the next; `balanced`: what gives every part as much.
fn panels_per_group(tiles: &Tiles, cut: &RowCut, w: &PackedMatrix, (span, balanced): (usize, usize)) -> usize {
    if fetches_ahead(cut) && !w.format().is_quantised() {
        // Dense panels are large, and the first of all, which nobody fetched ahead, had better be over soon.
        return 1;
    }
    let panels = if cut.num_tiles() == 1 {
        balanced
    } else {
        let bytes = w.panel_bytes() / w.cols().div_ceil(span);
        balanced.min((group_bytes(tiles, cut) / bytes.max(1)).max(1))
    };
    // Even, so that two panels can be taken at once.
    panels.max(1).next_multiple_of(2)
}

/// Bytes of weights to pass all rows over before going on to the next.
fn group_bytes(tiles: &Tiles, cut: &RowCut) -> usize {
    if !fetches_ahead(cut) {
        return CACHED_WEIGHT_BYTES;
    }
    // Weights come from the second-level cache once a tile of rows, rows once a group: small when the rows are few, so that
    // the first group, which nobody fetched ahead, is soon over. Half, because the next group arrives meanwhile.
    tiles.bytes(cut.num_tiles()).min(CACHED_WEIGHT_BYTES / 2)
}

/// What all parts of one matrix's product read.
struct Pass<'a> {
    kernel: &'a Kernel,
    cut: &'a RowCut,
    tiles: &'a Tiles<'a>,
    w: &'a PackedMatrix,
    span: usize,
    /// The parts before this one's, which are other matrices'.
    first_part: usize,
    target: Target<'a>,
}

impl Pass<'_> {
    /// Multiplies all rows with the panels of `group`, and fetches those of `next`.
    fn multiply(&self, group: Range<usize>, next: Range<usize>) {
        let (w, cut, kernel) = (self.w, self.cut, self.kernel);
        let height = panel_rows(w.format());
        for from in (0..w.cols()).step_by(self.span) {
            let to = (from + self.span).min(w.cols());
            let coming = self.coming(to, &group, &next);
            let calls = cut.num_tiles() * group.len();
            for tile in 0..cut.num_tiles() {
                let (first, rows) = cut.tile(tile);
                let m = kernel.row_count_for(rows);
                let at_once = kernel.panels_at_once(m).min(group.len());
                for panel in group.clone().step_by(at_once) {
                    let ahead = if fetches_ahead(cut) {
                        let runs = (to - from).div_ceil(RUN);
                        let call = tile * group.len() + panel - group.start;
                        Ahead::share(w.panels(), &coming, call * runs, calls * runs)
                    } else {
                        Ahead::NONE
                    };
                    let input = TileInput {
                        format: w.format(),
                        panel: w.panels()[panel * w.panel_bytes()..].as_ptr(),
                        panel_bytes: w.panel_bytes(),
                        panels: at_once.min(group.end - panel),
                        x: self.tiles.tile(tile),
                        m,
                        cols: w.cols(),
                        from,
                        to,
                        ahead,
                    };
                    let output = panel * height;
                    let is_last = to == w.cols();
                    let bias = self.target.bias.filter(|_| is_last);
                    let out = Out {
                        y: self.target.y.at(first * w.rows() + output),
                        stride: w.rows(),
                        rows,
                        lanes: (input.panels * height).min(w.rows() - output),
                        bias: bias.map_or(std::ptr::null(), |b| b[output..].as_ptr()),
                        resumes: from > 0,
                    };
                    // SAFETY: the pool's level exists here; panel, tile and bias are whole; `y` holds `m` rows, of which
                    // this part alone writes the columns of its panels, inside `lanes`.
                    unsafe { (kernel.tile)(&input, &out) };
                }
            }
        }
    }

    /// The bytes of weights that follow once all rows have passed over the inputs of `group` up to `to`.
    fn coming(&self, to: usize, group: &Range<usize>, next: &Range<usize>) -> Range<usize> {
        let panel_bytes = self.w.panel_bytes();
        let bytes_per_span = panel_bytes / self.w.cols().div_ceil(self.span);
        // Only groups of one panel stop on their way, so what follows there follows in memory, too.
        let (at, panels) = if to < self.w.cols() {
            (group.start * panel_bytes + panel_bytes / self.w.cols() * to, group.len())
        } else {
            (next.start * panel_bytes, next.len())
        };
        at..at + panels * bytes_per_span
    }
}

/// How many inputs to add up before going on to the next tile: all, unless a dense panel would fall out of the cache.
fn inputs_at_a_time(w: &PackedMatrix, num_tiles: usize) -> usize {
    if num_tiles == 1 || w.format().is_quantised() {
        return w.cols();
    }
    // Even pieces: while one is multiplied, the next is fetched.
    w.cols().div_ceil(w.panel_bytes().div_ceil(CACHED_PANEL_BYTES)).next_multiple_of(RUN).min(w.cols())
}
