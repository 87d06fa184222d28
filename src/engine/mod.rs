//! Runs one model for many requests at once: continuous batching, paged cache, sampling, one thread a model.
//!
//! Pure parts, tested without a model or a thread: `scheduler`, `fairness`, `blocks`, `prefix_cache`, `sampler`, `guess`, `pace`.
//! `stepper` puts them together, `worker` gives them a thread and a clock, `handle` is what the rest of the server holds.

mod asking;
mod blocks;
mod config;
mod desk;
mod fairness;
pub mod fake;
mod figures;
mod generation;
mod guess;
mod handle;
mod inbox;
mod mailbox;
mod pace;
mod prefix_cache;
mod pulse;
mod random;
mod request;
mod runner;
mod sampler;
mod scheduler;
mod sequence;
mod softmax;
mod stepper;
mod transcript;
mod worker;

pub use config::Config;
pub use handle::{
    BlockCounts, EngineHandle, EngineSpec, EngineStatus, EngineTotals, EventStream, QueueBound, SubmitError,
};
pub use request::{
    CacheSalt, Event, Failure, FinishReason, FlowId, Request, RequestId, SamplingParams, TokenLogprob, TokenUsage,
};
pub use worker::{EngineError, spawn};
