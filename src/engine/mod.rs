//! Runs one model for many requests at once: continuous batching, paged cache, sampling, one thread a model.

mod config;
mod handle;
mod inbox;
mod mailbox;
mod pulse;
mod request;

pub use config::Config;
pub use handle::{BlockCounts, EngineHandle, EngineSpec, EngineStatus, EngineTotals, EventStream, SubmitError};
pub use request::{
    CacheSalt, Event, Failure, FinishReason, FlowId, Request, RequestId, SamplingParams, TokenLogprob, TokenUsage,
};
