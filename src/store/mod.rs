//! Where governance keeps things: SQLite for what must survive, memory for what is counted right now. The only SQL.

mod memory;
mod sqlite;

pub use memory::MemoryCounters;
pub use sqlite::{Config, LedgerReader, SqliteRecords};
