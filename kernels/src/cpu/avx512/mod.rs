//! AVX-512 kernels: sixteen outputs a register.

mod abreast;
mod activations;
mod blocks;
mod codes;
mod dense;
mod quantised;
mod select;
mod signed;
mod softmax;
mod strided;
mod widen;

pub(super) use abreast::pack_abreast;
pub(super) use activations::pack_bytes;
pub(super) use blocks::{minima_of_block, signed_bytes, unsigned_bytes};
pub(super) use codes::halves;
pub(super) use dense::{load, store};
pub(super) use quantised::fetch_ahead;
pub(super) use select::{kernel, strided_tile};
pub(crate) use signed::{SIGNED_RUN_BYTES, sign_codes};
pub(super) use softmax::{scale_to_pairs, weigh_in_bf16};
pub(super) use widen::widen_pairs;
