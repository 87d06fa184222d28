//! Rotary positions, the optional norm of queries and keys before them, and storing keys and values in the cache.

use crate::cpu::{by_level, lanes};
use crate::error::{expect_below, expect_len};
use crate::share::{Shared, rows_per_part};
use crate::{KernelError, KvLayer, PAD_SLOT, Pool};
use std::sync::OnceLock;

/// Positions whose cosines and sines are computed together.
const POSITIONS: usize = 256;

/// Cosines and sines for every position and rotated pair; those of a stretch of positions are computed when the first of
/// them is asked for, because long contexts are the exception.
#[derive(Debug, Clone)]
pub struct RopeTable {
    inverse_frequencies: Vec<f32>,
    attention_scale: f32,
    max_positions: usize,
    /// `[POSITIONS][cos | sin][half]` each.
    stretches: Vec<OnceLock<Box<[f32]>>>,
}

impl RopeTable {
    /// A table of `attention_scale * cos/sin(position * inverse_frequency)`.
    ///
    /// Half-split ("NeoX") rotation as in Hugging Face's Llama and Qwen: element `i` pairs with element `i + half`,
    /// where `half` is the number of frequencies. Elements from `2 * half` on are left alone (partial rotary).
    pub fn new(inverse_frequencies: &[f32], attention_scale: f32, max_positions: usize) -> Self {
        let num_stretches = if inverse_frequencies.is_empty() { 0 } else { max_positions.div_ceil(POSITIONS) };
        Self {
            inverse_frequencies: inverse_frequencies.to_vec(),
            attention_scale,
            max_positions,
            stretches: vec![OnceLock::new(); num_stretches],
        }
    }

    /// Number of rotated pairs.
    pub fn half(&self) -> usize {
        self.inverse_frequencies.len()
    }

    /// Number of positions there are.
    pub fn max_positions(&self) -> usize {
        if self.half() == 0 { usize::MAX } else { self.max_positions }
    }

    /// Cosines and sines of one position; empty without rotation.
    pub fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let half = self.half();
        if half == 0 {
            return (&[], &[]);
        }
        let stretch = self.stretches[position / POSITIONS].get_or_init(|| self.tabulate(position / POSITIONS));
        stretch[position % POSITIONS * 2 * half..][..2 * half].split_at(half)
    }

    fn tabulate(&self, stretch: usize) -> Box<[f32]> {
        let first = stretch * POSITIONS;
        let mut cos_sin = Vec::with_capacity(POSITIONS * 2 * self.half());
        for position in first..self.max_positions.min(first + POSITIONS) {
            // The angle is rounded to f32 as the reference implementations do; only then are sine and cosine taken.
            let angle = |f: &f32| f64::from(position as f32 * f);
            let (frequencies, scale) = (&self.inverse_frequencies, self.attention_scale);
            cos_sin.extend(frequencies.iter().map(|f| angle(f).cos() as f32 * scale));
            cos_sin.extend(frequencies.iter().map(|f| angle(f).sin() as f32 * scale));
        }
        cos_sin.into_boxed_slice()
    }
}

/// Norm weights of queries and keys, applied a head at a time before the rotation.
#[derive(Debug, Clone, Copy)]
pub struct QkNorm<'a> {
    /// Query norm weights, `[head_dim]`.
    pub q: &'a [f32],
    /// Key norm weights, `[head_dim]`.
    pub k: &'a [f32],
    /// Added to the mean square.
    pub eps: f32,
}

/// Inputs of [`rope_store`] beside the queries.
#[derive(Debug, Clone, Copy)]
pub struct RopeStore<'a> {
    /// New keys, `[tokens, kv_heads, head_dim]`.
    pub k: &'a [f32],
    /// New values, `[tokens, kv_heads, head_dim]`.
    pub v: &'a [f32],
    /// Position of each token in its sequence.
    pub positions: &'a [u32],
    /// `block_id * BLOCK_TOKENS + offset` of each token; [`PAD_SLOT`] rows are not stored.
    pub slots: &'a [u32],
    /// The rotation.
    pub rope: &'a RopeTable,
    /// The norm before it, if the model has one.
    pub qk_norm: Option<QkNorm<'a>>,
}

/// Norms and rotates queries in place, norms and rotates keys, and stores keys and values in their cache slots.
///
/// # Shapes
/// `q`: `[tokens, heads, head_dim]`, `heads` a multiple of the cache's `kv_heads`.
/// # Errors
/// [`KernelError::Shape`] or [`KernelError::Range`] when lengths, positions or slots do not fit; nothing is written.
pub fn rope_store(pool: &Pool, q: &mut [f32], input: &RopeStore, kv: &mut KvLayer) -> Result<(), KernelError> {
    check(q.len(), input, kv)?;
    let (dim, kv_heads, tokens) = (kv.shape().head_dim, kv.shape().kv_heads, input.positions.len());
    if tokens * kv_heads == 0 {
        return Ok(());
    }
    let group = q.len() / (tokens * kv_heads * dim);
    let (q, writer) = (Shared::new(q), kv.writer(pool.level()));
    // A part owns whole heads, so that slots given twice are no race.
    let heads_per_part = if rows_per_part(pool, tokens, kv_heads * (group + 2) * dim) < tokens { 1 } else { kv_heads };
    pool.run(kv_heads.div_ceil(heads_per_part), &|part| {
        let mut key = vec![0.0; dim];
        for t in 0..tokens {
            let (cos, sin) = input.rope.at(input.positions[t] as usize);
            for head in part * heads_per_part..(part + 1) * heads_per_part {
                let at = t * kv_heads + head;
                // SAFETY: the queries of this token and key/value head are this part's alone.
                let queries = unsafe { q.piece(at * group * dim, group * dim) };
                turn(pool.level(), queries, dim, input.qk_norm.map(|n| (n.q, n.eps)), (cos, sin));
                key.copy_from_slice(&input.k[at * dim..(at + 1) * dim]);
                turn(pool.level(), &mut key, dim, input.qk_norm.map(|n| (n.k, n.eps)), (cos, sin));
                if input.slots[t] != PAD_SLOT {
                    let value = &input.v[at * dim..(at + 1) * dim];
                    // SAFETY: the layer is borrowed exclusively by this call, and this head is this part's alone.
                    unsafe { writer.write(input.slots[t] as usize, head, &key, value) };
                }
            }
        }
    });
    Ok(())
}

by_level! {
    /// Norms and rotates heads of `dim` elements.
    fn turn(heads: &mut [f32], dim: usize, norm: Option<(&[f32], f32)>, angle: (&[f32], &[f32])) = turn_inline
}

#[inline(always)]
fn turn_inline(heads: &mut [f32], dim: usize, norm: Option<(&[f32], f32)>, (cos, sin): (&[f32], &[f32])) {
    for head in heads.chunks_exact_mut(dim) {
        if let Some((weight, eps)) = norm {
            lanes::rms_norm_row_in_place(head, weight, eps);
        }
        let (low, high) = head.split_at_mut(cos.len());
        for (((a, b), cos), sin) in low.iter_mut().zip(high).zip(cos).zip(sin) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

fn check(q_len: usize, input: &RopeStore, kv: &KvLayer) -> Result<(), KernelError> {
    const OP: &str = "rope_store";
    let shape = kv.shape();
    let tokens = input.positions.len();
    let kv_len = tokens * shape.kv_heads * shape.head_dim;
    expect_len(OP, "slots length", input.slots.len(), tokens)?;
    expect_len(OP, "k length", input.k.len(), kv_len)?;
    expect_len(OP, "v length", input.v.len(), kv_len)?;
    if kv_len == 0 {
        return expect_len(OP, "q length", q_len, 0);
    }
    if !q_len.is_multiple_of(kv_len) {
        return Err(KernelError::Shape { op: OP, what: "q length (a multiple of k)", found: q_len, wanted: kv_len });
    }
    expect_below(OP, "rotated pairs", 2 * input.rope.half(), shape.head_dim + 1)?;
    if let Some(norm) = input.qk_norm {
        expect_len(OP, "q norm length", norm.q.len(), shape.head_dim)?;
        expect_len(OP, "k norm length", norm.k.len(), shape.head_dim)?;
    }
    for &position in input.positions {
        expect_below(OP, "position", position as usize, input.rope.max_positions())?;
    }
    for &slot in input.slots.iter().filter(|&&s| s != PAD_SLOT) {
        expect_below(OP, "slot", slot as usize, kv.num_slots())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_position_has_the_angles_of_its_own_whichever_is_asked_for_first() {
        let (frequencies, positions) = ([1.0, 0.25, 1e-3], 2 * POSITIONS + 5);
        let table = RopeTable::new(&frequencies, 0.5, positions);
        for position in [positions - 1, POSITIONS, 0, POSITIONS - 1, 2 * POSITIONS] {
            let angles = frequencies.map(|f| f64::from(position as f32 * f));
            let (cos, sin) = table.at(position);
            assert_eq!(cos, angles.map(|angle| angle.cos() as f32 * 0.5), "position {position}");
            assert_eq!(sin, angles.map(|angle| angle.sin() as f32 * 0.5), "position {position}");
        }
        assert_eq!(table.max_positions(), positions);
        assert_eq!(RopeTable::new(&[], 1.0, 8).at(7), (&[][..], &[][..]));
    }
}
