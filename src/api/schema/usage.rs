//! Documents of prices and of usage reports.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::shared::Moment;

/// One version of a price.
#[derive(ToSchema)]
pub(crate) struct Price {
    #[schema(inline)]
    object: PriceWord,
    /// Ledger rows name it.
    version: u64,
    /// `*`: every model without a price of its own.
    model: String,
    #[schema(inline)]
    unit: UnitWord,
    /// A prompt token, in whole pico-dollars.
    prompt: String,
    /// A prompt token that comes from the prefix cache.
    cached: String,
    /// A token of the answer.
    completion: String,
    usd_per_million_tokens: PerMillion,
    #[schema(format = DateTime)]
    effective_from: String,
    #[schema(format = DateTime)]
    created_at: String,
    /// Whether it holds now.
    in_force: bool,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PriceWord {
    Price,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UnitWord {
    PicoUsdPerToken,
}

/// The same in US dollars for a million tokens.
#[derive(ToSchema)]
pub(crate) struct PerMillion {
    prompt: String,
    cached: String,
    completion: String,
}

/// Prices to set, all or none.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewPrices {
    #[schema(min_items = 1, max_items = 1000)]
    prices: Vec<NewPrice>,
}

/// A price to set; classes left out keep what they cost.
#[derive(ToSchema)]
pub(crate) struct NewPrice {
    /// Which model, or `*` for every model without a price of its own.
    #[schema(min_length = 1, max_length = 253, pattern = "^([*]|[^*]+)$", example = "*")]
    model: String,
    /// A prompt token, in whole pico-dollars: `3000000` is three dollars a million.
    #[schema(pattern = "^[0-9]{1,10}$", example = "3000000")]
    prompt: Option<String>,
    #[schema(pattern = "^[0-9]{1,10}$", example = "300000")]
    cached: Option<String>,
    #[schema(pattern = "^[0-9]{1,10}$", example = "15000000")]
    completion: Option<String>,
    /// Not in the past; now when absent.
    effective_from: Option<Moment>,
}

/// How long a line of a report is.
#[derive(ToSchema, Serialize, Deserialize)]
pub(crate) enum Bucket {
    #[serde(rename = "1m")]
    Minute,
    #[serde(rename = "1h")]
    Hour,
    #[serde(rename = "1d")]
    Day,
}

/// Costs are by the day.
#[derive(ToSchema, Serialize, Deserialize)]
pub(crate) enum DayBucket {
    #[serde(rename = "1d")]
    Day,
}

/// A user's id.
#[derive(ToSchema)]
#[schema(as = UserId, format = "uuid")]
pub(crate) struct UserId(String);

/// What OpenAI's clients group usage by.
#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CompletionsGroup {
    UserId,
    ApiKeyId,
    Model,
    ServiceTier,
}

/// What OpenAI's clients group costs by.
#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum CostsGroup {
    LineItem,
    ApiKeyId,
}

/// How a report is written.
#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ReportFormat {
    Json,
    Csv,
}

/// Sums of the ledger.
#[derive(ToSchema)]
pub(crate) struct UsageReport {
    #[schema(inline)]
    object: ReportWord,
    data: Vec<UsageLine>,
    has_more: bool,
    #[schema(required)]
    next_cursor: Option<String>,
    #[schema(format = DateTime)]
    start: String,
    #[schema(format = DateTime)]
    end: String,
    group_by: Vec<String>,
    /// True when lines add up to more than the whole, because a request counts once for each group of its user.
    counts_once_per_group: bool,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ReportWord {
    List,
}

/// One stretch of time and one combination of groups; each group asked for is a field.
#[derive(ToSchema)]
pub(crate) struct UsageLine {
    #[schema(inline)]
    object: UsageWord,
    #[schema(format = DateTime)]
    start: String,
    #[schema(format = DateTime)]
    end: String,
    /// Those that were charged.
    requests: u64,
    /// Those that were answered with an error; nothing is charged for them.
    failed_requests: u64,
    prompt_tokens: u64,
    /// The part of them that came from the prefix cache.
    cached_tokens: u64,
    completion_tokens: u64,
    /// US dollars.
    cost: String,
    /// Requests that a limit refused.
    refusals: u64,
    #[serde(flatten)]
    groups: BTreeMap<String, String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum UsageWord {
    Usage,
}

/// A page of usage, as OpenAI's admin clients read it.
#[derive(ToSchema)]
pub(crate) struct CompletionsPage {
    #[schema(inline)]
    object: PageWord,
    data: Vec<CompletionsBucket>,
    has_more: bool,
    #[schema(required)]
    next_page: Option<String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum PageWord {
    Page,
}

#[derive(ToSchema)]
pub(crate) struct CompletionsBucket {
    #[schema(inline)]
    object: BucketWord,
    start_time: i64,
    end_time: i64,
    results: Vec<CompletionsResult>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BucketWord {
    Bucket,
}

#[derive(ToSchema)]
pub(crate) struct CompletionsResult {
    #[schema(inline)]
    object: CompletionsWord,
    input_tokens: u64,
    input_cached_tokens: u64,
    input_uncached_tokens: u64,
    output_tokens: u64,
    input_audio_tokens: u64,
    output_audio_tokens: u64,
    num_model_requests: u64,
    #[schema(required)]
    project_id: Option<String>,
    #[schema(required)]
    user_id: Option<String>,
    #[schema(required)]
    api_key_id: Option<String>,
    #[schema(required)]
    model: Option<String>,
    #[schema(required)]
    service_tier: Option<String>,
    #[schema(required)]
    batch: Option<bool>,
}

#[derive(ToSchema, Serialize, Deserialize)]
enum CompletionsWord {
    #[serde(rename = "organization.usage.completions.result")]
    Result,
}

/// A page of costs, as OpenAI's admin clients read it.
#[derive(ToSchema)]
pub(crate) struct CostsPage {
    #[schema(inline)]
    object: PageWord,
    data: Vec<CostsBucket>,
    has_more: bool,
    #[schema(required)]
    next_page: Option<String>,
}

#[derive(ToSchema)]
pub(crate) struct CostsBucket {
    #[schema(inline)]
    object: BucketWord,
    start_time: i64,
    end_time: i64,
    results: Vec<CostsResult>,
}

#[derive(ToSchema)]
pub(crate) struct CostsResult {
    #[schema(inline)]
    object: CostsWord,
    amount: CostsAmount,
    #[schema(required)]
    line_item: Option<String>,
    #[schema(required)]
    project_id: Option<String>,
    #[schema(required)]
    api_key_id: Option<String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
enum CostsWord {
    #[serde(rename = "organization.costs.result")]
    Result,
}

/// Money as OpenAI's clients read it, and exactly.
#[derive(ToSchema)]
pub(crate) struct CostsAmount {
    value: f64,
    #[schema(inline)]
    currency: CurrencyWord,
    /// US dollars in a decimal string.
    exact: String,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum CurrencyWord {
    Usd,
}
