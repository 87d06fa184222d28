//! AVX2 products of plain memory, for attention: 32 columns are four registers.

use super::dense::{Bf16, F32, Weights};
use crate::cpu::StridedTile;
use crate::kv::WORD_BYTES;
use std::arch::x86_64::*;

/// Rows that share a pointer: so the pointers of six fit the registers.
const ROWS_A_POINTER: usize = 3;

/// What lies in the words of a [`StridedTile`].
pub(super) trait Words: Weights {
    /// The same with zero in place of the second of every pair.
    ///
    /// # Safety
    /// AVX.
    unsafe fn first_alone(w: Self::Loaded) -> Self::Loaded;
}

impl Words for F32 {
    #[inline(always)]
    unsafe fn first_alone(w: __m256) -> __m256 {
        w
    }
}

impl Words for Bf16 {
    #[inline(always)]
    unsafe fn first_alone(w: Self::Loaded) -> Self::Loaded {
        // SAFETY: the trait's contract.
        (w.0, unsafe { _mm256_setzero_ps() })
    }
}

/// `M` rows times `V` registers, from column `8 * first` on; `W` tells what the words are.
///
/// # Safety
/// As [`crate::cpu::strided_tile`]; AVX2 and FMA.
#[inline(always)]
pub(super) unsafe fn strided<W: Words, const M: usize, const V: usize>(tile: &StridedTile, first: usize) {
    // SAFETY: the caller's promise about the pointers.
    unsafe {
        let y = |m: usize, v: usize| tile.y.add(m * tile.y_stride + (first + v) * 8);
        let mut acc = [[_mm256_setzero_ps(); V]; M];
        if tile.resumes {
            for (m, row) in acc.iter_mut().enumerate() {
                for (v, sum) in row.iter_mut().enumerate() {
                    *sum = _mm256_loadu_ps(y(m, v));
                }
            }
        }
        let (mut w, mut ahead) = (tile.w.add(first * W::BYTES), tile.ahead);
        let mut x = [tile.x.cast::<f32>(); 2];
        for (index, x) in x.iter_mut().enumerate() {
            *x = x.wrapping_add(ROWS_A_POINTER * index * tile.x_stride);
        }
        for _ in 0..tile.depth / W::INPUTS {
            for _ in 0..W::INPUTS {
                _mm_prefetch::<_MM_HINT_T0>(ahead.cast());
                ahead = ahead.wrapping_add(tile.ahead_stride);
            }
            add::<W, M, V>(&mut acc, load::<W, V>(w), &x, tile.x_stride);
            w = w.wrapping_add(tile.w_stride * WORD_BYTES);
            for x in &mut x {
                *x = x.wrapping_add(W::INPUTS);
            }
        }
        if !tile.depth.is_multiple_of(W::INPUTS) {
            let mut last = load::<W, V>(w);
            for w in &mut last {
                *w = W::first_alone(*w);
            }
            add::<W, M, V>(&mut acc, last, &x, tile.x_stride);
        }
        for (m, row) in acc.iter().enumerate() {
            for (v, &sum) in row.iter().enumerate() {
                _mm256_storeu_ps(y(m, v), sum);
            }
        }
    }
}

/// Loads `V` registers.
///
/// # Safety
/// As [`Weights::load`], for `V` registers.
#[inline(always)]
unsafe fn load<W: Words, const V: usize>(w: *const u8) -> [W::Loaded; V] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut loaded = [W::load(w); V];
        for (v, loaded) in loaded.iter_mut().enumerate() {
            *loaded = W::load(w.add(v * W::BYTES));
        }
        loaded
    }
}

/// Adds one step to all rows.
///
/// # Safety
/// As [`strided`]; every row has the floats of this step.
#[inline(always)]
unsafe fn add<W: Words, const M: usize, const V: usize>(
    acc: &mut [[__m256; V]; M],
    w: [W::Loaded; V],
    x: &[*const f32; 2],
    x_stride: usize,
) {
    for (m, row) in acc.iter_mut().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            let x = x[m / ROWS_A_POINTER].add(m % ROWS_A_POINTER * x_stride);
            for v in 0..V {
                row[v] = W::add(row[v], w[v], x, 1);
            }
        }
    }
}
