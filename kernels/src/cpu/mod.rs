//! The fast implementations, one folder for an instruction set.

mod activations;
#[cfg(target_arch = "x86_64")]
pub(crate) mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
pub(crate) mod avx512;
mod by_level;
mod detect;
pub(crate) mod lanes;
mod scalar;
mod softmax;
mod tile;
mod widen;

pub(crate) use activations::{ActivationRows, bf16_pair, pack_activations};
pub(crate) use by_level::by_level;
pub use detect::Level;
pub(crate) use softmax::{scale_to_pairs, weigh_in_bf16};
pub(crate) use tile::{Ahead, Factors, Kernel, Out, StridedTile, TileInput, XPacking, strided_tile};
pub(crate) use widen::widen_pairs;
