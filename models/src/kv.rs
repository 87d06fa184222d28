//! The paged cache of keys and values: one kernel layer a model layer, blocks shared by number.

use millgate_kernels::{KernelError, KvLayer, KvShape};

/// Keys and values of all layers.
#[derive(Debug)]
pub(crate) struct KvCache {
    pub(crate) layers: Vec<KvLayer>,
}

impl KvCache {
    /// Allocates `num_blocks` blocks in every layer.
    ///
    /// # Errors
    /// [`KernelError::Alloc`] when there is not enough memory.
    pub(crate) fn new(shape: KvShape, num_layers: usize, num_blocks: usize) -> Result<Self, KernelError> {
        Ok(Self { layers: KvLayer::stack(shape, num_layers, num_blocks)? })
    }

    /// Copies one block to another, in every layer.
    pub(crate) fn copy_block(&mut self, from: u32, to: u32) -> Result<(), KernelError> {
        self.layers.iter_mut().try_for_each(|layer| layer.copy_block(from, to))
    }
}
