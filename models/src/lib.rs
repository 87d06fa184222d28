//! From model files on disk to logits.

mod batch;
mod model;
mod options;
mod progress;
mod source;
pub mod text;

pub use batch::{BLOCK_TOKENS, Batch, PAD_SLOT, SequenceSpan};
pub use model::{ForwardError, Model, ModelSpec};
pub use options::{Footprint, KvDtypeChoice, LoadOptions};
pub use progress::{Bar, Progress, Silent};
pub use source::{Demo, Source, SourceError};
