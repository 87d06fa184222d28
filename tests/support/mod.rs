//! The whole server in a test: real router, real listener, real SQLite, a fake or tiny model, a clock moved by hand.

mod actor;
mod app;
mod raw;
mod reply;

pub(crate) use actor::{Actor, chat_body};
pub(crate) use app::{Builder, MODEL, TestApp, TierSpec};
pub(crate) use raw::{exchange, exchange_slowly};
pub(crate) use reply::{Reply, without_ids};
