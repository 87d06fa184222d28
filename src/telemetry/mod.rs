//! What operators see: logs and metrics, every metric in one file; and the one place where credentials are masked.

mod logs;
mod metrics;
mod redact;

pub use logs::{Config, LogFormat, LogsError, init_logs};
pub use metrics::{EngineReading, HttpLabels, Metrics, ModelLabels, TokenClass};
pub use redact::{MASK, guard, redact};
