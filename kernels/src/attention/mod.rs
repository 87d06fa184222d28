//! Causal attention of a ragged batch over the paged cache.
//!
//! Work is cut into tiles: a few consecutive queries of one sequence with all query heads that share a key/value head,
//! so that a key or value is read once for all of them. Two things fix the order of sums whatever the batch: keys are
//! taken in blocks of [`crate::BLOCK_TOKENS`] aligned to positions, with one rescaling of the running softmax a block;
//! and running sums start anew at every segment of 512 positions, whose results are then merged in order. Segments are
//! what long contexts at small batch are shared among threads by; they are there even when nothing is shared.

mod batch;
mod softmax;
mod tile;
mod work;

pub use batch::{AttentionBatch, SequenceSpan, paged_attention};
