//! The whole server in a test: real router, real listener, real SQLite, a fake or tiny model, a clock moved by hand.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

mod actor;
mod app;
mod collector;
pub(crate) mod contract;
mod issuer;
mod kubernetes;
mod raw;
mod reply;

pub(crate) use actor::{Actor, chat_body};
pub(crate) use app::{Builder, MODEL, TestApp, TierSpec};
pub(crate) use collector::Collector;
pub(crate) use issuer::{Issuer, IssuerKey, sign_with_secret, unsigned};
pub(crate) use kubernetes::{ANOTHER_CA, Kubernetes, Mood, jwt};
pub(crate) use raw::{exchange, exchange_slowly};
pub(crate) use reply::{Reply, without_ids};
