//! The paged cache of keys and values of one layer.
//!
//! Keys of a block and head lie as `[head_dim][32]`, so that 32 scores are computed side by side; values as
//! `[32][head_dim]`, so that their weighted sum is.

use crate::KernelError;
use crate::error::expect_below;
use crate::memory::HugeBuffer;
use crate::share::Shared;
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
        2 * self.kv_heads * self.head_bytes()
    }

    /// Bytes of the keys (or values) of one block and head.
    fn head_bytes(&self) -> usize {
        BLOCK_TOKENS * self.head_dim * self.dtype.bytes()
    }
}

/// Keys and values of one layer for all blocks; the layout is private to this package.
#[derive(Debug)]
pub struct KvLayer {
    shape: KvShape,
    num_blocks: usize,
    keys: HugeBuffer,
    values: HugeBuffer,
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
        let elements = shape.head_dim.checked_mul(BLOCK_TOKENS * shape.dtype.bytes());
        let bytes = elements.and_then(|b| b.checked_mul(shape.kv_heads)?.checked_mul(num_blocks));
        let bytes = bytes.ok_or(KernelError::Alloc { bytes: usize::MAX })?;
        Ok(Self { shape, num_blocks, keys: HugeBuffer::zeroed(bytes)?, values: HugeBuffer::zeroed(bytes)? })
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
        let size = self.shape.kv_heads * self.shape.head_bytes();
        for data in [&mut self.keys, &mut self.values] {
            data.bytes_mut().copy_within(from as usize * size..(from as usize + 1) * size, to as usize * size);
        }
        Ok(())
    }

    /// Keys `[head_dim][32]` and values `[32][head_dim]` of one block and head, as stored.
    pub(crate) fn block(&self, block: usize, head: usize) -> (&[u8], &[u8]) {
        let size = self.shape.head_bytes();
        let at = (block * self.shape.kv_heads + head) * size;
        (&self.keys.bytes()[at..at + size], &self.values.bytes()[at..at + size])
    }

    /// What several threads write through, each its own heads.
    pub(crate) fn writer(&mut self) -> KvWriter {
        let (shape, num_slots) = (self.shape, self.num_slots());
        KvWriter {
            shape,
            num_slots,
            keys: Shared::new(self.keys.bytes_mut()),
            values: Shared::new(self.values.bytes_mut()),
        }
    }

    /// Stores one key and one value: for tests and for the reference, not for speed.
    pub(crate) fn write(&mut self, slot: usize, head: usize, key: &[f32], value: &[f32]) {
        // SAFETY: `self` is borrowed exclusively, so nobody else writes.
        unsafe { self.writer().write(slot, head, key, value) };
    }

    /// Reads one key and one value back as floats: for tests and for the reference, not for speed.
    pub fn read(&self, slot: usize, head: usize, key: &mut [f32], value: &mut [f32]) {
        let (keys, values) = self.block(slot / BLOCK_TOKENS, head);
        let token = slot % BLOCK_TOKENS;
        for i in 0..self.shape.head_dim {
            key[i] = self.element(keys, i * BLOCK_TOKENS + token);
            value[i] = self.element(values, token * self.shape.head_dim + i);
        }
    }

    fn element(&self, bytes: &[u8], index: usize) -> f32 {
        match self.shape.dtype {
            KvDtype::F32 => f32::from_ne_bytes(bytes.as_chunks().0[index]),
            KvDtype::Bf16 => bf16::from_ne_bytes(bytes.as_chunks().0[index]).to_f32(),
        }
    }
}

/// Writes slots of a layer from several threads at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct KvWriter {
    shape: KvShape,
    num_slots: usize,
    keys: Shared<u8>,
    values: Shared<u8>,
}

impl KvWriter {
    /// Stores one key and one value of `head_dim` floats each.
    ///
    /// # Safety
    /// The layer outlives the call and nobody else touches this head meanwhile.
    pub(crate) unsafe fn write(&self, slot: usize, head: usize, key: &[f32], value: &[f32]) {
        let (dim, size) = (self.shape.head_dim, self.shape.head_bytes());
        assert!(slot < self.num_slots && head < self.shape.kv_heads && key.len() == dim && value.len() == dim);
        let at = (slot / BLOCK_TOKENS * self.shape.kv_heads + head) * size;
        let token = slot % BLOCK_TOKENS;
        // SAFETY: inside the layer by the assertion; this head is the caller's alone.
        let (keys, values) = unsafe { (self.keys.piece(at, size), self.values.piece(at, size)) };
        match self.shape.dtype {
            KvDtype::F32 => {
                for (cell, v) in keys.as_chunks_mut().0[token..].iter_mut().step_by(BLOCK_TOKENS).zip(key) {
                    *cell = v.to_ne_bytes();
                }
                for (cell, v) in values.as_chunks_mut().0[token * dim..].iter_mut().zip(value) {
                    *cell = v.to_ne_bytes();
                }
            }
            KvDtype::Bf16 => {
                for (cell, &v) in keys.as_chunks_mut().0[token..].iter_mut().step_by(BLOCK_TOKENS).zip(key) {
                    *cell = bf16::from_f32(v).to_ne_bytes();
                }
                for (cell, &v) in values.as_chunks_mut().0[token * dim..].iter_mut().zip(value) {
                    *cell = bf16::from_f32(v).to_ne_bytes();
                }
            }
        }
    }
}
