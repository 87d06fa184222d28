//! Counters in this process's memory.

mod counter;
mod counters;

pub use counters::MemoryCounters;
