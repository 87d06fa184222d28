//! The paged cache of keys and values of one layer.
//!
//! The layers of a model lie in one stretch of memory, block by block and inside a block layer by layer: what a sequence
//! takes is the memory of its own blocks, not a page of every layer.
//!
//! A block of one head is made of words of four bytes: one f32 or two bf16, which are then multiplied as a pair or widened
//! by a shift each. Keys lie as `[head_dim][32]`, so that 32 scores are computed side by side; a word holds the same token's
//! neighbouring elements. Values lie in panels of 32 columns (the last may have fewer), `[32][columns]`, so that their
//! weighted sum is computed 32 columns at a time; a word holds neighbouring tokens' elements of one column.

use crate::cpu::lanes::to_bf16;
use crate::cpu::{bf16_pair, by_level};
use crate::error::expect_below;
use crate::memory::HugeBuffer;
use crate::share::Shared;
use crate::{KernelError, Level};
use half::bf16;
use std::sync::Arc;

/// Tokens of one cache block.
pub const BLOCK_TOKENS: usize = 32;
/// Columns of one panel of values.
pub(crate) const PANEL_COLUMNS: usize = 32;
/// Bytes of one element of f32, or of two of bf16.
pub(crate) const WORD_BYTES: usize = 4;
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

    /// Elements of one word.
    pub(crate) fn per_word(self) -> usize {
        WORD_BYTES / self.bytes()
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
    memory: Arc<HugeBuffer>,
    /// Where this layer's part of the first block begins, and bytes from block to block.
    ///
    /// INVARIANT: layers of one memory have parts that do not overlap, all inside the memory.
    first: usize,
    stride: usize,
}

impl KvLayer {
    /// Reserves a zeroed cache of `num_blocks` blocks for one layer alone.
    ///
    /// # Errors
    /// As [`KvLayer::stack`].
    pub fn new(shape: KvShape, num_blocks: usize) -> Result<Self, KernelError> {
        let mut layers = Self::stack(shape, 1, num_blocks)?;
        Ok(layers.pop().expect("one layer was asked for"))
    }

    /// Reserves a zeroed cache of `num_blocks` blocks for every layer of a model.
    ///
    /// # Errors
    /// [`KernelError::Shape`] unless `head_dim` is a positive multiple of 8; [`KernelError::Alloc`] without memory.
    pub fn stack(shape: KvShape, num_layers: usize, num_blocks: usize) -> Result<Vec<Self>, KernelError> {
        if shape.head_dim == 0 || !shape.head_dim.is_multiple_of(8) {
            let found = shape.head_dim;
            return Err(KernelError::Shape { op: "kv layer", what: "head_dim (a multiple)", found, wanted: 8 });
        }
        let sizes = [BLOCK_TOKENS * shape.dtype.bytes(), 2, shape.kv_heads, num_layers, num_blocks];
        let bytes = sizes.into_iter().try_fold(shape.head_dim, usize::checked_mul);
        let memory = Arc::new(HugeBuffer::zeroed(bytes.ok_or(KernelError::Alloc { bytes: usize::MAX })?)?);
        let part = shape.bytes_per_block();
        let layer = |index| Self {
            shape,
            num_blocks,
            memory: Arc::clone(&memory),
            first: index * part,
            stride: num_layers * part,
        };
        Ok((0..num_layers).map(layer).collect())
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
        let size = self.shape.bytes_per_block();
        let part = |block: u32| self.memory.pointer().wrapping_add(self.first + block as usize * self.stride);
        // SAFETY: both parts lie inside the memory and are this layer's alone, which is borrowed exclusively.
        unsafe { std::ptr::copy(part(from), part(to), size) };
        Ok(())
    }

    /// Keys and values of one block and head, as stored.
    pub(crate) fn block(&self, block: usize, head: usize) -> (&[u8], &[u8]) {
        assert!(block < self.num_blocks && head < self.shape.kv_heads, "a block and a head of this layer");
        let size = self.shape.head_bytes();
        let keys = self.memory.pointer().wrapping_add(self.first + block * self.stride + head * size);
        let values = keys.wrapping_add(self.shape.kv_heads * size);
        // SAFETY: by the assertion both lie inside this layer's part of the memory, which nobody writes while it is
        // borrowed.
        unsafe { (std::slice::from_raw_parts(keys, size), std::slice::from_raw_parts(values, size)) }
    }

    /// What several threads write through, each its own heads.
    pub(crate) fn writer(&mut self, level: Level) -> KvWriter {
        let part = Shared::from_pointer(self.memory.pointer().wrapping_add(self.first));
        KvWriter { level, shape: self.shape, num_slots: self.num_slots(), part, stride: self.stride }
    }

    /// Stores one key and one value: for tests and for the reference, not for speed.
    pub(crate) fn write(&mut self, slot: usize, head: usize, key: &[f32], value: &[f32]) {
        // SAFETY: `self` is borrowed exclusively, so nobody else writes.
        unsafe { self.writer(Level::Scalar).write(slot, head, key, value) };
    }

    /// Reads one key and one value back as floats: for tests and for the reference, not for speed.
    pub fn read(&self, slot: usize, head: usize, key: &mut [f32], value: &mut [f32]) {
        let (keys, values) = self.block(slot / BLOCK_TOKENS, head);
        let token = slot % BLOCK_TOKENS;
        let (dim, per_word) = (self.shape.head_dim, self.shape.dtype.per_word());
        for i in 0..dim {
            key[i] = self.element(keys, (i / per_word * BLOCK_TOKENS + token) * per_word + i % per_word);
            let panel = i - i % PANEL_COLUMNS;
            let columns = PANEL_COLUMNS.min(dim - panel);
            let word = token / per_word * columns + i - panel;
            value[i] = self.element(values, panel * BLOCK_TOKENS + word * per_word + token % per_word);
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
    level: Level,
    shape: KvShape,
    num_slots: usize,
    /// The layer's part of the first block.
    part: Shared<u8>,
    stride: usize,
}

impl KvWriter {
    /// Stores one key and one value of `head_dim` floats each.
    ///
    /// # Safety
    /// The layer outlives the call and nobody else touches this head meanwhile.
    pub(crate) unsafe fn write(&self, slot: usize, head: usize, key: &[f32], value: &[f32]) {
        let (dim, size) = (self.shape.head_dim, self.shape.head_bytes());
        assert!(slot < self.num_slots && head < self.shape.kv_heads && key.len() == dim && value.len() == dim);
        let at = slot / BLOCK_TOKENS * self.stride + head * size;
        let token = slot % BLOCK_TOKENS;
        // SAFETY: inside the layer by the assertion; this head is the caller's alone.
        let (keys, values) =
            unsafe { (self.part.piece(at, size), self.part.piece(at + self.shape.kv_heads * size, size)) };
        store(self.level, self.shape.dtype, token, (keys, values), (key, value));
    }
}

by_level! {
    /// Stores one key and one value in the places of a token.
    fn store(dtype: KvDtype, token: usize, block: (&mut [u8], &mut [u8]), vectors: (&[f32], &[f32])) = store_inline
}

#[inline(always)]
fn store_inline(dtype: KvDtype, token: usize, block: (&mut [u8], &mut [u8]), vectors: (&[f32], &[f32])) {
    match dtype {
        KvDtype::F32 => {
            place_key(token, block.0, vectors.0, |[element]: &[f32; 1]| element.to_bits());
            place_value::<1>(token, block.1, vectors.1, |_, element| element.to_bits());
        }
        KvDtype::Bf16 => {
            place_key(token, block.0, vectors.0, |[a, b]: &[f32; 2]| bf16_pair(*a, *b));
            // The other half of a word is another token's.
            let shift = token % 2 * 16;
            let others = 0xffff_0000u32.rotate_left(shift as u32);
            let joined = |word: u32, element: f32| word & others | u32::from(to_bf16(element)) << shift;
            place_value::<2>(token, block.1, vectors.1, joined);
        }
    }
}

/// Stores a key whose words hold `N` elements.
#[inline(always)]
fn place_key<const N: usize>(token: usize, keys: &mut [u8], key: &[f32], word: impl Fn(&[f32; N]) -> u32) {
    /// Words that are made together before each goes to a line of its own.
    const TOGETHER: usize = 16;
    let (cells, _) = keys.as_chunks_mut::<WORD_BYTES>();
    let (elements, _) = key.as_chunks::<N>();
    for (cells, elements) in cells.chunks_mut(TOGETHER * BLOCK_TOKENS).zip(elements.chunks(TOGETHER)) {
        let mut words = [0; TOGETHER];
        for (word_of, elements) in words.iter_mut().zip(elements) {
            *word_of = word(elements);
        }
        place_apart(&words[..elements.len()], &mut cells[token..]);
    }
}

/// Stores each word in a line of its own.
///
/// Not inlined, so that it is compiled without the level's scatters, which take several times as long as plain stores.
#[inline(never)]
fn place_apart(words: &[u32], cells: &mut [[u8; WORD_BYTES]]) {
    for (cell, word) in cells.iter_mut().step_by(BLOCK_TOKENS).zip(words) {
        *cell = word.to_ne_bytes();
    }
}

/// Stores a value where words hold the elements of `N` tokens; `word` makes one from what it was.
#[inline(always)]
fn place_value<const N: usize>(token: usize, values: &mut [u8], value: &[f32], word: impl Fn(u32, f32) -> u32) {
    let (cells, _) = values.as_chunks_mut::<WORD_BYTES>();
    for (panel, value) in cells.chunks_mut(PANEL_COLUMNS * BLOCK_TOKENS / N).zip(value.chunks(PANEL_COLUMNS)) {
        for (cell, element) in panel[token / N * value.len()..].iter_mut().zip(value) {
            *cell = word(u32::from_ne_bytes(*cell), *element).to_ne_bytes();
        }
    }
}
