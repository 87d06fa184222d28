//! Policy replay: the recorded ledger runs once more under other tiers, through the limiter itself, on a clock of its own.
//!
//! What it cannot know is listed in [`UNKNOWN`]: a replay tells what these requests would have met, not what people would
//! have done about it.

mod report;
mod run;
mod stage;

pub use report::{Amounts, Case, LimitLine, Report, UNKNOWN, UserLine, Verdicts};
pub use run::{Past, Question, Recorded, ReplayError, RowRange, simulate, tiers_after};
pub use stage::{ReplayClock, Stage};
