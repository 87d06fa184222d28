//! Documents of policy replays.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::shared::Moment;

/// Tiers to try on the requests of the past.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(example = json!({
    "content": "tiers:\n  - {name: free, groups: ['system:authenticated'], limits: ['10 requests / 1m']}\n",
    "start": "2023-11-01T00:00:00Z",
}))]
pub(crate) struct NewSimulation {
    /// The text of a tiers file, or of a ConfigMap `tier-to-group-mapping`.
    content: String,
    #[schema(inline)]
    format: Option<FileFormat>,
    /// From here on the tiers are in force; what was used before counts on their limits.
    start: Moment,
    /// Up to here, exclusive; now when absent.
    end: Option<Moment>,
    /// Single requests to tell; 20 when absent.
    #[schema(maximum = 10_000)]
    cases: Option<u32>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FileFormat {
    Yaml,
    Toml,
}

/// What other tiers would have done.
#[derive(ToSchema)]
pub(crate) struct Simulation {
    #[schema(inline)]
    object: SimulationWord,
    #[schema(format = DateTime)]
    start: String,
    #[schema(format = DateTime)]
    end: String,
    total: SimulationSums,
    /// Requests that were answered with an error; they are not played.
    failed_requests: u64,
    /// Earlier requests that still counted on a limit at the start.
    counted_before: u64,
    /// Requests whose groups are not on record; they keep the tier of that name.
    unknown_groups: u64,
    tiers: Vec<SimulatedTier>,
    /// Those with most refusals first.
    users: Vec<SimulatedUser>,
    users_left_out: u64,
    limits: Vec<SimulatedLimit>,
    cases: Vec<SimulatedCase>,
    cases_left_out: u64,
    /// What no replay can know.
    cannot_know: Vec<String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SimulationWord {
    TierSimulation,
}

/// Requests with their tokens and money.
#[derive(ToSchema)]
pub(crate) struct SimulationAmounts {
    requests: u64,
    tokens: u64,
    /// US dollars.
    cost: String,
}

/// How requests fared.
#[derive(ToSchema)]
pub(crate) struct SimulationSums {
    /// What was served in truth.
    #[serde(flatten)]
    recorded: SimulationAmounts,
    refused: u64,
    /// Answers that would have ended early.
    cut: u64,
    /// Requests over a soft limit.
    slowed: u64,
    /// What would not have been served.
    saved: SimulationAmounts,
}

/// A tier as it would be.
#[derive(ToSchema)]
pub(crate) struct SimulatedTier {
    /// `null`: no tier.
    #[schema(required)]
    tier: Option<String>,
    #[serde(flatten)]
    sums: SimulationSums,
}

/// A user in one tier; whose tier changes is seen from the two names.
#[derive(ToSchema)]
pub(crate) struct SimulatedUser {
    user: String,
    user_id: String,
    tier_before: String,
    #[schema(required)]
    tier_after: Option<String>,
    /// The first request that would have been refused or cut short.
    #[schema(required, format = DateTime)]
    first: Option<String>,
    #[schema(required, format = DateTime)]
    last: Option<String>,
    #[serde(flatten)]
    sums: SimulationSums,
}

/// A limit, or why else.
#[derive(ToSchema)]
pub(crate) struct SimulatedLimit {
    limit: String,
    refused: u64,
    cut: u64,
    saved: SimulationAmounts,
}

/// One request that would have been refused or cut short.
#[derive(ToSchema)]
pub(crate) struct SimulatedCase {
    #[schema(format = DateTime)]
    at: String,
    request_id: String,
    user: String,
    #[schema(required)]
    tier: Option<String>,
    model: String,
    limit: String,
    #[schema(inline)]
    outcome: Outcome,
    saved_tokens: u64,
    /// `null`: waiting would not have helped.
    #[schema(required)]
    retry_after_ms: Option<u64>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Outcome {
    Refused,
    Cut,
}
