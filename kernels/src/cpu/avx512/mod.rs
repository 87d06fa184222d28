//! AVX-512 kernels: sixteen outputs a register.

mod activations;
mod blocks;
mod codes;
mod dense;
mod quantised;
mod select;
mod softmax;
mod strided;
mod widen;

pub(super) use activations::pack_bytes;
pub(super) use select::{kernel, strided_tile};
pub(super) use softmax::weigh_in_bf16;
pub(super) use widen::widen_pairs;
