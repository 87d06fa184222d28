//! Rotary positions, the optional norm of queries and keys before them, and storing keys and values in the cache.

use super::launch::{Args, Cut};
use super::{Activation, CudaError, Gpu, KvCache, KvElement, View, ViewMut};
use crate::error::{expect_below, expect_len};
use crate::{BLOCK_TOKENS, KernelError};

/// Warps of a block, one a head: `WARPS` of `rope_store.cu`.
const WARPS: usize = 4;

/// Norm weights of queries and keys, applied a head at a time before the rotation.
#[derive(Clone, Copy)]
pub struct QkNorm<'a, T> {
    /// Query norm weights, `[head_dim]`.
    pub q: View<'a, T>,
    /// Key norm weights, `[head_dim]`.
    pub k: View<'a, T>,
    /// Added to the mean square.
    pub eps: f32,
}

/// Inputs of [`rope_store`] beside the heads themselves.
#[derive(Clone, Copy)]
pub struct RopeStore<'a, T> {
    /// Query heads.
    pub heads: usize,
    /// Position of each token in its sequence; beyond the table it counts as the last one there.
    pub positions: View<'a, u32>,
    /// `block_id * BLOCK_TOKENS + offset` of each token; slots that are not there are not stored.
    pub slots: View<'a, u32>,
    /// Cosines, then sines, of each position: `[positions, 2 * rotated pairs]`, as `RopeTable::at` gives them.
    pub table: View<'a, f32>,
    /// Rotated pairs of a head; 0 for no rotation.
    pub pairs: usize,
    /// The norm before it, if the model has one.
    pub qk_norm: Option<QkNorm<'a, T>>,
}

/// Norms and rotates queries in place, norms and rotates keys, and stores keys and values in their cache slots.
///
/// # Shapes
/// `qkv`: `[tokens, heads + 2 * kv_heads, head_dim]`: a row is its query heads, key heads, value heads.
/// # Errors
/// [`KernelError::Shape`] or [`KernelError::Range`] when lengths do not fit; nothing is queued then.
/// [`CudaError::Driver`] when there is no kernel from `T` to `C`: that is `T` itself and [`super::Fp8`].
pub fn rope_store<T: Activation, C: KvElement>(
    gpu: &Gpu,
    qkv: ViewMut<'_, T>,
    input: &RopeStore<'_, T>,
    cache: &mut KvCache<C>,
) -> Result<(), CudaError> {
    let (kv_heads, dim) = (cache.kv_heads(), cache.head_dim());
    let lengths = Lengths {
        qkv: qkv.len(),
        slots: input.slots.len(),
        table: input.table.len(),
        norms: input.qk_norm.map(|norm| (norm.q.len(), norm.k.len())),
    };
    let all_heads = input.heads + 2 * kv_heads;
    let num_positions = check(&lengths, input.positions.len(), all_heads, dim, input.pairs)?;
    let num_slots = cache.num_blocks() * BLOCK_TOKENS;
    expect_below("rope_store", "number of slots", num_slots, u32::MAX as usize)?;
    let cut = Cut::grid((input.positions.len(), all_heads.div_ceil(WARPS), 1), 32 * WARPS);
    let (norm, keys, values) = (input.qk_norm, cache.keys.view_mut(), cache.values.view_mut());
    let args = Args::new().output(&qkv).optional(norm.map(|n| n.q)).optional(norm.map(|n| n.k)).input(input.table);
    let args = args.input(input.positions).input(input.slots).output(&keys).output(&values);
    let args = args.float(norm.map_or(0.0, |n| n.eps)).int(input.heads).int(kv_heads).int(dim);
    let args = args.int(input.pairs).int(num_positions).int(num_slots);
    // SAFETY: `check` saw that rows, norms and table are there in full; the kernel skips slots and brings positions into
    // the table.
    unsafe { gpu.launch(["rope_store", T::SUFFIX, C::SUFFIX], cut, &args) }
}

struct Lengths {
    qkv: usize,
    slots: usize,
    table: usize,
    norms: Option<(usize, usize)>,
}

/// Returns the number of positions of the table.
fn check(found: &Lengths, tokens: usize, heads: usize, dim: usize, pairs: usize) -> Result<usize, KernelError> {
    const OP: &str = "rope_store";
    expect_len(OP, "slots length", found.slots, tokens)?;
    expect_len(OP, "qkv length", found.qkv, tokens * heads * dim)?;
    expect_below(OP, "rotated pairs", 2 * pairs, dim + 1)?;
    if let Some((q, k)) = found.norms {
        expect_len(OP, "q norm length", q, dim)?;
        expect_len(OP, "k norm length", k, dim)?;
    }
    if pairs == 0 {
        return Ok(1);
    }
    if found.table == 0 || !found.table.is_multiple_of(2 * pairs) {
        let what = "table length (whole positions)";
        return Err(KernelError::Shape { op: OP, what, found: found.table, wanted: 2 * pairs });
    }
    Ok(found.table / (2 * pairs))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_do_not_fit_are_refused_by_name() {
        let good = || Lengths { qkv: 3 * 8 * 64, slots: 3, table: 100 * 64, norms: Some((64, 64)) };
        assert_eq!(check(&good(), 3, 8, 64, 32), Ok(100));
        let text = |lengths: Lengths| check(&lengths, 3, 8, 64, 32).unwrap_err().to_string();
        assert_eq!(text(Lengths { qkv: 9, ..good() }), "rope_store: qkv length is 9, wanted 1536");
        assert_eq!(text(Lengths { slots: 2, ..good() }), "rope_store: slots length is 2, wanted 3");
        assert_eq!(text(Lengths { norms: Some((64, 32)), ..good() }), "rope_store: k norm length is 32, wanted 64");
        assert!(text(Lengths { table: 65, ..good() }).contains("table length"));
        assert!(check(&good(), 3, 8, 64, 33).is_err());
        assert_eq!(check(&Lengths { table: 0, ..good() }, 3, 8, 64, 0), Ok(1));
    }
}
