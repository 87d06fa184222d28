//! The one test binary: every operation on every instruction set of this machine against the plain reference.

#![expect(clippy::unwrap_used, reason = "in the helpers of tests, as in tests")]

mod attention;
#[cfg(feature = "cuda")]
mod cuda;
mod linear;
mod random;
mod rows;
