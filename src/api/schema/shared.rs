//! What many routes have in common: errors, pages of lists, limits.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::{IntoParams, ToSchema};

/// Every error has this shape.
#[derive(ToSchema)]
pub(crate) struct ErrorBody {
    error: ErrorShape,
}

/// What went wrong.
#[derive(ToSchema)]
#[schema(as = Error)]
pub(crate) struct ErrorShape {
    /// For people. Never holds internals.
    #[schema(example = "Model not found")]
    message: String,
    #[schema(rename = "type")]
    r#type: ErrorType,
    /// The HTTP status.
    #[schema(minimum = 400, maximum = 599)]
    code: u16,
    /// The field to blame.
    #[schema(required)]
    param: Option<String>,
    /// For machines: `reason`, and for a limit that refused `limit`, `scope`, `used`, `requested`, `retry_after_ms`,
    /// `estimate`.
    detail: Option<BTreeMap<String, Value>>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[expect(clippy::enum_variant_names, reason = "the contract's words end so")]
pub(crate) enum ErrorType {
    InvalidRequestError,
    AuthenticationError,
    AuthorizationError,
    NotFoundError,
    ConflictError,
    RateLimitError,
    QuotaError,
    ServerError,
    OverloadedError,
    UnavailableError,
}

/// A list, or a page of one.
#[derive(ToSchema)]
pub(crate) struct Listed<T> {
    #[schema(inline)]
    object: ListWord,
    data: Vec<T>,
    /// Whether there is more behind the last entry.
    has_more: bool,
    /// Give it back as `cursor` for what follows.
    #[schema(required)]
    next_cursor: Option<String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ListWord {
    List,
}

/// Which part of a list.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct PageQuery {
    /// Entries a page.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next_cursor` of the page before.
    cursor: Option<String>,
}

/// A limit.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Limit {
    resource: Resource,
    /// How much passes in a window; money as US dollars in a decimal string.
    amount: Amount,
    /// `30s`, `1m`, `2h`: any interval of that length; `day`, `week`, `month`: calendar periods. Absent for `concurrent`.
    #[schema(pattern = "^([1-9][0-9]{0,4}(s|m|h)|day|week|month)$", example = "1m")]
    window: Option<String>,
    /// Shared by whom; `user` when absent.
    scope: Option<Scope>,
    /// Only for this model.
    model: Option<String>,
    /// What happens above it; `hard` when absent.
    mode: Option<Mode>,
    /// IANA zone of a calendar period; UTC when absent.
    #[schema(example = "Europe/Paris")]
    timezone: Option<String>,
}

/// A whole number; of `cost`, US dollars in a decimal string with at most nine decimals.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(example = 100_000)]
pub(crate) enum Amount {
    Count(u64),
    Dollars(String),
}

/// A limit as an object, or as a text like `5 requests / 2m`, `2000000 tokens / day Europe/Paris` or `4 concurrent`.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(example = "100000 tokens / 1m")]
pub(crate) enum LimitInput {
    Text(String),
    Object(Limit),
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Resource {
    Requests,
    Tokens,
    PromptTokens,
    CompletionTokens,
    Concurrent,
    Cost,
}

/// Shared by whom: `user`: each has their own, over all keys; `key`: each key has its own; `tier`: all members share one.
#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Scope {
    User,
    Key,
    Tier,
}

/// `hard` refuses, `soft` lowers the scheduling weight, `shadow` only counts.
#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Mode {
    Hard,
    Soft,
    Shadow,
}
