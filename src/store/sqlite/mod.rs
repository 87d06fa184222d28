//! Durable records in one SQLite file: reads through a small pool, writes through one thread that commits in groups.

mod audit;
mod books;
mod group;
mod journal;
mod keys;
mod ledger;
mod notices;
mod open;
mod policy;
mod queue;
mod reader;
mod records;
mod roll_ups;
mod rows;
mod signing_keys;
mod usage;
mod writer;

pub use open::{Config, SqliteRecords};
pub use reader::LedgerReader;
