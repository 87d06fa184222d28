//! CPU operations of Millgate: slices in, slices out.
//!
//! This file is the list of operations. Each one checks its shapes, then hands rows to the implementation
//! picked once for this machine (see [`Level`]). The plain scalar version of every operation, its specification,
//! is in [`mod@reference`].
//!
//! | operation | what it does |
//! |---|---|
//! | [`linear`], [`linear_each`] | `y = x · wᵀ + bias` with dense or quantised packed weights, with one matrix or several |
//! | [`rms_norm`], [`add_rms_norm`], [`add`] | root-mean-square norm, with the residual sum before it |
//! | [`silu_mul`] | the gate of a gated feed-forward layer |
//! | [`rope_store`] | optional q/k norm, rotary position, keys and values into their cache slots |
//! | [`paged_attention`] | causal attention of a ragged batch over cache blocks |
//!
//! The arithmetic contract, on which prefix caching and batching rely: the bits of an output row depend on that row
//! and its own context, never on its batch mates, on chunking, on the number of threads or on how work was cut.

mod activation;
mod attention;
mod cpu;
#[cfg(feature = "cuda")]
pub mod cuda;
mod error;
mod format;
mod kv;
mod linear;
mod memory;
mod norm;
mod packed;
mod panel_writer;
mod panels;
mod pool;
pub mod quant;
mod quantise;
pub mod reference;
mod rope;
mod share;
mod turn;

pub use activation::silu_mul;
pub use attention::{AttentionBatch, SequenceSpan, paged_attention};
pub use cpu::Level;
pub use error::KernelError;
pub use format::WeightFormat;
pub use kv::{BLOCK_TOKENS, KvDtype, KvLayer, KvShape, PAD_SLOT};
pub use linear::{Product, linear, linear_each};
pub use memory::{Floats, WeightMemory};
pub use norm::{add, add_rms_norm, rms_norm};
pub use packed::{PackedMatrix, PackedPart};
pub use pool::Pool;
pub use rope::{QkNorm, RopeStore, RopeTable, rope_store};
pub use turn::Turn;
