//! Activations, allocated once for the largest step: the forward pass allocates nothing.

use millgate_kernels::{Floats, KernelError};

/// Sizes that decide how large the activations are.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WorkspaceShape {
    pub(crate) max_step_tokens: usize,
    pub(crate) max_output_rows: usize,
    pub(crate) hidden_size: usize,
    pub(crate) query_width: usize,
    pub(crate) key_width: usize,
    pub(crate) intermediate_size: usize,
    pub(crate) vocab_size: usize,
}

/// Buffers of one step, f32.
#[derive(Debug)]
pub(crate) struct Workspace {
    /// The stream that layers add to, `[tokens, hidden]`.
    pub(crate) residual: Floats,
    /// What a layer reads, `[tokens, hidden]`.
    pub(crate) normed: Floats,
    /// What a layer returns, `[tokens, hidden]`.
    pub(crate) returned: Floats,
    pub(crate) attention: AttentionSpace,
    pub(crate) mlp: MlpSpace,
    pub(crate) output: OutputSpace,
}

/// Buffers of an attention layer.
#[derive(Debug)]
pub(crate) struct AttentionSpace {
    pub(crate) query: Floats,
    pub(crate) key: Floats,
    pub(crate) value: Floats,
    /// Attention's result before the output projection, `[tokens, heads * head_dim]`.
    pub(crate) mixed: Floats,
}

/// Buffers of a feed-forward layer.
#[derive(Debug)]
pub(crate) struct MlpSpace {
    pub(crate) gate: Floats,
    pub(crate) up: Floats,
    pub(crate) product: Floats,
}

/// Buffers of the rows whose logits are wanted.
#[derive(Debug)]
pub(crate) struct OutputSpace {
    pub(crate) residual: Floats,
    pub(crate) mixed: Floats,
    pub(crate) logits: Floats,
}

impl WorkspaceShape {
    /// Bytes of all buffers; `None` when the figure overflows.
    pub(crate) fn bytes(&self) -> Option<u64> {
        let wide = |value: usize| value as u64;
        let rows = wide(self.max_step_tokens.max(self.max_output_rows));
        let token = 3 * wide(self.hidden_size)
            + 2 * wide(self.query_width)
            + 2 * wide(self.key_width)
            + 3 * wide(self.intermediate_size);
        let output = wide(self.hidden_size) + wide(self.query_width) + wide(self.vocab_size);
        let floats = rows.checked_mul(token)?.checked_add(wide(self.max_output_rows).checked_mul(output)?)?;
        floats.checked_mul(4)
    }
}

impl Workspace {
    /// Allocates all buffers.
    ///
    /// # Errors
    /// [`KernelError::Alloc`] when there is not enough memory.
    pub(crate) fn new(shape: &WorkspaceShape) -> Result<Self, KernelError> {
        // Output rows may name a token twice, so there can be more of them than tokens.
        let rows = shape.max_step_tokens.max(shape.max_output_rows);
        let outputs = shape.max_output_rows;
        Ok(Self {
            residual: zeros(rows, shape.hidden_size)?,
            normed: zeros(rows, shape.hidden_size)?,
            returned: zeros(rows, shape.hidden_size)?,
            attention: AttentionSpace {
                query: zeros(rows, shape.query_width)?,
                key: zeros(rows, shape.key_width)?,
                value: zeros(rows, shape.key_width)?,
                mixed: zeros(rows, shape.query_width)?,
            },
            mlp: MlpSpace {
                gate: zeros(rows, shape.intermediate_size)?,
                up: zeros(rows, shape.intermediate_size)?,
                product: zeros(rows, shape.intermediate_size)?,
            },
            output: OutputSpace {
                residual: zeros(outputs, shape.hidden_size)?,
                mixed: zeros(outputs, shape.query_width)?,
                logits: zeros(outputs, shape.vocab_size)?,
            },
        })
    }
}

fn zeros(rows: usize, width: usize) -> Result<Floats, KernelError> {
    Floats::zeroed(rows.checked_mul(width).ok_or(KernelError::Alloc { bytes: usize::MAX })?)
}
