//! Brings the rows of a weight file into panels, at about the speed of memory.
//!
//! Codes move as words of four, and never become single numbers on the way. [`crate::quant`] reads the same blocks one
//! code at a time; tests hold the two against each other.

use crate::WeightFormat;
use crate::panels::{DENSE_ROWS, K_SCALES_AT, Q6K_SCALES_AT, QUANT_ROWS, k_min_at, quant_layout};
use crate::quant::{RUN, k_scale_min};

/// The low half of every byte of a word.
const LOW: u32 = 0x0f0f_0f0f;

/// Writes up to a panel's number of rows, each with its bytes as on disk, into a zeroed panel.
pub(crate) fn write_panel(format: WeightFormat, panel: &mut [u8], rows: &[&[u8]]) {
    match format {
        WeightFormat::F32 => interleave::<4>(panel, rows),
        WeightFormat::F16 => interleave::<2>(panel, rows),
        WeightFormat::Bf16 => {
            // Pairs of inputs move together; an odd last one is followed by the zero already there.
            interleave::<4>(panel, rows);
            for (lane, row) in rows.iter().enumerate() {
                if let [a, b] = *row.as_chunks::<4>().1 {
                    let at = (row.len() / 4 * DENSE_ROWS + lane) * 4;
                    panel[at..at + 2].copy_from_slice(&[a, b]);
                }
            }
        }
        WeightFormat::Q8_0 => write_blocks(format, panel, rows, |block: &[u8; 34], run, lane| {
            let words: [u32; 8] = words(&block[2..]);
            run.put(lane, words.map(|word| word ^ 0x8080_8080));
            run.scales[2 * lane..2 * lane + 2].copy_from_slice(&block[..2]);
        }),
        WeightFormat::Q4_0 => write_blocks(format, panel, rows, |block: &[u8; 18], run, lane| {
            // Both sides keep codes 16 to 31 in the high halves.
            run.put(lane, words::<4>(&block[2..]));
            run.scales[2 * lane..2 * lane + 2].copy_from_slice(&block[..2]);
        }),
        WeightFormat::Q4K => write_blocks(format, panel, rows, |block: &[u8; 144], run, lane| {
            run.put(lane, k_low_halves(&block[16..], run.sub));
            run.put_k_scales(lane, &block[..16]);
        }),
        WeightFormat::Q5K => write_blocks(format, panel, rows, |block: &[u8; 176], run, lane| {
            let low = k_low_halves(&block[48..], run.sub);
            let fifth: [u32; 8] = words(&block[16..48]);
            let bits = (0..8).fold(0, |bits, g| bits | ((fifth[g] >> run.sub) & 0x0101_0101) << g);
            run.put(lane, [low[0], low[1], low[2], low[3], bits]);
            run.put_k_scales(lane, &block[..16]);
        }),
        WeightFormat::Q6K => write_blocks(format, panel, rows, |block: &[u8; 210], run, lane| {
            run.put(lane, q6k_lines(block, run.sub));
            run.scales[2 * lane..2 * lane + 2].copy_from_slice(&block[208..]);
            let at = Q6K_SCALES_AT + run.sub * 2 * QUANT_ROWS + lane;
            run.scales[at] = block[192 + 2 * run.sub];
            run.scales[at + QUANT_ROWS] = block[193 + 2 * run.sub];
        }),
    }
}

/// Writes elements of `N` bytes, `[lanes][inputs]`, as `[inputs][lanes]`.
fn interleave<const N: usize>(panel: &mut [u8], rows: &[&[u8]]) {
    /// A stretch short enough for its part of the panel to stay in the first-level cache.
    const STRETCH: usize = 32;
    /// Lanes that move together, in one store.
    const LANES: usize = 4;
    let (inputs, _) = panel.as_chunks_mut::<N>().0.as_chunks_mut::<DENSE_ROWS>();
    for (stretch, inputs) in inputs.chunks_mut(STRETCH).enumerate() {
        let first = stretch * STRETCH;
        let (fours, rest) = rows.as_chunks::<LANES>();
        for (four, [a, b, c, d]) in fours.iter().enumerate() {
            let lanes = elements(a, first).zip(elements(b, first)).zip(elements(c, first)).zip(elements(d, first));
            for (cells, (((a, b), c), d)) in inputs.iter_mut().zip(lanes) {
                cells.as_chunks_mut::<LANES>().0[four] = [*a, *b, *c, *d];
            }
        }
        for (lane, row) in rest.iter().enumerate() {
            for (cells, input) in inputs.iter_mut().zip(elements(row, first)) {
                cells[fours.len() * LANES + lane] = *input;
            }
        }
    }
}

/// The elements of a row from the first of a stretch on.
fn elements<const N: usize>(row: &[u8], first: usize) -> impl Iterator<Item = &[u8; N]> {
    row.as_chunks::<N>().0.iter().skip(first)
}

/// Where the codes and scales of one run go.
struct Run<'a> {
    /// Its place among the runs of its block.
    sub: usize,
    /// `[lines][16][4]`.
    codes: &'a mut [[u8; 4 * QUANT_ROWS]],
    /// Of the whole block.
    scales: &'a mut [u8],
}

impl Run<'_> {
    fn put<const LINES: usize>(&mut self, lane: usize, lines: [u32; LINES]) {
        for (cells, line) in self.codes.iter_mut().zip(lines) {
            cells.as_chunks_mut::<4>().0[lane] = line.to_le_bytes();
        }
    }

    /// `head`: the two block scales and the twelve bytes of small ones.
    fn put_k_scales(&mut self, lane: usize, head: &[u8]) {
        let (scale, min) = k_scale_min(&head[4..], self.sub);
        self.scales[2 * lane..2 * lane + 2].copy_from_slice(&head[..2]);
        self.scales[32 + 2 * lane..34 + 2 * lane].copy_from_slice(&head[2..4]);
        self.scales[K_SCALES_AT + self.sub * QUANT_ROWS + lane] = scale;
        self.scales[k_min_at(self.sub, lane)] = min;
    }
}

/// Calls `write` for every run of every row, with its block of `BLOCK` bytes, its place in the panel and its lane.
fn write_blocks<const BLOCK: usize>(
    format: WeightFormat,
    panel: &mut [u8],
    rows: &[&[u8]],
    write: impl Fn(&[u8; BLOCK], &mut Run<'_>, usize),
) {
    let layout = quant_layout(format);
    let lines = layout.code_bytes / (4 * QUANT_ROWS);
    for (lane, row) in rows.iter().enumerate() {
        let (blocks, _) = row.as_chunks::<BLOCK>();
        let (codes, scales) = panel.split_at_mut(blocks.len() * layout.runs_per_block * layout.code_bytes);
        let codes = codes.as_chunks_mut().0.chunks_exact_mut(lines * layout.runs_per_block);
        for ((block, codes), scales) in blocks.iter().zip(codes).zip(scales.chunks_exact_mut(layout.scale_bytes)) {
            for (sub, codes) in codes.chunks_exact_mut(lines).enumerate() {
                write(block, &mut Run { sub, codes, scales }, lane);
            }
        }
    }
}

/// Little-endian words.
fn words<const N: usize>(bytes: &[u8]) -> [u32; N] {
    let (words, _) = bytes.as_chunks::<4>();
    std::array::from_fn(|index| u32::from_le_bytes(words[index]))
}

/// The low four bits of run `sub` of a `Q4K` or `Q5K` block, whose pairs of runs share 32 bytes: codes 16 to 31 move to
/// the high halves.
fn k_low_halves(codes: &[u8], sub: usize) -> [u32; 4] {
    let pair: [u32; RUN / 4] = words(&codes[sub / 2 * RUN..][..RUN]);
    let shift = sub % 2 * 4;
    std::array::from_fn(|g| ((pair[g] >> shift) & LOW) | ((pair[g + 4] >> shift) & LOW) << 4)
}

/// The six lines of run `sub` of a `Q6K` block: four of low halves, two of the bits above.
fn q6k_lines(block: &[u8; 210], sub: usize) -> [u32; 6] {
    // Each half of the block has 64 low bytes and 32 high bytes; its four runs share them.
    let (part, run) = (sub / 4, sub % 4);
    let low: [u32; RUN / 4] = words(&block[64 * part + 32 * (run % 2)..][..RUN]);
    let high: [u32; RUN / 4] = words(&block[128 + 32 * part..][..RUN]);
    let shift = run / 2 * 4;
    let half = |g: usize| ((low[g] >> shift) & LOW) | ((low[g + 4] >> shift) & LOW) << 4;
    let top = |from: usize| (0..4).fold(0, |bits, s| bits | ((high[from + s] >> (2 * run)) & 0x0303_0303) << (2 * s));
    [half(0), half(1), half(2), half(3), top(0), top(4)]
}
