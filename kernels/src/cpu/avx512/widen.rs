//! Pairs of bf16 made floats, a register at a time: of plain Rust the compiler makes scatters, which take longer than the
//! products.

use crate::cpu::widen::{PairRow, WidenedRow};
use std::arch::x86_64::*;

/// As [`crate::cpu::widen::widen_pairs`].
#[target_feature(enable = "avx512f")]
pub(in crate::cpu) fn widen_pairs(rows: &[PairRow], target: &mut [WidenedRow]) {
    let second = _mm512_set1_epi32(0xffff_0000u32.cast_signed());
    for (row, target) in rows.iter().zip(target) {
        let (from, to) = (row.as_ptr(), target.as_mut_ptr());
        for register in 0..2 {
            // SAFETY: a row is two registers of words, its floats are four.
            unsafe {
                let pairs = _mm512_loadu_si512(from.add(64 * register).cast());
                _mm512_storeu_si512(to.add(16 * register).cast(), _mm512_slli_epi32::<16>(pairs));
                _mm512_storeu_si512(to.add(32 + 16 * register).cast(), _mm512_and_si512(pairs, second));
            }
        }
    }
}
