//! Sums of tile registers, written out together when all inputs are added: outputs of neighbouring rows lie far apart.

use super::product::Target;
use super::rows::RowCut;
use crate::Level;
use crate::cpu::by_level;
use std::ops::Range;

/// Rows and outputs of a tile of sums.
pub(super) const TILE: usize = 16;

/// Sums to be written out, as tile registers leave them.
pub(super) struct Finished<'a> {
    /// `[panel][tile of rows]`, in each `[half of the rows][half of the outputs][row]` lines of 16 outputs. A panel of 16
    /// outputs is one half.
    pub(super) sums: &'a [f32],
    /// Floats from one tile of rows to the next.
    pub(super) tile_sums: usize,
    /// Outputs of a panel, 16 or 32.
    pub(super) panel_outputs: usize,
    pub(super) panels: &'a Range<usize>,
    pub(super) tiles: &'a Range<usize>,
    pub(super) cut: &'a RowCut,
    /// Outputs of the matrix.
    pub(super) rows: usize,
}

impl Finished<'_> {
    /// Writes them, with the bias added.
    pub(super) fn write(&self, level: Level, target: &Target) {
        write(level, self, target);
    }
}

by_level! {
    fn write(finished: &Finished<'_>, target: &Target<'_>) = write_rows
}

#[inline(always)]
fn write_rows(finished: &Finished, target: &Target) {
    let (lines, _) = finished.sums.as_chunks::<TILE>();
    let halves = finished.panel_outputs / TILE;
    for (t, tile) in finished.tiles.clone().enumerate() {
        let (first, rows) = finished.cut.tile(tile);
        for row in 0..rows {
            for (p, panel) in finished.panels.clone().enumerate() {
                let start = (p * finished.tiles.len() + t) * finished.tile_sums / TILE;
                for half in 0..halves {
                    let output = panel * finished.panel_outputs + half * TILE;
                    if output >= finished.rows {
                        break;
                    }
                    let sums = &lines[start + (row / TILE * halves + half) * TILE + row % TILE];
                    let lanes = TILE.min(finished.rows - output);
                    // SAFETY: `y` holds a row of outputs for every row; this part alone writes the columns of its panels.
                    let y = unsafe { target.y.piece((first + row) * finished.rows + output, lanes) };
                    if let Ok(y) = <&mut [f32; TILE]>::try_from(&mut *y) {
                        *y = *sums;
                    } else {
                        y.copy_from_slice(&sums[..lanes]);
                    }
                    if let Some(bias) = target.bias {
                        for (y, bias) in y.iter_mut().zip(&bias[output..]) {
                            *y += bias;
                        }
                    }
                }
            }
        }
    }
}
