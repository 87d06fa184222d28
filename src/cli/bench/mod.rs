//! `millgate bench`: concurrent streaming clients over HTTP, and what they saw.

mod load;
mod prompts;
mod report;

pub(super) use load::run;
