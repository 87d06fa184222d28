//! AVX-512 products of plain memory, for attention: 32 columns are two registers.

use super::dense::{Bf16Dot, Bf16Wide, F32, Weights};
use crate::cpu::StridedTile;
use crate::kv::WORD_BYTES;
use std::arch::x86_64::*;

/// Rows that share a pointer: so the pointers of twelve fit the registers.
const ROWS_A_POINTER: usize = 3;

/// What lies in the words of a [`StridedTile`].
pub(super) trait Words: Weights {
    /// The same with zero in place of the second of every pair.
    ///
    /// # Safety
    /// AVX-512 F.
    unsafe fn first_alone(w: Self::Loaded) -> Self::Loaded;
    /// Asks for a cache line that will be wanted.
    ///
    /// # Safety
    /// SSE; any address.
    #[inline(always)]
    unsafe fn fetch(line: *const u8) {
        // SAFETY: the trait's contract.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.cast()) };
    }
}

impl Words for F32 {
    #[inline(always)]
    unsafe fn first_alone(w: __m512) -> __m512 {
        w
    }
}

impl Words for Bf16Wide {
    #[inline(always)]
    unsafe fn first_alone(w: Self::Loaded) -> Self::Loaded {
        // SAFETY: the trait's contract.
        (w.0, unsafe { _mm512_setzero_ps() })
    }
}

impl Words for Bf16Dot {
    #[inline(always)]
    unsafe fn first_alone(w: __m512i) -> __m512i {
        // SAFETY: the trait's contract.
        unsafe { _mm512_and_si512(w, _mm512_set1_epi32(0xffff)) }
    }

    /// Into the second-level cache: on the machines this is for, fewer lines can be on their way to the first, and from
    /// memory half as many bytes arrive in the same time.
    #[inline(always)]
    unsafe fn fetch(line: *const u8) {
        // SAFETY: the trait's contract.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.cast()) };
    }
}

/// `M` rows times 32 columns; `W` tells what the words are.
///
/// # Safety
/// As [`crate::cpu::strided_tile`]; the instructions of `W`.
#[inline(always)]
pub(super) unsafe fn strided<W: Words, const M: usize>(tile: &StridedTile) {
    // SAFETY: the caller's promise about the pointers.
    unsafe {
        let y = |m: usize, v: usize| tile.y.add(m * tile.y_stride + v * 16);
        let mut acc = [[_mm512_setzero_ps(); 2]; M];
        if tile.resumes {
            for (m, row) in acc.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = _mm512_loadu_ps(y(m, v));
                }
            }
        }
        let (mut w, mut ahead) = (tile.w, tile.ahead);
        let mut x = [tile.x; 4];
        for (index, x) in x.iter_mut().enumerate() {
            *x = x.wrapping_add(ROWS_A_POINTER * index * tile.x_stride);
        }
        for _ in 0..tile.depth / W::INPUTS {
            for _ in 0..W::INPUTS {
                W::fetch(ahead);
                ahead = ahead.wrapping_add(tile.ahead_stride);
            }
            add::<W, M>(&mut acc, [W::load(w), W::load(w.add(W::BYTES))], &x, tile.x_stride);
            w = w.wrapping_add(tile.w_stride * WORD_BYTES);
            for x in &mut x {
                *x = x.wrapping_add(W::WORDS);
            }
        }
        if !tile.depth.is_multiple_of(W::INPUTS) {
            let last = [W::first_alone(W::load(w)), W::first_alone(W::load(w.add(W::BYTES)))];
            add::<W, M>(&mut acc, last, &x, tile.x_stride);
        }
        for (m, row) in acc.iter().enumerate() {
            _mm512_storeu_ps(y(m, 0), row[0]);
            _mm512_storeu_ps(y(m, 1), row[1]);
        }
    }
}

/// Adds one step to all rows.
///
/// # Safety
/// As [`strided`]; every row has the words of this step.
#[inline(always)]
unsafe fn add<W: Words, const M: usize>(
    acc: &mut [[__m512; 2]; M],
    w: [W::Loaded; 2],
    x: &[*const u32; 4],
    x_stride: usize,
) {
    for (m, row) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let x = x[m / ROWS_A_POINTER].add(m % ROWS_A_POINTER * x_stride);
            row[0] = W::add(row[0], w[0], x, 1);
            row[1] = W::add(row[1], w[1], x, 1);
        }
    }
}
