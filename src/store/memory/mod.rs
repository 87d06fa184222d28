//! Counters in this process's memory.

mod account;
mod book;
mod counter;
mod counters;
#[cfg(test)]
mod interleaving_tests;
mod sync;

pub use counters::MemoryCounters;
