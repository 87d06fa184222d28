//! Activations of a step on the device, allocated once for the largest one.

use millgate_kernels::cuda::{Activation, AttentionSizes, Buffer, CudaError, DrawOutcome, Gpu, SampleScratch};

use crate::arch::DecoderConfig;
use crate::workspace::WorkspaceShape;

/// Buffers of one step.
pub(super) struct Space<T> {
    /// The stream that layers add to, `[tokens, hidden]`.
    pub(super) residual: Buffer<T>,
    /// What a layer reads, `[tokens, hidden]`.
    pub(super) normed: Buffer<T>,
    /// What a layer returns, `[tokens, hidden]`.
    pub(super) returned: Buffer<T>,
    /// `[tokens, query + 2 * key]`.
    pub(super) qkv: Buffer<T>,
    /// Attention's result before the output projection, `[tokens, query]`.
    pub(super) mixed: Buffer<T>,
    /// `[tokens, 2 * intermediate]`.
    pub(super) gate_up: Buffer<T>,
    /// `[tokens, intermediate]`.
    pub(super) product: Buffer<T>,
    /// Stream and mixed rows whose logits are wanted.
    pub(super) last_residual: Buffer<T>,
    pub(super) last_mixed: Buffer<T>,
    /// `[output rows, vocab]`.
    pub(super) logits: Buffer<f32>,
}

impl<T: Activation> Space<T> {
    /// Allocates everything; all zeros, so that no row holds what is not a number.
    pub(super) fn new(gpu: &Gpu, shape: &WorkspaceShape) -> Result<Self, CudaError> {
        // Output rows may name a token twice, so there can be more of them than tokens.
        let rows = shape.max_step_tokens.max(shape.max_output_rows);
        let outputs = shape.max_output_rows;
        let zeros = |rows: usize, width: usize| gpu.zeroed::<T>(rows * width);
        Ok(Self {
            residual: zeros(rows, shape.hidden_size)?,
            normed: zeros(rows, shape.hidden_size)?,
            returned: zeros(rows, shape.hidden_size)?,
            qkv: zeros(rows, shape.query_width + 2 * shape.key_width)?,
            mixed: zeros(rows, shape.query_width)?,
            gate_up: zeros(rows, 2 * shape.intermediate_size)?,
            product: zeros(rows, shape.intermediate_size)?,
            last_residual: zeros(outputs, shape.hidden_size)?,
            last_mixed: zeros(outputs, shape.query_width)?,
            logits: gpu.zeroed(outputs * shape.vocab_size)?,
        })
    }
}

/// Bytes of these buffers and of all others that a decoder takes for such steps, for sequences of up to `window` tokens.
pub(super) fn buffer_bytes(shape: &WorkspaceShape, config: &DecoderConfig, window: usize, width: u64) -> u64 {
    let (rows, vocab) = (shape.max_output_rows, shape.vocab_size);
    let sizes = AttentionSizes {
        heads: config.num_heads,
        kv_heads: config.num_kv_heads,
        head_dim: config.head_dim,
        window: None,
        is_f32: width == 4,
    };
    let rope = window * config.head_dim;
    let drawn = rows * (DrawOutcome::WORDS + 2) + SampleScratch::len(rows, vocab);
    let words = super::model::word_room(&[sizes], rows, (shape.max_step_tokens, window));
    space_bytes(shape, width) + 4 * (rope + sizes.partial_len(rows, window) + drawn + words) as u64
}

/// Bytes of all these buffers with numbers of `width` bytes.
pub(super) fn space_bytes(shape: &WorkspaceShape, width: u64) -> u64 {
    let wide = |value: usize| value as u64;
    let rows = wide(shape.max_step_tokens.max(shape.max_output_rows));
    let token = 3 * wide(shape.hidden_size)
        + 2 * wide(shape.query_width)
        + 2 * wide(shape.key_width)
        + 3 * wide(shape.intermediate_size);
    let output = width * (wide(shape.hidden_size) + wide(shape.query_width)) + 4 * wide(shape.vocab_size);
    rows.saturating_mul(width * token).saturating_add(wide(shape.max_output_rows).saturating_mul(output))
}
