//! The Millgate server: keys, tiers and limits around a continuously batching engine.

pub mod engine;
