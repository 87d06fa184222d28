//! Who used how much: reports for oneself and for administrators, as JSON, as CSV, and in the shape of OpenAI's admin API.
mod document;
pub(super) mod organization;
mod query;
pub(super) mod report;

pub(crate) use document::{to_csv, to_json};
pub(crate) use organization::{completions, costs};
pub(crate) use query::parse;
pub(crate) use report::{all_usage, own_usage};
