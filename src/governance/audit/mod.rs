//! The audit log: who changed what, when, from where, before and after; append-only and chained by hashes.
//!
//! [`entry`] derives what is written from a change and the state that the store found in the same transaction; [`AuditRow`]
//! seals it to the row before; [`Verification`] follows the chain and names the first row that does not hold.

mod author;
mod chain;
mod entry;

pub use author::Author;
pub use chain::{AuditFilter, AuditRow, Broken, GENESIS, Head, Verification};
pub use entry::{CONFIG, Entry, Found, entry};
