//! Pairs of bf16 made floats.

use super::{Level, by_level};
use crate::kv::{PANEL_COLUMNS, WORD_BYTES};

/// A row of words, each a pair of bf16.
pub(crate) type PairRow = [u8; PANEL_COLUMNS * WORD_BYTES];
/// The floats of such a row: the first of every pair, then the second of every pair.
pub(crate) type WidenedRow = [u32; 2 * PANEL_COLUMNS];

/// Widens row after row.
pub(crate) fn widen_pairs(level: Level, rows: &[PairRow], target: &mut [WidenedRow]) {
    #[cfg(target_arch = "x86_64")]
    if matches!(level, Level::Avx512 | Level::Avx512Bf16 | Level::Amx) {
        // SAFETY: a pool is only built with a level this machine has.
        return unsafe { super::avx512::widen_pairs(rows, target) };
    }
    plainly(level, rows, target);
}

by_level! {
    fn plainly(rows: &[PairRow], target: &mut [WidenedRow]) = widen_rows
}

#[inline(always)]
fn widen_rows(rows: &[PairRow], target: &mut [WidenedRow]) {
    for (row, target) in rows.iter().zip(target) {
        let (words, _) = row.as_chunks::<WORD_BYTES>();
        for i in 0..PANEL_COLUMNS {
            target[i] = u32::from_ne_bytes(words[i]) << 16;
        }
        for i in 0..PANEL_COLUMNS {
            target[PANEL_COLUMNS + i] = u32::from_ne_bytes(words[i]) & 0xffff_0000;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_the_same_floats_on_every_level() {
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            for len in [0, 1, 9, 16] {
                let rows: Vec<PairRow> =
                    (0..len).map(|row: usize| std::array::from_fn(|i| (row * 131 + i * 37) as u8)).collect();
                let (mut found, mut wanted) = (vec![[7; 64]; len], vec![[9; 64]; len]);
                widen_pairs(level, &rows, &mut found);
                widen_rows(&rows, &mut wanted);
                assert_eq!(found, wanted, "{level:?}");
            }
        }
    }
}
