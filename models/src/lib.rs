//! From model files on disk to logits.
