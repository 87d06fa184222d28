//! Causal attention of a ragged batch over the paged cache.
//!
//! Work is cut into tiles: a few consecutive queries of one sequence with all query heads that share a key/value head,
//! so that a key or value is read once for all of them. The order of sums is the same whatever the batch: each segment of
//! 512 positions has a softmax of its own, with the largest of all its scores as its peak, and the results of segments
//! are merged in order, each rescaled to the common peak. Segments are also what long contexts at small batch are shared
//! among threads by; they are there even when nothing is shared.
//!
//! Where the machine is faster with dot products of bf16 pairs than with f32, or has tile registers for them, and the cache
//! holds bf16, scaled queries and the weights of a softmax are rounded to bf16 and sums stay in f32; everywhere else all of
//! it is f32. Tile registers take heads of whole 32 elements; shorter ones stay with f32.

mod batch;
mod segment;
mod softmax;
mod tile;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod widen;
mod work;

pub use batch::{AttentionBatch, SequenceSpan, paged_attention};
