//! The seam between the engine and a loaded model: a batch goes in, logits come out.

use millgate_kernels::KernelError;

use crate::batch::Batch;
use crate::device::Device;
use crate::draw::DrawingModel;

/// A loaded model that computes one step at a time.
///
/// A row's logits depend on its own tokens and context only: never on what else is in the batch, nor on how a prompt
/// was cut into steps.
pub trait Model: Send {
    /// Sizes and limits, fixed at load.
    fn spec(&self) -> &ModelSpec;

    /// Computes one step and returns the logits of the batch's output rows.
    ///
    /// # Shapes
    /// `[output_rows.len(), vocab_size]`, contiguous, valid until the next call.
    /// # Errors
    /// [`ForwardError::Batch`] for a batch outside the spec; the cache is then untouched.
    fn forward(&mut self, batch: &Batch) -> Result<&[f32], ForwardError>;

    /// Copies the keys and values of one block to another, in every layer.
    ///
    /// It takes effect after all steps launched before and ahead of all launched later.
    fn copy_block(&mut self, from: u32, to: u32);

    /// The model as one that draws by itself, if it can; such a model need not be asked for [`Model::forward`].
    fn drawing(&mut self) -> Option<&mut dyn DrawingModel> {
        None
    }
}

/// Sizes and limits of a loaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelSpec {
    /// Family name as in the model's files, such as `llama` or `qwen3`.
    pub architecture: String,
    /// Where it computes.
    pub device: Device,
    /// Logits a row; at least the tokenizer's vocabulary.
    pub vocab_size: usize,
    /// Longest sequence, prompt and completion together, in tokens.
    pub context_window: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Bytes that one block of `BLOCK_TOKENS` tokens takes over all layers, keys and values.
    pub kv_bytes_per_block: usize,
    /// Blocks of the cache; ids are below this.
    pub num_blocks: usize,
    /// Most tokens in one batch.
    pub max_step_tokens: usize,
    /// Most output rows in one batch.
    pub max_output_rows: usize,
    /// Weights counted as the model's author counts them (a tied head once).
    pub parameters: u64,
    /// Bytes that the weights take in memory.
    pub weight_bytes: u64,
    /// Memory of the GPU that it computes on.
    pub gpu_memory: Option<GpuMemory>,
}

/// A GPU's memory after a model was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuMemory {
    /// What the model takes: weights, activations and cache.
    pub used_bytes: u64,
    /// What is left.
    pub free_bytes: u64,
}

/// Why a step could not be computed.
#[derive(Debug, thiserror::Error)]
pub enum ForwardError {
    /// The batch does not fit the model: a bug of the caller.
    #[error("batch is malformed: {what} is {found}, limit {limit}")]
    Batch {
        /// What does not fit.
        what: &'static str,
        /// Its value in the batch.
        found: usize,
        /// The value it must have or stay within.
        limit: usize,
    },
    /// The GPU refused, or reports that earlier work failed.
    #[cfg(feature = "cuda")]
    #[error("forward pass failed on the GPU")]
    Gpu {
        /// The operation and the driver's own message.
        #[source]
        source: millgate_kernels::cuda::CudaError,
    },
    /// A kernel refused its inputs.
    #[error("forward pass failed in {operation}")]
    Kernel {
        /// Operation of the forward pass.
        operation: &'static str,
        /// The kernel's own message.
        #[source]
        source: KernelError,
    },
}
