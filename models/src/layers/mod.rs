//! Layers shared by all families: each owns its weights and knows its one step of the forward pass.

mod attention;
mod embedding;
mod linear;
mod mlp;
mod norm;
mod rope;

pub(crate) use attention::{Attention, AttentionShape, AttentionStep, QkNormWeights};
pub(crate) use embedding::Embedding;
pub(crate) use linear::Linear;
pub(crate) use mlp::Mlp;
pub(crate) use norm::RmsNorm;
pub(crate) use rope::{RopeScaling, inverse_frequencies};
