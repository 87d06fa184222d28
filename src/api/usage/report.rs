//! `GET /v1/usage` and `GET /admin/v1/usage`.
use axum::body::Body;
use axum::extract::{Extension, RawQuery, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;

use super::document::{to_csv, to_json};
use super::query::{Asked, Format, parse};
use crate::api::error::ApiError;
use crate::api::json::json_response;
use crate::api::schema;
use crate::api::state::Api;
use crate::governance::Principal;
use crate::governance::usage::UsageSum;

/// The caller's own usage, whoever they are.
#[utoipa::path(
    get,
    path = "/v1/usage",
    tag = "Account",
    summary = "Your own usage",
    params(
        ("start" = Option<schema::Moment>, Query, description = "From here on: RFC 3339 or seconds since the Unix epoch; the first of this month when absent"),
        ("end" = Option<schema::Moment>, Query, description = "Up to here, exclusive; now when absent"),
        ("bucket" = Option<schema::Bucket>, Query, description = "Lines for every minute, hour or day"),
        ("tz" = Option<String>, Query, min_length = 1, description = "IANA zone of days and months; UTC when absent"),
        ("group_by" = Option<String>, Query, pattern = "^((user|key|tier|model|group|label:[^,]+)(,(user|key|tier|model|group|label:[^,]+))*)?$", description = "A list of `user`, `key`, `tier`, `model`, `group`, `label:NAME`"),
        ("key" = Option<String>, Query, description = "Only with this key"),
        ("tier" = Option<String>, Query, description = "Only in this tier"),
        ("model" = Option<String>, Query, description = "Only for this model"),
        ("format" = Option<schema::ReportFormat>, Query, description = "How the answer is written"),
    ),
    responses(
        (status = 200, description = "The report", content((schema::UsageReport = "application/json"), (String = "text/csv"))),
    ),
)]
pub(crate) async fn own_usage(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let asked = parse(query.as_deref(), false, api.clock.now_us())?;
    let sums = api.governor.own_usage(&principal, &asked.query).await?;
    answer(&asked, &sums)
}

/// Everybody's usage.
#[utoipa::path(
    get,
    path = "/admin/v1/usage",
    tag = "Administration",
    summary = "Who used how much",
    params(
        ("start" = Option<schema::Moment>, Query, description = "From here on: RFC 3339 or seconds since the Unix epoch; the first of this month when absent"),
        ("end" = Option<schema::Moment>, Query, description = "Up to here, exclusive; now when absent"),
        ("bucket" = Option<schema::Bucket>, Query, description = "Lines for every minute, hour or day"),
        ("tz" = Option<String>, Query, min_length = 1, description = "IANA zone of days and months; UTC when absent"),
        ("group_by" = Option<String>, Query, pattern = "^((user|key|tier|model|group|label:[^,]+)(,(user|key|tier|model|group|label:[^,]+))*)?$", description = "A list of `user`, `key`, `tier`, `model`, `group`, `label:NAME`"),
        ("user" = Option<String>, Query, description = "Only of this user, by name or id"),
        ("key" = Option<String>, Query, description = "Only with this key"),
        ("tier" = Option<String>, Query, description = "Only in this tier"),
        ("model" = Option<String>, Query, description = "Only for this model"),
        ("format" = Option<schema::ReportFormat>, Query, description = "How the answer is written"),
    ),
    responses(
        (status = 200, description = "The report", content((schema::UsageReport = "application/json"), (String = "text/csv"))),
        (status = 404, description = "No such user"),
    ),
)]
pub(crate) async fn all_usage(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut asked = parse(query.as_deref(), true, api.clock.now_us())?;
    if let Some(name) = &asked.user {
        asked.query.user = Some(api.governor.user_named(&principal, name).await?);
    }
    let sums = api.governor.usage(&principal, &asked.query).await?;
    answer(&asked, &sums)
}

fn answer(asked: &Asked, sums: &[UsageSum]) -> Result<Response, ApiError> {
    if asked.format == Format::Json {
        return Ok(json_response(StatusCode::OK, &to_json(asked, sums)));
    }
    let text = to_csv(asked, sums).map_err(|error| {
        tracing::error!(%error, "cannot write a usage report as CSV");
        ApiError::internal()
    })?;
    let mut response = Response::new(Body::from(text));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/csv; charset=utf-8"));
    headers.insert(header::CONTENT_DISPOSITION, HeaderValue::from_static("attachment; filename=\"usage.csv\""));
    Ok(response)
}
