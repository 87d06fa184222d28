//! The one test binary.

mod source_text;
mod tidy;
