//! From model files on disk to logits.

pub mod text;
