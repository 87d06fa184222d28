//! The one test binary: every operation on every instruction set of this machine against the plain reference.

mod linear;
mod random;
