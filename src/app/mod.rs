//! The composition root: builds store, governance, engines and API from the settings, and takes them down in reverse.

mod declare;
mod load;
mod memory;
mod plan;
mod served;
mod summary;

pub use plan::{PlanError, Share, Wish, share_memory};
pub use served::Served;
pub use summary::{LoadedModel, ModelLine, Summary};
