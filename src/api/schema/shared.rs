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
    #[param(min_length = 1)]
    cursor: Option<String>,
}

/// A moment as text in RFC 3339, or seconds since the Unix epoch.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Moment {
    Text(MomentText),
    Seconds(MomentSeconds),
}

/// RFC 3339.
#[derive(ToSchema)]
#[schema(format = DateTime)]
pub(crate) struct MomentText(String);

/// Seconds since the Unix epoch, of the years 1 to 9999.
#[derive(ToSchema)]
#[schema(minimum = -62_135_596_800_i64, maximum = 253_402_207_200_i64)]
pub(crate) struct MomentSeconds(i64);

/// A line that people read.
#[derive(ToSchema)]
#[schema(
    min_length = 1,
    max_length = 253,
    pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f][^\\u0000-\\u001f\\u007f-\\u009f]*$"
)]
pub(crate) struct Words(String);

/// A group's name: without spaces at its ends and without control characters.
#[derive(ToSchema)]
#[schema(
    min_length = 1,
    max_length = 253,
    pattern = "^[^\\s\\u0000-\\u001f\\u007f-\\u009f]([^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f])?$"
)]
pub(crate) struct GroupName(String);

/// A group that users can be given: none that is named `system:`.
#[derive(ToSchema)]
#[schema(
    min_length = 1,
    max_length = 253,
    pattern = "^(?!system:)[^\\s\\u0000-\\u001f\\u007f-\\u009f]([^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f])?$"
)]
pub(crate) struct GivenGroup(String);

/// The name of a model, which need not exist yet.
#[derive(ToSchema)]
#[schema(
    min_length = 1,
    max_length = 253,
    pattern = "^[^\\u0000-\\u001f\\u007f-\\u009f]*[^\\s\\u0000-\\u001f\\u007f-\\u009f][^\\u0000-\\u001f\\u007f-\\u009f]*$"
)]
pub(crate) struct AnyModelName(String);

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
    Count(Count),
    Dollars(Dollars),
}

/// As far as numbers in JSON are exact everywhere.
#[derive(ToSchema)]
#[schema(minimum = 0, maximum = 9_007_199_254_740_991_i64)]
pub(crate) struct Count(u64);

/// US dollars.
#[derive(ToSchema)]
#[schema(pattern = "^[0-9][0-9_,]*(\\.[0-9]{1,9})?$", example = "20.50")]
pub(crate) struct Dollars(String);

/// A limit to set.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewLimit)]
pub(crate) struct LimitToSet {
    resource: Resource,
    /// How much passes in a window; money as US dollars in a decimal string.
    amount: AmountToSet,
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

/// A limit of a key to set: it counts per key.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
#[schema(as = NewKeyLimit)]
pub(crate) struct KeyLimitToSet {
    resource: Resource,
    amount: AmountToSet,
    /// As in limits of tiers.
    #[schema(pattern = "^([1-9][0-9]{0,4}(s|m|h)|day|week|month)$", example = "1m")]
    window: Option<String>,
    scope: Option<KeyScope>,
    model: Option<String>,
    mode: Option<Mode>,
    #[schema(example = "Europe/Paris")]
    timezone: Option<String>,
}

/// Limits of a key count per key.
#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeyScope {
    Key,
}

/// A whole number above zero; of `cost`, US dollars in a decimal string with at most nine decimals.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(as = NewAmount, example = 100_000)]
pub(crate) enum AmountToSet {
    Count(CountToSet),
    Dollars(Dollars),
}

/// At least one; as far as numbers in JSON are exact everywhere.
#[derive(ToSchema)]
#[schema(as = NewCount, minimum = 1, maximum = 9_007_199_254_740_991_i64)]
pub(crate) struct CountToSet(u64);

/// A limit in text form.
#[derive(ToSchema)]
#[schema(
    pattern = "^\\s*[0-9][0-9_,.]*\\s+(requests?|tokens?|prompt_tokens?|completion_tokens?|concurrent|usd|cost)(\\s.*)?$",
    example = "100000 tokens / 1m"
)]
pub(crate) struct LimitText(String);

/// A limit of a key, in either form.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(example = "100000 tokens / 1m")]
pub(crate) enum KeyLimitInput {
    Text(LimitText),
    Object(KeyLimitToSet),
}

/// A limit as an object, or as a text like `5 requests / 2m`, `2000000 tokens / day Europe/Paris` or `4 concurrent`.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(example = "100000 tokens / 1m")]
pub(crate) enum LimitInput {
    Text(LimitText),
    Object(LimitToSet),
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
