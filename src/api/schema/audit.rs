//! Documents of the audit log.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// One change: who, from where, what, before and after; secrets are masked.
#[derive(ToSchema)]
pub(crate) struct AuditRow {
    #[schema(inline)]
    object: RowWord,
    id: u64,
    #[schema(format = DateTime)]
    at: String,
    actor: Actor,
    action: String,
    target: String,
    /// `null` for what is new.
    #[schema(required)]
    before: Option<Value>,
    /// `null` for what is gone.
    #[schema(required)]
    after: Option<Value>,
    /// Over this row and the one before.
    hash: String,
}

#[derive(ToSchema, Serialize, Deserialize)]
enum RowWord {
    #[serde(rename = "audit.row")]
    Row,
}

/// Who made a change, and from where.
#[derive(ToSchema)]
#[schema(as = AuditActor)]
pub(crate) struct Actor {
    name: String,
    #[schema(required)]
    id: Option<String>,
    /// The id of the key that was used.
    #[schema(required)]
    key: Option<String>,
    /// The address, or the program.
    #[schema(required)]
    source: Option<String>,
}

/// Whether the chain of the audit log holds.
#[derive(ToSchema)]
pub(crate) struct AuditVerdict {
    #[schema(inline)]
    object: VerdictWord,
    intact: bool,
    /// Rows checked.
    rows: u64,
    /// Note it somewhere else: with it, a later check also sees rows that were cut off.
    head: String,
    #[schema(required)]
    broken: Option<Broken>,
}

#[derive(ToSchema, Serialize, Deserialize)]
enum VerdictWord {
    #[serde(rename = "audit.verification")]
    Verification,
}

/// The first row that does not hold.
#[derive(ToSchema)]
pub(crate) struct Broken {
    row: u64,
    reason: String,
}
