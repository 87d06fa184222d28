//! Model families: one file each reads its config; the decoder they share computes.

mod config;
mod decoder;
mod error;
mod fields;
mod gguf_fields;
mod llama;
mod mistral;
mod qwen2;
mod qwen3;
mod rope_config;
mod tensors;

pub(crate) use config::DecoderConfig;
pub use config::SUPPORTED_ARCHITECTURES;
pub(crate) use decoder::{Decoder, DecoderLimits, DecoderWeights, workspace_shape};
pub use error::ConfigError;
pub(crate) use fields::Fields;
pub(crate) use gguf_fields::fields_of_gguf;
pub(crate) use tensors::{required_tensors, unexpected_tensor};
