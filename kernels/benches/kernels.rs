//! Speed of every operation, after a check of its answer.
fn main() {}
