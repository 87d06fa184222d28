//! Products by vectors: the kernels of [`crate::cpu::Kernel`] add a few rows to a panel's outputs.

use super::product::{CACHED_WEIGHT_BYTES, PARTS_A_THREAD, Target};
use super::rows::{RowCut, Tiles};
use crate::cpu::{Kernel, Out, TileInput};
use crate::panels::panel_rows;
use crate::{PackedMatrix, Pool};

/// Bytes of one dense panel to be used before going on to the next tile of rows.
const CACHED_PANEL_BYTES: usize = 128 << 10;

/// Multiplies laid-out `tiles` of rows with all panels.
pub(super) fn multiply(
    pool: &Pool,
    (kernel, cut): (&Kernel, &RowCut),
    tiles: &Tiles,
    w: &PackedMatrix,
    target: &Target,
) {
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
                        x: tiles.tile(tile),
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
