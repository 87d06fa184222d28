//! Why a model cannot be opened or loaded: the one error that callers see.

use std::io;
use std::path::PathBuf;

#[cfg(feature = "cuda")]
use indicatif::BinaryBytes as Bytes;
use millgate_kernels::KernelError;

use crate::arch::ConfigError;
use crate::text::TextError;
use crate::weights::{HubError, WeightsError};

/// Why a model cannot be opened or loaded; every message names the file concerned.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// There is no model in the folder.
    #[error("`{}` holds no model: neither `config.json` nor exactly one .gguf file", path.display())]
    NoModel {
        /// The folder.
        path: PathBuf,
    },
    /// The source has to be downloaded first.
    #[error("`{source_text}` is not on this machine")]
    NotLocal {
        /// The source as the user wrote it.
        source_text: String,
    },
    /// The model cannot be downloaded.
    #[error(transparent)]
    Hub(#[from] HubError),
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The config describes no model that we can compute.
    #[error("model config `{file}` cannot be used")]
    Config {
        /// The file.
        file: String,
        /// The key and what is wrong with it.
        #[source]
        source: ConfigError,
    },
    /// The weight files are missing, damaged or not supported.
    #[error(transparent)]
    Weights(#[from] WeightsError),
    /// Tokenizer or chat template cannot be used.
    #[error(transparent)]
    Text(#[from] TextError),
    /// Cache or activations do not fit into memory.
    #[error("not enough memory for the KV cache and activations")]
    Memory {
        /// What was asked for.
        #[source]
        source: KernelError,
    },
    /// No matrix of the model can be quantised.
    #[error("no matrix of the model can be quantized to {to}: they are in {formats}; leave `quantize` out")]
    NothingToQuantize {
        /// The format asked for.
        to: &'static str,
        /// The formats they are in.
        formats: String,
    },
    /// The GPU refused, or has not enough memory.
    #[cfg(feature = "cuda")]
    #[error("cannot load the model on the GPU")]
    Gpu {
        /// What went wrong.
        #[source]
        source: millgate_kernels::cuda::CudaError,
    },
    /// The GPU's cache has the number format of the model's activations.
    #[cfg(feature = "cuda")]
    #[error(
        "on a GPU a model in {weights} has its KV cache in the same format, or in fp8 where it is bf16; leave `kv_dtype` at auto"
    )]
    GpuKvDtype {
        /// The format.
        weights: &'static str,
    },
    /// Rows of such heads in eight bits are no whole loads of sixteen bytes.
    #[cfg(feature = "cuda")]
    #[error(
        "a KV cache in fp8 needs heads of a multiple of 16 elements, the model has {head_dim}; leave `kv_dtype` at auto"
    )]
    GpuFp8Heads {
        /// Elements of a head.
        head_dim: usize,
    },
    /// The model does not fit into the memory of the GPU.
    #[cfg(feature = "cuda")]
    #[error(
        "`{device}` has {} free and the model needs {}: {} of weights, {} of activations and buffers, at least {} of KV cache, \
         and {} to spare; beside the rest there is room for {} of weights, or for {} of KV cache: choose a smaller model or one \
         in fewer bits, a smaller `kv_memory` or `context_window`, fewer `engine.step_tokens`, or another device",
        Bytes(*.free), Bytes(.need.bytes().saturating_add(*.spare)), Bytes(.need.weights), Bytes(.need.activations),
        Bytes(.need.cache), Bytes(*.spare), Bytes(.free.saturating_sub(.need.bytes() - .need.weights).saturating_sub(*.spare)),
        Bytes(.free.saturating_sub(.need.bytes() - .need.cache).saturating_sub(*.spare))
    )]
    GpuTooSmall {
        /// The device.
        device: crate::Device,
        /// Bytes free on it.
        free: u64,
        /// What the model needs.
        need: crate::options::GpuFootprint,
        /// Bytes that stay free.
        spare: u64,
    },
    /// The CPU has no cache of this format.
    #[error("`kv_dtype = fp8` is for GPUs; on the CPU there are f32 and bf16")]
    CpuKvDtype,
    /// The device that the options name cannot be used.
    #[error(transparent)]
    Device {
        /// Which, and why.
        source: crate::DeviceError,
    },
    /// The context window asked for is not one that the model has.
    #[error("context window {wanted} is not within the model's 1 to {model} tokens")]
    ContextWindow {
        /// Tokens asked for.
        wanted: usize,
        /// Tokens the model was made for.
        model: usize,
    },
}
