//! Decoders on NVIDIA GPUs: the same families from the same files, computed by the kernels for CUDA.
//!
//! `load` decides number format and memory, `weights` reads tensors onto the device, `decoder` queues a step's operations,
//! `words` lays a step's numbers out in one buffer, `model` runs steps ahead of their reader and replays those of `recorded`.

mod decoder;
mod draws;
mod linear;
mod load;
mod memory;
mod model;
mod recorded;
mod space;
mod weights;
mod words;

pub(crate) use load::{DeviceLoad, DeviceModel, load, room_bytes};
