//! `y = x · wᵀ + bias`, the operation most of the time goes to.
//!
//! Activations are laid out once, then panels of outputs are shared among the threads. Few rows: every panel is read from
//! memory once, as fast as memory goes. Many rows: a group of panels stays in the second-level cache while all rows pass
//! over it.

#[cfg(target_arch = "x86_64")]
mod bytes;
#[cfg(target_arch = "x86_64")]
mod finish;
mod product;
mod rows;
#[cfg(target_arch = "x86_64")]
mod tiles;
mod vectors;

pub use product::{Product, linear, linear_each};
