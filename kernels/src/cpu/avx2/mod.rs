//! AVX2 kernels: eight outputs a register.

mod dense;
mod quantised;
mod select;
mod strided;

pub(super) use select::{kernel, strided_tile};
