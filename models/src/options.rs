//! What the caller decides about a load, and what a load will take.

use std::fmt;
use std::sync::Arc;

use millgate_kernels::{KvDtype, Pool};

use crate::device::Device;

/// What the caller decides about a load.
#[derive(Clone)]
pub struct LoadOptions {
    /// Where the model computes.
    pub device: Device,
    /// The process's one thread pool.
    pub pool: Arc<Pool>,
    /// Blocks of the KV cache; on a GPU the most, and fewer where its memory has no room for them.
    pub num_blocks: usize,
    /// Size of the KV cache on a GPU, if it was set; `num_blocks` bounds it all the same.
    pub kv_bytes: Option<u64>,
    /// What a GPU's memory must have left for models that are loaded onto it later.
    pub reserve: GpuReserve,
    /// On a GPU, compute a row alike whatever else is in its step, at some cost in speed. On the CPU it always is so.
    pub deterministic: bool,
    /// Most tokens in one step: sizes the activations.
    pub max_step_tokens: usize,
    /// Most rows a step returns logits for.
    pub max_output_rows: usize,
    /// Element type of the KV cache.
    pub kv_dtype: KvDtypeChoice,
    /// A context window smaller than the model's own, in tokens; the model's own when absent.
    pub context_window: Option<usize>,
}

impl fmt::Debug for LoadOptions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("LoadOptions")
            .field("device", &self.device)
            .field("num_blocks", &self.num_blocks)
            .field("max_step_tokens", &self.max_step_tokens)
            .field("max_output_rows", &self.max_output_rows)
            .field("kv_dtype", &self.kv_dtype)
            .field("context_window", &self.context_window)
            .finish_non_exhaustive()
    }
}

/// Which element type the KV cache gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KvDtypeChoice {
    /// f32 for models in f32, bf16 for all others.
    #[default]
    Auto,
    /// 4 bytes an element.
    F32,
    /// 2 bytes an element.
    Bf16,
    /// 1 byte an element (e4m3); on a GPU only, for models in bf16.
    Fp8,
}

impl KvDtypeChoice {
    /// The type for a model whose weights are, or are not, f32.
    pub fn resolve(self, weights_are_f32: bool) -> KvDtype {
        match self {
            Self::F32 => KvDtype::F32,
            // Who asks for it on the CPU is refused before this matters.
            Self::Bf16 | Self::Fp8 => KvDtype::Bf16,
            Self::Auto if weights_are_f32 => KvDtype::F32,
            Self::Auto => KvDtype::Bf16,
        }
    }
}

/// A part of a GPU's memory that is kept for others.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct GpuReserve {
    /// What they need at least, in bytes.
    pub bytes: u64,
    /// How many of them have a cache without a set size, and an equal part of what remains.
    pub caches: u64,
}

/// The least of a GPU's memory that a model needs, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GpuFootprint {
    /// Weights as they will lie there.
    pub weights: u64,
    /// Activations and buffers.
    pub activations: u64,
    /// The cache: as it was set, else the smallest useful one.
    pub cache: u64,
}

impl GpuFootprint {
    /// All of it.
    pub fn bytes(&self) -> u64 {
        self.weights.saturating_add(self.activations).saturating_add(self.cache)
    }
}

/// Memory that a load will take, known before anything heavy is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Footprint {
    /// Weights as they will lie in memory.
    pub weight_bytes: u64,
    /// Activations and position tables for the options' step size and context window.
    pub workspace_bytes: u64,
    /// One block of the KV cache over all layers.
    pub kv_bytes_per_block: u64,
}

/// What dense weights are quantised to while they load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QuantizeTo {
    /// Eight bits a weight: half of bf16, hardly any loss.
    Q8_0,
    /// Four bits a weight, six for embedding and output head: a third of bf16, some loss.
    Q4K,
}

impl QuantizeTo {
    /// The name used in messages and configuration.
    pub fn name(self) -> &'static str {
        match self {
            Self::Q8_0 => "q8_0",
            Self::Q4K => "q4_k",
        }
    }
}
