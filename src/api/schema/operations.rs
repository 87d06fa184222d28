//! Documents of operations.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the process is doing, in a word.
#[derive(ToSchema)]
pub(crate) struct Health {
    #[schema(inline)]
    status: HealthWord,
}

/// Every part and how it is doing.
#[derive(ToSchema)]
pub(crate) struct HealthDetails {
    #[schema(inline)]
    status: DetailsWord,
    version: String,
    /// Requests being answered.
    open_generations: u64,
    models: Vec<ModelHealth>,
    store: StoreHealth,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum DetailsWord {
    Ok,
    Degraded,
    Starting,
    Draining,
}

/// One model and its engine.
#[derive(ToSchema)]
pub(crate) struct ModelHealth {
    name: String,
    /// `ready`, `not_ready`, `unknown`.
    status: String,
    #[schema(required)]
    phase: Option<String>,
    #[schema(required)]
    reason: Option<String>,
    /// Of loading, 0 to 1.
    #[schema(required)]
    progress: Option<f64>,
    /// `cpu` or `cuda:N`; null until it is loaded.
    #[schema(required)]
    device: Option<String>,
    /// Sequences being computed.
    running: u64,
    /// Requests in the queue.
    waiting: u64,
    /// Requests that stand at a limit until it refills.
    parked: u64,
    /// Since the engine was last seen alive.
    #[schema(required)]
    heartbeat_age_ms: Option<u64>,
    /// The first disagreement in the engine's own books.
    #[schema(required)]
    fault: Option<String>,
}

/// The store of users, tiers and the ledger.
#[derive(ToSchema)]
pub(crate) struct StoreHealth {
    /// `ok`, `failing`.
    status: String,
    /// Ledger rows that could not be written since the start.
    ledger_failures: u64,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HealthWord {
    Ok,
    Starting,
    Draining,
}
