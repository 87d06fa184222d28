//! The plain scalar version of every operation: the specification the fast versions are tested against.
//!
//! Lengths are the caller's promise here; the public operations check them first.

mod draw;
mod layers;

pub use draw::{Drawing, draw, log_softmax, ranked, uniform};
pub use layers::{
    Matrix, QuantisedBlock, add, linear, linear_by_runs, paged_attention, quantise_block, quantise_run, rms_norm,
    rope_store, silu_mul,
};
