//! How packed weights lie in memory: panels of neighbouring outputs, inputs in ascending order inside.
//!
//! A kernel reads a panel from front to back once, and finds the weights of all its outputs for one input side by side.
//!
//! * Dense: 32 outputs. f32 and f16: `[cols][32]`. bf16: `[cols / 2][32][2]`, the odd last input padded with zero.
//! * Quantised: 16 outputs. First the codes of every run (32 inputs), then the scales of every block.
//!   Codes `[8][16][4]`: group `g` holds inputs `4g..4g + 4` of each output. With four bits, the low halves of
//!   `[4][16][4]` bytes are groups 0–3, the high halves groups 4–7. `Q5K` adds `[16][4]` bytes whose bit `g` is the fifth
//!   bit in group `g`; `Q6K` adds `[2][16][4]` bytes whose bits `2s..2s + 2` of part `p` are the top of group `4p + s`.
//!   Scales: `Q8_0`, `Q4_0`: `[16]` f16 a run. `Q4K`, `Q5K`: `[16]` f16 scale, `[16]` f16 minimum, `[8][16]` bytes of
//!   scales, `[2][16][4]` bytes of minima a block: part `p` has those of runs `4p..4p + 4`, as codes lie. `Q6K`: `[16]` f16
//!   scale, `[8][2][16]` signed bytes a block.

use crate::WeightFormat;
use crate::quant::{RUN, RawCodes};
use half::f16;

/// Outputs of a dense panel.
pub(crate) const DENSE_ROWS: usize = 32;
/// Outputs of a quantised panel.
pub(crate) const QUANT_ROWS: usize = 16;
/// Where a `Q4K` or `Q5K` block has its byte scales, after the f16 scales and minima.
pub(crate) const K_SCALES_AT: usize = 64;
/// Where it has its byte minima.
pub(crate) const K_MINS_AT: usize = 192;
/// Where a `Q6K` block has its byte scales.
pub(crate) const Q6K_SCALES_AT: usize = 32;

/// Sizes inside a quantised panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct QuantLayout {
    /// Code bytes of a run.
    pub(crate) code_bytes: usize,
    /// Runs sharing one block of scales.
    pub(crate) runs_per_block: usize,
    /// Bytes of such a block of scales.
    pub(crate) scale_bytes: usize,
}

/// The layout of a quantised format.
pub(crate) const fn quant_layout(format: WeightFormat) -> QuantLayout {
    let (code_bytes, runs_per_block, scale_bytes) = match format {
        WeightFormat::Q8_0 => (512, 1, 32),
        WeightFormat::Q4_0 => (256, 1, 32),
        WeightFormat::Q4K => (256, 8, 320),
        WeightFormat::Q5K => (320, 8, 320),
        WeightFormat::Q6K => (384, 8, 288),
        WeightFormat::F32 | WeightFormat::F16 | WeightFormat::Bf16 => panic!("dense formats have no blocks"),
    };
    QuantLayout { code_bytes, runs_per_block, scale_bytes }
}

/// Where a `Q4K` or `Q5K` block has the byte minimum of run `sub` of lane `lane`.
pub(crate) fn k_min_at(sub: usize, lane: usize) -> usize {
    K_MINS_AT + (sub / 4 * QUANT_ROWS + lane) * 4 + sub % 4
}

/// Outputs of one panel.
pub(crate) fn panel_rows(format: WeightFormat) -> usize {
    if format.is_quantised() { QUANT_ROWS } else { DENSE_ROWS }
}

/// Bytes of one panel; `None` when the size overflows.
pub(crate) fn panel_bytes(format: WeightFormat, cols: usize) -> Option<usize> {
    match format {
        WeightFormat::F32 => cols.checked_mul(4 * DENSE_ROWS),
        WeightFormat::F16 => cols.checked_mul(2 * DENSE_ROWS),
        WeightFormat::Bf16 => cols.checked_next_multiple_of(2)?.checked_mul(2 * DENSE_ROWS),
        _ => {
            let layout = quant_layout(format);
            let runs = cols / RUN;
            let scales = (runs / layout.runs_per_block).checked_mul(layout.scale_bytes)?;
            // Whole cache lines, so that every panel's codes start on one.
            runs.checked_mul(layout.code_bytes)?.checked_add(scales)?.checked_next_multiple_of(64)
        }
    }
}

/// Reads run `run` of lane `lane` back from a quantised panel with `runs` runs.
pub(crate) fn read_run(format: WeightFormat, panel: &[u8], lane: usize, run: usize, runs: usize) -> RawCodes {
    let layout = quant_layout(format);
    let (codes, scales) = panel.split_at(runs * layout.code_bytes);
    let codes = &codes[run * layout.code_bytes..][..layout.code_bytes];
    let q = std::array::from_fn(|i| {
        let (group, cell) = (i / 4, lane * 4 + i % 4);
        let low = match format {
            WeightFormat::Q8_0 => return codes[group * 64 + cell],
            _ => (codes[group % 4 * 64 + cell] >> (group / 4 * 4)) & 15,
        };
        match format {
            WeightFormat::Q5K => low | ((codes[256 + cell] >> group) & 1) << 4,
            WeightFormat::Q6K => low | ((codes[256 + group / 4 * 64 + cell] >> (group % 4 * 2)) & 3) << 4,
            _ => low,
        }
    });
    let block = &scales[run / layout.runs_per_block * layout.scale_bytes..][..layout.scale_bytes];
    let sub = run % layout.runs_per_block;
    let half_at = |at: usize| f16::from_le_bytes([block[at], block[at + 1]]);
    let mut raw = RawCodes { q, d: half_at(2 * lane), d_min: f16::ZERO, scale: [1, 1], min: 0 };
    match format {
        WeightFormat::Q4K | WeightFormat::Q5K => {
            raw.d_min = half_at(32 + 2 * lane);
            raw.scale = [block[K_SCALES_AT + sub * 16 + lane]; 2];
            raw.min = block[k_min_at(sub, lane)];
        }
        WeightFormat::Q6K => {
            raw.scale = std::array::from_fn(|half| block[Q6K_SCALES_AT + sub * 32 + half * 16 + lane]);
        }
        _ => {}
    }
    raw
}

/// Reads input `input` of lane `lane` back from a dense panel, as f32.
pub(crate) fn read_dense(format: WeightFormat, panel: &[u8], lane: usize, input: usize) -> f32 {
    match format {
        WeightFormat::F32 => f32::from_le_bytes(panel.as_chunks::<4>().0[input * DENSE_ROWS + lane]),
        WeightFormat::F16 => f16::from_le_bytes(panel.as_chunks::<2>().0[input * DENSE_ROWS + lane]).to_f32(),
        _ => {
            let cell = (input / 2 * DENSE_ROWS + lane) * 2 + input % 2;
            half::bf16::from_le_bytes(panel.as_chunks::<2>().0[cell]).to_f32()
        }
    }
}
