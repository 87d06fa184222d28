//! NVIDIA GPUs: the same operations on device memory, and what is needed to run them without waiting.
//!
//! [`devices`] finds out, without a panic, what this machine has. A [`Gpu`] is one device with one stream: everything
//! asked of it happens in order, after the call has returned. [`Buffer`] is memory of the device, [`Pinned`] memory of
//! the host it can reach, [`Graph`] a recorded step, [`Event`] a moment to wait for. The operations mirror those of the
//! package's root; each checks shapes before it launches.
//!
//! Nothing here is linked against NVIDIA's libraries: the driver and cuBLAS are opened when they are first asked for.

mod attention;
mod attention_plan;
mod blas;
mod blas_lt;
mod buffer;
mod device;
mod driver;
mod element;
mod elementwise;
mod embedding;
mod error;
mod event;
mod graph;
mod kv;
mod launch;
mod matmul;
mod norm;
mod pinned;
mod quantised;
mod rope;
mod sample;

pub use attention::{AttentionInput, DecodeWork, decode_attention, prefill_attention};
pub use attention_plan::{AttentionPlan, AttentionSizes};
pub use blas::Fallback;
pub use buffer::{Buffer, View, ViewMut};
pub use device::{DeviceMemory, Gpu};
pub use driver::{DeviceInfo, devices};
pub use element::{Activation, Element, Fp8, KvElement};
pub use elementwise::{add_bias, convert, silu_mul};
pub use embedding::{DRAWN, embed, gather_rows};
pub use error::CudaError;
pub use event::Event;
pub use graph::Graph;
pub use kv::{KvCache, copy_blocks};
pub use matmul::{MatMul, matmul};
pub use norm::{add_rms_norm, rms_norm};
pub use pinned::Pinned;
pub use quantised::{MAX_QUANTISED_ROWS, QuantisedMatrix, QuantisedRows, dequantise, quantised_linear};
pub use rope::{QkNorm, RopeStore, rope_store};
pub use sample::{DrawOutcome, DrawRow, LogitAdjustment, MAX_TOP, SampleInput, SampleScratch, sample};
