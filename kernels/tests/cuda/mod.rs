//! Operations on a GPU, real or emulated, against the plain reference; and what buffers, graphs and products promise.

mod blas;
mod device;
mod heads;
mod memory;
mod rows;

pub(crate) use device::{check_close, gpu, poisoned, rounded};
