//! From model files on disk to logits.

mod arch;
mod batch;
mod builtin;
mod checkpoint;
#[cfg(feature = "cuda")]
mod cuda;
mod device;
mod draw;
mod error;
mod gguf_text;
mod kv;
mod layers;
mod model;
mod ops;
mod options;
mod progress;
mod source;
mod summary;
pub mod text;
pub mod weights;
mod workspace;

pub use arch::{ConfigError, SUPPORTED_ARCHITECTURES};
pub use batch::{BLOCK_TOKENS, Batch, PAD_SLOT, SequenceSpan};
pub use checkpoint::Checkpoint;
pub use device::{ChosenDevice, Device, DeviceChoice, DeviceError, DeviceTextError};
pub use draw::{
    Adjustment, Draw, DrawError, DrawingModel, Drawn, MAX_IN_FLIGHT, Output, Penalties, PendingToken, Scores, Step,
    StepOutput,
};
pub use error::LoadError;
pub use model::{ForwardError, GpuMemory, Model, ModelSpec};
pub use options::{Footprint, GpuFootprint, GpuReserve, KvDtypeChoice, LoadOptions, QuantizeTo};
pub use progress::{Bar, Progress, Silent};
pub use source::{Demo, Source, SourceError};
pub use summary::{FormatCount, Summary};
pub use weights::{CacheError, HubError, HubOptions};
