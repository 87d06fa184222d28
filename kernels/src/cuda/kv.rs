//! The paged cache of keys and values of one layer on the device.

use super::launch::{Args, Cut};
use super::{Buffer, CudaError, Gpu, KvElement, View};
use crate::error::expect_below;
use crate::{BLOCK_TOKENS, KernelError};

/// Keys and values of one layer for all blocks, each `[num_blocks][kv_heads][BLOCK_TOKENS][head_dim]`.
pub struct KvCache<C> {
    /// Keys of all blocks.
    pub keys: Buffer<C>,
    /// Values of all blocks.
    pub values: Buffer<C>,
    kv_heads: usize,
    head_dim: usize,
    num_blocks: usize,
}

impl<C: KvElement> KvCache<C> {
    /// A cache of zeros.
    ///
    /// # Errors
    /// [`KernelError::Shape`] unless `head_dim` is a multiple of 8 up to 256; [`CudaError::OutOfMemory`].
    pub fn new(gpu: &Gpu, kv_heads: usize, head_dim: usize, num_blocks: usize) -> Result<Self, CudaError> {
        check_dim(head_dim)?;
        let len = Self::block_len(kv_heads, head_dim)
            .checked_mul(num_blocks)
            .ok_or(KernelError::Alloc { bytes: usize::MAX })?;
        Ok(Self { keys: gpu.zeroed(len)?, values: gpu.zeroed(len)?, kv_heads, head_dim, num_blocks })
    }

    /// Heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads
    }

    /// Elements of one head.
    pub fn head_dim(&self) -> usize {
        self.head_dim
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    /// Bytes of keys and values of one block in one layer.
    pub fn bytes_per_block(kv_heads: usize, head_dim: usize) -> usize {
        2 * Self::block_len(kv_heads, head_dim) * size_of::<C>()
    }

    fn block_len(kv_heads: usize, head_dim: usize) -> usize {
        kv_heads * BLOCK_TOKENS * head_dim
    }
}

fn check_dim(head_dim: usize) -> Result<(), KernelError> {
    const OP: &str = "kv cache";
    if head_dim == 0 || !head_dim.is_multiple_of(8) {
        return Err(KernelError::Shape { op: OP, what: "head_dim (a multiple)", found: head_dim, wanted: 8 });
    }
    expect_below(OP, "head_dim", head_dim, 257)
}

/// Copies whole blocks of one layer: `pairs` are numbers of blocks, from and to, one after the other. Pairs that are out
/// of range are skipped; no block may be both written and read.
///
/// # Errors
/// [`KernelError::Shape`] for an odd number of numbers.
pub fn copy_blocks<C: KvElement>(gpu: &Gpu, cache: &mut KvCache<C>, pairs: View<'_, u32>) -> Result<(), CudaError> {
    if !pairs.len().is_multiple_of(2) {
        let (found, wanted) = (pairs.len(), pairs.len() + 1);
        return Err(KernelError::Shape { op: "copy_blocks", what: "pairs length", found, wanted }.into());
    }
    // 32 tokens of a multiple of 8 elements: whole packs for every type.
    let packs = KvCache::<C>::block_len(cache.kv_heads, cache.head_dim) * size_of::<C>() / 16;
    let cut = Cut::grid((pairs.len() / 2, packs.div_ceil(256), 1), 256);
    let (keys, values) = (cache.keys.view_mut(), cache.values.view_mut());
    let args = Args::new().input(pairs).output(&keys).output(&values).int(cache.num_blocks).int(packs);
    // SAFETY: the kernel skips blocks that are not there, and the cache holds `packs` packs a block.
    unsafe { gpu.launch(["copy_blocks", "", ""], cut, &args) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    #[test]
    fn heads_that_no_kernel_takes_are_refused() {
        assert_eq!(check_dim(128), Ok(()));
        assert_eq!(check_dim(256), Ok(()));
        for dim in [0, 12, 264] {
            assert!(check_dim(dim).is_err(), "{dim}");
        }
        assert_eq!(KvCache::<bf16>::bytes_per_block(8, 128), 2 * 8 * 32 * 128 * 2);
    }
}
