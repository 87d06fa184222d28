//! Applying a file of tiers as a whole.
use axum::extract::{Extension, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::tiers::{deleted_view, tier_view};
use crate::api::error::ApiError;
use crate::api::input::{Query, read_fields};
use crate::api::json::json_response;
use crate::api::schema;
use crate::api::state::Api;
use crate::governance::tier_files::Declaration;
use crate::governance::{AppliedTiers, Principal};

/// `POST /admin/v1/tiers/apply` `{content, format?}`: brings the tiers in line with a file, in one transaction; with
/// `?dry_run=true` it only tells what would change.
#[utoipa::path(
    post,
    path = "/admin/v1/tiers/apply",
    tag = "Administration",
    summary = "Brings the tiers in line with a file, whole or not at all",
    params(("dry_run" = Option<bool>, Query, description = "Only tell what would change")),
    request_body = schema::TierFile,
    responses(
        (status = 200, description = "What changed", body = schema::TierPlan),
        (status = 409, description = "A watched file declares what it would change"),
    ),
)]
pub(crate) async fn apply_tiers(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(query.as_deref())?;
    let is_dry_run = query.take_switch("dry_run")?;
    query.refuse_unknown()?;
    let mut body = read_fields(&api, request).await?;
    let content = body.required_string("content")?;
    let declared = match body.string("format")?.as_deref() {
        None | Some("yaml" | "json") => Declaration::from_yaml(&content),
        Some("toml") => Declaration::from_toml(&content),
        Some(_) => return Err(body.complain("format", "must be yaml, json or toml")),
    };
    let declared = declared.map_err(|error| body.complain("content", format!("declares no tiers: {error}")))?;
    body.refuse_unknown()?;
    let outcome = if is_dry_run {
        api.governor.plan_tiers(&principal, &declared).await?
    } else {
        api.governor.apply_tiers(&principal, &declared).await?
    };
    Ok(json_response(StatusCode::OK, &outcome_view(&outcome, is_dry_run)))
}

fn outcome_view(outcome: &AppliedTiers, is_dry_run: bool) -> Value {
    let updated = outcome.updated.iter();
    let updated = updated.map(|(old, new)| json!({"before": tier_view(old), "after": tier_view(new)}));
    json!({
        "object": "tier.plan",
        "dry_run": is_dry_run,
        "created": outcome.created.iter().map(tier_view).collect::<Vec<_>>(),
        "updated": updated.collect::<Vec<_>>(),
        "deleted": outcome.deleted.iter().map(|one| deleted_view(one, !is_dry_run)).collect::<Vec<_>>(),
    })
}
