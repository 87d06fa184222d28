//! The Millgate server: keys, tiers and limits around a continuously batching engine.
#![forbid(unsafe_code)]

pub mod api;
pub mod app;
pub mod cli;
pub mod config;
pub mod engine;
pub mod governance;
pub mod store;
pub mod telemetry;
