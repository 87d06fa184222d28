//! What operators see: logs and metrics, every metric in one file.

mod logs;
mod metrics;

pub use logs::{Config, LogFormat, LogsError, init_logs};
pub use metrics::{EngineReading, HttpLabels, Metrics, ModelLabels, TokenClass};
