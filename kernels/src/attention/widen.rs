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
            for (target, row) in pairs.iter_mut().zip(stored.bytes.chunks_exact(stored.cols * WORD_BYTES)) {
                let (first, second) = target.split_at_mut(PANEL_COLUMNS);
                fill(first, row, |word| word << 16);
                fill(second, row, |word| word & 0xffff_0000);
            }
        }
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
        fill(target, row, |word| word);
    }
}

#[inline(always)]
fn fill(target: &mut [u32], row: &[u8], convert: impl Fn(u32) -> u32) {
    let (words, _) = row.as_chunks::<WORD_BYTES>();
    // Two loops, so that the usual one has a known length.
    if let (Ok(target), Ok(words)) =
        (<&mut [u32; PANEL_COLUMNS]>::try_from(&mut *target), <&[_; PANEL_COLUMNS]>::try_from(words))
    {
        for (t, word) in target.iter_mut().zip(words) {
            *t = convert(u32::from_ne_bytes(*word));
        }
        return;
    }
    target.fill(0);
    for (t, word) in target.iter_mut().zip(words) {
        *t = convert(u32::from_ne_bytes(*word));
    }
}
