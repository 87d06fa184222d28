//! `GET /v1/me`: who the caller is and what is left.
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::error::{ApiError, retry_after_ms};
use crate::api::json::json_response;
use crate::api::limits::figure;
use crate::api::schema::Me;
use crate::api::state::Api;
use crate::governance::{LimitStanding, Principal};

/// Tells the caller about themselves.
#[utoipa::path(
    get,
    path = "/v1/me",
    tag = "Account",
    summary = "Who the caller is and what is left",
    responses(
        (status = 200, description = "Tier, limits and models", body = Me),
    ),
)]
pub(crate) async fn me(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, ApiError> {
    let me = api.governor.me(&principal).await?;
    let (tier, display_name) = me.tier.unzip();
    let body = json!({
        "user": me.user,
        "groups": me.groups,
        "tier": tier,
        "tier_display_name": display_name,
        "is_admin": me.is_admin,
        "limits": me.limits.iter().map(|limit| standing_view(limit, &api.config.notice_thresholds)).collect::<Vec<_>>(),
        "models": me.models,
    });
    Ok(json_response(StatusCode::OK, &body))
}

fn standing_view(standing: &LimitStanding, thresholds: &[u8]) -> Value {
    let (seconds, rest) = (standing.reset_at_us.div_euclid(1_000_000), standing.reset_at_us.rem_euclid(1_000_000));
    json!({
        "limit": &*standing.limit,
        "resource": standing.resource,
        "amount": figure(standing.resource, standing.amount),
        "window": &*standing.window,
        "scope": standing.scope,
        "mode": standing.mode,
        "model": standing.model.as_deref(),
        "used": figure(standing.resource, standing.used),
        "held": figure(standing.resource, standing.held),
        "remaining": figure(standing.resource, standing.remaining),
        "notice": standing.notice(thresholds),
        "reset": seconds + i64::from(rest > 0),
        "reset_after_ms": retry_after_ms(standing.reset_after),
    })
}
