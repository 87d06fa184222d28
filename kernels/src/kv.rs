//! The paged cache of keys and values of one layer.

use crate::KernelError;
use crate::error::expect_below;
use half::bf16;

/// Tokens of one cache block.
pub const BLOCK_TOKENS: usize = 32;
/// A slot that is never written.
pub const PAD_SLOT: u32 = u32::MAX;

/// Element type of cached keys and values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KvDtype {
    /// Four bytes.
    F32,
    /// Two bytes, rounded to nearest even when stored.
    Bf16,
}

impl KvDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::Bf16 => 2,
        }
    }
}

/// Sizes of one layer's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct KvShape {
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Element type.
    pub dtype: KvDtype,
}

impl KvShape {
    /// Bytes of the keys and values of one block in one layer.
    pub fn bytes_per_block(&self) -> usize {
        2 * BLOCK_TOKENS * self.kv_heads * self.head_dim * self.dtype.bytes()
    }
}

/// Keys and values of one layer for all blocks; the layout is private to this package.
#[derive(Debug)]
pub struct KvLayer {
    shape: KvShape,
    num_blocks: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl KvLayer {
    /// Reserves a zeroed cache of `num_blocks` blocks.
    ///
    /// # Errors
    /// [`KernelError::Shape`] unless `head_dim` is a positive multiple of 8; [`KernelError::Alloc`] without memory.
    pub fn new(shape: KvShape, num_blocks: usize) -> Result<Self, KernelError> {
        if shape.head_dim == 0 || !shape.head_dim.is_multiple_of(8) {
            let found = shape.head_dim;
            return Err(KernelError::Shape { op: "kv layer", what: "head_dim (a multiple)", found, wanted: 8 });
        }
        let len = num_blocks * BLOCK_TOKENS * shape.kv_heads * shape.head_dim;
        Ok(Self { shape, num_blocks, keys: vec![0.0; len], values: vec![0.0; len] })
    }

    /// The sizes given at construction.
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Number of blocks.
    pub fn num_blocks(&self) -> usize {
        self.num_blocks
    }

    pub(crate) fn num_slots(&self) -> usize {
        self.num_blocks * BLOCK_TOKENS
    }

    /// Copies keys and values of a whole block, for copy-on-write.
    ///
    /// # Errors
    /// [`KernelError::Range`] for a block that is not there; nothing is written.
    pub fn copy_block(&mut self, from: u32, to: u32) -> Result<(), KernelError> {
        expect_below("copy_block", "block", from as usize, self.num_blocks)?;
        expect_below("copy_block", "block", to as usize, self.num_blocks)?;
        let size = BLOCK_TOKENS * self.shape.kv_heads * self.shape.head_dim;
        for data in [&mut self.keys, &mut self.values] {
            data.copy_within(from as usize * size..(from as usize + 1) * size, to as usize * size);
        }
        Ok(())
    }

    fn rounded(&self, x: f32) -> f32 {
        match self.shape.dtype {
            KvDtype::F32 => x,
            KvDtype::Bf16 => bf16::from_f32(x).to_f32(),
        }
    }

    pub(crate) fn write(&mut self, slot: usize, head: usize, key: &[f32], value: &[f32]) {
        let at = (slot * self.shape.kv_heads + head) * self.shape.head_dim;
        for i in 0..self.shape.head_dim {
            self.keys[at + i] = self.rounded(key[i]);
            self.values[at + i] = self.rounded(value[i]);
        }
    }

    /// Reads one key and one value back as floats: for tests and for the reference, not for speed.
    pub fn read(&self, slot: usize, head: usize, key: &mut [f32], value: &mut [f32]) {
        let at = (slot * self.shape.kv_heads + head) * self.shape.head_dim;
        key.copy_from_slice(&self.keys[at..at + self.shape.head_dim]);
        value.copy_from_slice(&self.values[at..at + self.shape.head_dim]);
    }
}
