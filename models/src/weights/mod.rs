//! Weight files: safetensors (single and sharded) and GGUF, behind one seam that speaks Hugging Face tensor names.

mod error;
mod format;
mod gguf;
mod gguf_value;
mod gguf_weights;
mod hub;
mod hub_error;
mod hub_files;
mod loader;
mod mapped;
mod names;
mod quantized;
mod quantized_cache;
mod safetensors;
mod tensor;

pub use error::WeightsError;
pub use format::TensorFormat;
pub use gguf::{GgufFile, GgufTensor};
pub use gguf_value::{GgufArray, GgufValue};
pub(crate) use gguf_weights::AttentionHeads;
pub use gguf_weights::GgufWeights;
pub use hub::{HubOptions, fetch};
pub use hub_error::HubError;
pub use hub_files::HubFiles;
pub(crate) use loader::Loader;
pub use mapped::{FileBytes, MappedBytes};
pub use names::{gguf_name, huggingface_name};
pub(crate) use quantized::{QuantizedWeights, Targets};
pub use quantized_cache::CacheError;
pub(crate) use quantized_cache::QuantizedCache;
pub use safetensors::SafetensorsWeights;
pub use tensor::{Shard, TensorHeader, Weights};
