//! Copies cached keys and values for tiles of many rows, which read each of them many times.

use crate::Level;
use crate::cpu::{by_level, widen_pairs};
use crate::kv::{KvDtype, PANEL_COLUMNS, WORD_BYTES};

/// Keys of a block, or one panel of its values, as stored: rows of `cols` words.
#[derive(Debug, Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) dtype: KvDtype,
    pub(super) bytes: &'a [u8],
    /// Words of a row, at most 32.
    pub(super) cols: usize,
}

/// Fills `target`, `[rows][32]` with a row for every element of a word, with floats; beyond `cols` they are zero.
pub(super) fn widen(level: Level, stored: Stored<'_>, target: &mut [u32]) {
    if stored.dtype == KvDtype::F32 {
        return copy(level, stored, target);
    }
    let (target, _) = target.as_chunks_mut();
    if stored.cols == PANEL_COLUMNS {
        return widen_pairs(level, stored.bytes.as_chunks().0, target);
    }
    for (target, row) in target.iter_mut().zip(stored.bytes.chunks_exact(stored.cols * WORD_BYTES)) {
        let mut padded = [0; PANEL_COLUMNS * WORD_BYTES];
        padded[..row.len()].copy_from_slice(row);
        widen_pairs(level, &[padded], std::slice::from_mut(target));
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
