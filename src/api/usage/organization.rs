//! Usage and costs in the shape of OpenAI's admin API, so that its typed clients read them.
//!
//! Organisation and project are this server; `user_id` is a user's id, `api_key_id` a key's id, `service_tier` the tier.
use axum::extract::{Extension, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::query::parse_bucket;
use crate::api::error::ApiError;
use crate::api::input::Query;
use crate::api::json::json_response;
use crate::api::schema;
use crate::api::state::Api;
use crate::governance::limits::Zone;
use crate::governance::pricing::usd;
use crate::governance::usage::{BucketLength, Buckets, UsageGroup, UsageQuery, UsageSum};
use crate::governance::{KeyId, Principal, UserId};

const SECOND_US: i64 = 1_000_000;

/// `GET /v1/organization/usage/completions`.
#[utoipa::path(
    get,
    path = "/v1/organization/usage/completions",
    tag = "Administration",
    summary = "Usage as OpenAI's admin clients read it",
    params(
        ("start_time" = i64, Query, minimum = 0, maximum = 253_402_207_200_i64, description = "First second"),
        ("end_time" = Option<i64>, Query, minimum = 0, maximum = 253_402_207_200_i64, description = "First second that is not included; now when absent"),
        ("bucket_width" = Option<schema::Bucket>, Query, description = "How long each of them is; a day when absent"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1440, description = "Buckets a page: at most 31 days, 168 hours or 1440 minutes"),
        ("page" = Option<String>, Query, pattern = "^page_", description = "`next_page` of the page before"),
        ("group_by[]" = Option<Vec<schema::CompletionsGroup>>, Query, description = "`service_tier` is the tier"),
        ("user_ids[]" = Option<Vec<schema::UserId>>, Query, max_items = 1, description = "Only of this user, by id"),
        ("api_key_ids[]" = Option<Vec<String>>, Query, max_items = 1, description = "Only with this key"),
        ("models[]" = Option<Vec<String>>, Query, max_items = 1, description = "Only for this model"),
    ),
    responses((status = 200, description = "A page of buckets", body = schema::CompletionsPage)),
)]
pub(crate) async fn completions(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(query.as_deref())?;
    let asked = Asked::take(&mut query, &["user_id", "api_key_id", "model", "service_tier"], api.clock.now_us())?;
    query.refuse_unknown()?;
    let sums = asked.read(&api, &principal).await?;
    let result = |sum: &UsageSum| {
        json!({
            "object": "organization.usage.completions.result",
            "input_tokens": sum.usage.prompt_tokens,
            "input_cached_tokens": sum.usage.cached_tokens,
            "input_uncached_tokens": sum.usage.prompt_tokens - sum.usage.cached_tokens,
            "output_tokens": sum.usage.completion_tokens,
            "input_audio_tokens": 0,
            "output_audio_tokens": 0,
            "num_model_requests": sum.requests,
            "project_id": null,
            "user_id": asked.value("user_id", sum),
            "api_key_id": asked.value("api_key_id", sum),
            "model": asked.value("model", sum),
            "service_tier": asked.value("service_tier", sum),
            "batch": null,
        })
    };
    Ok(json_response(StatusCode::OK, &asked.page(&sums, result)))
}

/// `GET /v1/organization/costs`.
#[utoipa::path(
    get,
    path = "/v1/organization/costs",
    tag = "Administration",
    summary = "Costs as OpenAI's admin clients read them",
    params(
        ("start_time" = i64, Query, minimum = 0, maximum = 253_402_207_200_i64, description = "First second"),
        ("end_time" = Option<i64>, Query, minimum = 0, maximum = 253_402_207_200_i64, description = "First second that is not included; now when absent"),
        ("bucket_width" = Option<schema::DayBucket>, Query, description = "How long each of them is"),
        ("limit" = Option<u32>, Query, minimum = 1, maximum = 1440, description = "Buckets a page: at most 31 days, 168 hours or 1440 minutes"),
        ("page" = Option<String>, Query, pattern = "^page_", description = "`next_page` of the page before"),
        ("group_by[]" = Option<Vec<schema::CostsGroup>>, Query, description = "`line_item` is the model"),
        ("user_ids[]" = Option<Vec<schema::UserId>>, Query, max_items = 1, description = "Only of this user, by id"),
        ("api_key_ids[]" = Option<Vec<String>>, Query, max_items = 1, description = "Only with this key"),
        ("models[]" = Option<Vec<String>>, Query, max_items = 1, description = "Only for this model"),
    ),
    responses((status = 200, description = "A page of days", body = schema::CostsPage)),
)]
pub(crate) async fn costs(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(query.as_deref())?;
    // A line item is a model: that is what has a price.
    let asked = Asked::take(&mut query, &["line_item", "api_key_id"], api.clock.now_us())?;
    query.refuse_unknown()?;
    if asked.length != BucketLength::Day {
        return Err(ApiError::invalid(Some("bucket_width"), "`bucket_width` must be `1d` for costs"));
    }
    let sums = asked.read(&api, &principal).await?;
    let result = |sum: &UsageSum| {
        // OpenAI's clients read a number; the exact decimal string is beside it.
        let exact = usd(sum.cost_nano_usd);
        json!({
            "object": "organization.costs.result",
            "amount": {"value": exact.parse::<f64>().unwrap_or(f64::MAX), "currency": "usd", "exact": exact},
            "line_item": asked.value("line_item", sum),
            "project_id": null,
            "api_key_id": asked.value("api_key_id", sum),
        })
    };
    Ok(json_response(StatusCode::OK, &asked.page(&sums, result)))
}

/// One page that was asked for.
struct Asked {
    length: BucketLength,
    query: UsageQuery,
    group_by: Vec<String>,
    next_page: Option<String>,
}

impl Asked {
    fn take(query: &mut Query, known_groups: &[&str], now_us: i64) -> Result<Self, ApiError> {
        let start_us = take_second(query, "start_time")?
            .ok_or_else(|| ApiError::invalid(Some("start_time"), "`start_time` is required"))?;
        let end_us = take_second(query, "end_time")?.unwrap_or(now_us + 1);
        if start_us >= end_us {
            return Err(ApiError::invalid(Some("start_time"), "`start_time` must be before `end_time`"));
        }
        let length =
            query.take("bucket_width").map_or(Ok(BucketLength::Day), |text| parse_bucket(&text, "bucket_width"))?;
        let buckets = take_limit(query, length)?;
        let group_by = take_list(query, "group_by");
        let groups = group_by.iter().map(|group| parse_group(group, known_groups)).collect::<Result<Vec<_>, _>>()?;
        let from_us = match query.take("page") {
            None => start_us,
            Some(page) => page
                .strip_prefix("page_")
                .and_then(|at| at.parse().ok())
                .filter(|at| (start_us..end_us).contains(at))
                .ok_or_else(|| ApiError::invalid(Some("page"), "`page` is not one of this report"))?,
        };
        let to_us = after(length, buckets, from_us).min(end_us);
        let one = |query: &mut Query, name: &str| match take_list(query, name).as_slice() {
            [] => Ok(None),
            [one] => Ok(Some(one.clone())),
            _ => Err(ApiError::invalid(Some(name), format!("`{name}` may name one only: group by it for several"))),
        };
        let user = one(query, "user_ids")?.map(|id| {
            id.parse().map(UserId).map_err(|_| ApiError::invalid(Some("user_ids"), "`user_ids` must name a user's id"))
        });
        Ok(Self {
            length,
            query: UsageQuery {
                start_us: from_us,
                end_us: to_us,
                buckets: Buckets::new(length, &Zone::utc(), from_us, to_us),
                group_by: groups,
                user: user.transpose()?,
                key: one(query, "api_key_ids")?.map(|id| KeyId::from(id.as_str())),
                model: one(query, "models")?,
                ..UsageQuery::default()
            },
            group_by,
            next_page: (to_us < end_us).then(|| format!("page_{to_us}")),
        })
    }

    async fn read(&self, api: &Api, principal: &Principal) -> Result<Vec<UsageSum>, ApiError> {
        let mut sums = api.governor.usage(principal, &self.query).await?;
        // OpenAI's shape knows no refusals: a line that holds nothing else would say nothing.
        sums.retain(|sum| sum.requests > 0);
        Ok(sums)
    }

    /// The value of a group in a line; `null` when it was not asked for.
    fn value(&self, group: &str, sum: &UsageSum) -> Value {
        let Some(at) = self.group_by.iter().position(|asked| asked == group) else { return Value::Null };
        match sum.user.filter(|_| group == "user_id") {
            Some(user) => user.to_string().into(),
            None => sum.group[at].as_str().into(),
        }
    }

    fn page(&self, sums: &[UsageSum], result: impl Fn(&UsageSum) -> Value) -> Value {
        let bucket = |(start_us, end_us): (i64, i64)| {
            let results: Vec<Value> = sums.iter().filter(|sum| sum.start_us == start_us).map(&result).collect();
            json!({
                "object": "bucket",
                "start_time": start_us.div_euclid(SECOND_US),
                "end_time": end_us.div_euclid(SECOND_US),
                "results": results,
            })
        };
        let data: Vec<Value> = self.query.buckets.iter().flat_map(Buckets::iter).map(bucket).collect();
        json!({"object": "page", "data": data, "has_more": self.next_page.is_some(), "next_page": self.next_page})
    }
}

/// The end of the last of so many buckets from `from_us` on.
fn after(length: BucketLength, buckets: i64, from_us: i64) -> i64 {
    let length_us = match length {
        BucketLength::Minute => 60 * SECOND_US,
        BucketLength::Hour => 3600 * SECOND_US,
        BucketLength::Day => 86_400 * SECOND_US,
    };
    (from_us.div_euclid(length_us) + buckets).saturating_mul(length_us)
}

fn take_limit(query: &mut Query, length: BucketLength) -> Result<i64, ApiError> {
    let (usual, most) = match length {
        BucketLength::Minute => (60, 1440),
        BucketLength::Hour => (24, 168),
        BucketLength::Day => (7, 31),
    };
    match query.take("limit").map(|text| text.parse()) {
        None => Ok(usual),
        Some(Ok(limit)) if (1..=most).contains(&limit) => Ok(limit),
        Some(_) => Err(ApiError::invalid(Some("limit"), format!("`limit` must be between 1 and {most}"))),
    }
}

fn take_second(query: &mut Query, name: &str) -> Result<Option<i64>, ApiError> {
    const LAST: i64 = 253_402_207_200;
    match query.take(name).map(|text| text.parse::<i64>()) {
        None => Ok(None),
        Some(Ok(seconds)) if (0..=LAST).contains(&seconds) => Ok(Some(seconds * SECOND_US)),
        Some(_) => Err(ApiError::invalid(Some(name), format!("`{name}` must be seconds since the Unix epoch"))),
    }
}

/// A list as clients of different languages write it: `a[]=x&a[]=y`, `a=x&a=y`, `a=x,y`.
fn take_list(query: &mut Query, name: &str) -> Vec<String> {
    let with_brackets = format!("{name}[]");
    let mut values = Vec::new();
    while let Some(text) = query.take(name).or_else(|| query.take(&with_brackets)) {
        values.extend(text.split(',').filter(|value| !value.is_empty()).map(str::to_owned));
    }
    values
}

fn parse_group(word: &str, known: &[&str]) -> Result<UsageGroup, ApiError> {
    let group = match word {
        "user_id" => UsageGroup::User,
        "api_key_id" => UsageGroup::Key,
        "model" | "line_item" => UsageGroup::Model,
        "service_tier" => UsageGroup::Tier,
        _ => return Err(unknown_group(word, known)),
    };
    if known.contains(&word) { Ok(group) } else { Err(unknown_group(word, known)) }
}

fn unknown_group(word: &str, known: &[&str]) -> ApiError {
    let known = known.join("`, `");
    ApiError::invalid(Some("group_by"), format!("`group_by` `{word}` is not supported here: use `{known}`"))
}
