//! `POST /v1/tiers/lookup`: which tier the members of some groups get.
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::input::read_fields;
use crate::api::json::json_response;
use crate::api::schema::{LookedUpTier, TierLookup};
use crate::api::state::Api;
use crate::governance::Limit;

/// Resolves groups to a tier.
#[utoipa::path(
    post,
    path = "/v1/tiers/lookup",
    tag = "Account",
    summary = "The tier that members of some groups get",
    request_body = TierLookup,
    responses(
        (status = 200, description = "The tier", body = LookedUpTier),
        (status = 404, description = "No tier holds any of the groups"),
    ),
)]
pub(crate) async fn lookup_tier(State(api): State<Api>, request: Request) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let groups = body.strings("groups")?.ok_or_else(|| body.complain("groups", "is required"))?;
    body.refuse_unknown()?;
    let tier = api.governor.lookup_tier(&groups).await?;
    let view = json!({
        "tier": tier.name,
        "display_name": tier.display_name,
        // The replaced service wrote it this way, and its clients read it.
        "displayName": tier.display_name,
        "level": tier.level,
    });
    Ok(json_response(StatusCode::OK, &view))
}

/// Limits as JSON.
pub(crate) fn limit_views(limits: &[Limit]) -> Value {
    serde_json::to_value(limits).expect("a limit is strings and numbers")
}
