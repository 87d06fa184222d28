//! The program itself, started as a user starts it: the bundled model, real sockets, real signals.
#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod crash;
mod demo_model;
mod disk_full;
mod hostile_models;
mod log_level;
mod parallel;
mod power_loss;
mod run_time_models;
mod secrecy;
mod server;
mod stop;

pub(crate) use server::ServerProcess;
