//! Copies cached keys and values for tiles of many rows, which read each of them many times.

use crate::cpu::by_level;
use crate::kv::{KvDtype, PANEL_COLUMNS, WORD_BYTES};

/// Keys of a block, or one panel of its values, as stored: rows of `cols` words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) dtype: KvDtype,
    pub(super) bytes: &'a [u8],
    /// Words of a row, at most 32.
    pub(super) cols: usize,
}

by_level! {
    /// Fills `target`, `[rows][32]` with a row for every element of a word, with floats; beyond `cols` they are zero.
    pub(super) fn widen(stored: Stored<'_>, target: &mut [u32]) = widen_rows
}

#[inline(always)]
fn widen_rows(stored: Stored<'_>, target: &mut [u32]) {
    match stored.dtype {
        KvDtype::F32 => copy_rows(stored, target),
        KvDtype::Bf16 => {
            let (pairs, _) = target.as_chunks_mut::<{ 2 * PANEL_COLUMNS }>();
            // Two loops, so that the usual one is over arrays of known length.
            if stored.cols == PANEL_COLUMNS {
                let (rows, _) = stored.bytes.as_chunks::<{ PANEL_COLUMNS * WORD_BYTES }>();
                for (target, row) in pairs.iter_mut().zip(rows) {
                    widen_row(target, row);
                }
                return;
            }
            for (target, row) in pairs.iter_mut().zip(stored.bytes.chunks_exact(stored.cols * WORD_BYTES)) {
                let mut padded = [0; PANEL_COLUMNS * WORD_BYTES];
                padded[..row.len()].copy_from_slice(row);
                widen_row(target, &padded);
            }
        }
    }
}

/// Two rows of floats from one of pairs.
#[inline(always)]
fn widen_row(target: &mut [u32; 2 * PANEL_COLUMNS], row: &[u8; PANEL_COLUMNS * WORD_BYTES]) {
    let (words, _) = row.as_chunks::<WORD_BYTES>();
    for i in 0..PANEL_COLUMNS {
        target[i] = u32::from_ne_bytes(words[i]) << 16;
    }
    for i in 0..PANEL_COLUMNS {
        target[PANEL_COLUMNS + i] = u32::from_ne_bytes(words[i]) & 0xffff_0000;
    }
}

by_level! {
    /// Fills `target`, `[rows][32]`, with the words themselves; beyond `cols` they are zero.
    pub(super) fn copy(stored: Stored<'_>, target: &mut [u32]) = copy_rows
}

#[inline(always)]
fn copy_rows(stored: Stored<'_>, target: &mut [u32]) {
    let (target, _) = target.as_chunks_mut::<PANEL_COLUMNS>();
    for (target, row) in target.iter_mut().zip(stored.bytes.chunks_exact(stored.cols * WORD_BYTES)) {
        fill(target, row);
    }
}

#[inline(always)]
fn fill(target: &mut [u32], row: &[u8]) {
    let (words, _) = row.as_chunks::<WORD_BYTES>();
    // Two loops, so that the usual one has a known length.
    if let (Ok(target), Ok(words)) =
        (<&mut [u32; PANEL_COLUMNS]>::try_from(&mut *target), <&[_; PANEL_COLUMNS]>::try_from(words))
    {
        for (t, word) in target.iter_mut().zip(words) {
            *t = u32::from_ne_bytes(*word);
        }
        return;
    }
    target.fill(0);
    for (t, word) in target.iter_mut().zip(words) {
        *t = u32::from_ne_bytes(*word);
    }
}
