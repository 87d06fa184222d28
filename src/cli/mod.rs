//! The command line: `serve` runs the server, the other commands help to use and to administer one.
//!
//! Every command that scripts may read takes `--json`. Errors are printed once, with their causes and what to do next.

mod args;
mod audit;
mod bench;
mod chat;
mod client;
mod config_command;
mod fail;
mod key;
mod key_args;
mod model;
mod model_args;
mod model_life;
mod money_args;
mod offline;
mod output;
mod price;
mod reconcile;
mod reconcile_args;
mod run;
mod serve;
mod serve_summary;
mod simulate;
mod simulate_args;
mod sse;
mod tier;
mod token;
mod usage;
mod user;

pub use args::Cli;
pub use run::run;
