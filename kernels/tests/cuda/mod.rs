//! Operations on a GPU, real or emulated, against the plain reference; and what buffers, graphs and products promise.

mod attention;
mod blas;
mod device;
mod heads;
mod memory;
mod quantised;
mod rows;
mod sample;

pub(crate) use device::{check_close, gpu, poisoned, rounded};
