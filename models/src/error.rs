//! Why a model cannot be opened or loaded: the one error that callers see.

use std::io;
use std::path::PathBuf;

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
    /// The context window asked for is not one that the model has.
    #[error("context window {wanted} is not within the model's 1 to {model} tokens")]
    ContextWindow {
        /// Tokens asked for.
        wanted: usize,
        /// Tokens the model was made for.
        model: usize,
    },
}
