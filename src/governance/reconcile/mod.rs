//! Reconciliation: what the engines say they made, what the ledger holds, what the limiter counted and what clients were told
//! must be the same, and every roll-up must be the sum of its rows.
//!
//! Two parts. `durable` looks at what is on the disk and needs no server. `meter` counts since the start of the process and is
//! read at a moment at which no settlement is half done, so requests in flight change nothing.

mod durable;
mod live;
mod meter;

pub use durable::{Books, DurableReport, Finding, OnDisk, RollUpDifference, check_books};
pub use live::{Comparison, LiveReport};
pub(super) use meter::Meter;
pub use meter::{Receipt, Sums};
