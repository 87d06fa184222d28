//! AVX-512 kernels: sixteen outputs a register.

mod activations;
mod blocks;
mod codes;
mod dense;
mod quantised;
mod select;

pub(super) use activations::pack_bytes;
pub(super) use select::{f32_tile, kernel};
