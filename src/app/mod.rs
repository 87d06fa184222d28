//! The composition root: builds store, governance, engines and API from the settings, and takes them down in reverse.

mod answer;
mod api_server;
mod declare;
mod documents;
mod first_models;
mod fleet;
mod live_settings;
mod load;
mod memory;
mod model_spec;
mod plan;
mod served;
mod slot;
mod summary;
mod tier_folder;
mod turns;
mod watched;
mod webhook;

pub use api_server::ApiServer;
pub use documents::HttpDocuments;
pub use plan::{PlanError, Share, Wish, share_memory, share_of_rest};
pub use served::Served;
pub use summary::{LoadedModel, ModelLine, Summary};
pub use tier_folder::TierFolder;
pub use webhook::Webhook;
