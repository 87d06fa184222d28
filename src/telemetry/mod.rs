//! What operators see: logs and metrics, every metric in one file; and the one place where credentials are masked.

mod instruments;
mod logs;
mod metrics;
mod page;
mod redact;
mod traces;

pub use instruments::{Counter, Distribution, Family, Gauge, Histogram, OTHER};
pub use logs::{Config, LogFormat, LogsError, NextFilter, check_log_filter, init_logs};
pub use metrics::{EngineReading, Metrics, Sizes, Stages, Tenant, TokenClass};
pub use page::PageFormat;
pub use redact::{MASK, guard, redact};
pub use traces::{Outcome, RefusedRequest, RequestTrace, TracedRequest, Tracer, TracesConfig, TracesError};
