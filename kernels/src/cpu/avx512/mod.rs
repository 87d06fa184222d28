//! AVX-512 kernels: sixteen outputs a register.

mod dense;
mod quantised;
mod select;

pub(super) use select::{f32_tile, kernel};
