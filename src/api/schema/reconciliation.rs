//! Documents of reconciliation.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What must be the same, and whether it is.
#[derive(ToSchema)]
pub(crate) struct Reconciliation {
    #[schema(inline)]
    object: ReconciliationWord,
    is_equal: bool,
    #[schema(format = DateTime)]
    start: String,
    #[schema(format = DateTime)]
    end: String,
    disk: ReconciledDisk,
    since_start: ReconciledProcess,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReconciliationWord {
    Reconciliation,
}

/// Rows and roll-ups of the time asked for.
#[derive(ToSchema)]
pub(crate) struct ReconciledDisk {
    rows: u64,
    ledger: ReconciledSums,
    /// Rows that contradict themselves.
    contradictions: u64,
    /// The first of them.
    rows_that_differ: Vec<ReconciledRow>,
    /// Roll-ups that are not the sum of their rows: the roll-up minus the rows.
    roll_ups_that_differ: Vec<ReconciledRollUp>,
}

/// Requests, tokens and money.
#[derive(ToSchema)]
pub(crate) struct ReconciledSums {
    requests: u64,
    prompt_tokens: u64,
    completion_tokens: u64,
    /// US dollars.
    cost: String,
}

/// A row that contradicts itself.
#[derive(ToSchema)]
pub(crate) struct ReconciledRow {
    request_id: String,
    what: String,
}

/// A roll-up that is not the sum of its rows.
#[derive(ToSchema)]
pub(crate) struct ReconciledRollUp {
    /// `1m`, `1h` or `1d`.
    bucket: String,
    #[schema(format = DateTime)]
    start: String,
    subject: String,
    requests: i64,
    failed_requests: i64,
    prompt_tokens: i64,
    cached_tokens: i64,
    completion_tokens: i64,
    nano_usd: i64,
}

/// Counts since the start of the process, read while no settlement was half done.
#[derive(ToSchema)]
pub(crate) struct ReconciledProcess {
    comparisons: Vec<Compared>,
    open_requests: u64,
    /// What the engines had made for open requests.
    in_flight: ReconciledSums,
    /// What open requests had reserved.
    held: ReconciledSums,
    /// Answers whose `usage` is not what the ledger has.
    answers_that_differ: u64,
    answers: Vec<ComparedAnswer>,
}

/// One figure against the ledger rows of this process.
#[derive(ToSchema)]
pub(crate) struct Compared {
    /// `limiter`, `disk`, `engine` or `told`.
    between: String,
    is_equal: bool,
    difference_tokens: u64,
    found: ReconciledSums,
    expected: ReconciledSums,
}

/// An answer that was told something else than the ledger has.
#[derive(ToSchema)]
pub(crate) struct ComparedAnswer {
    request_id: String,
    told: ReconciledSums,
    ledger: ReconciledSums,
}
