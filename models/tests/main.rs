//! The one test binary.
#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

mod bundled;
#[cfg(feature = "cuda")]
mod cuda;
mod gguf_reading;
mod hostile_files;
mod hub;
mod independence;
mod loading;
mod parity;
mod quantized;
mod rig;
mod text;
mod text_hostile;
mod text_templates;
