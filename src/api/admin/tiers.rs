//! Tiers: their groups, levels and limits.
use axum::extract::{Extension, Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::account::limit_views;
use crate::api::error::ApiError;
use crate::api::fields::Fields;
use crate::api::input::{Query, read_fields, take_limits};
use crate::api::json::{json_response, list};
use crate::api::schema::{self, Listed, TierChange};
use crate::api::state::Api;
use crate::governance::records::TierRecord;
use crate::governance::tiers::{LEVEL_MAX, WEIGHT_MAX};
use crate::governance::{DeletedTier, NewTier, Principal, TierPatch};

/// What an answer shows and a change may send back without effect.
const READ_ONLY: &[&str] = &["object", "origin"];

/// `GET /admin/v1/tiers`.
#[utoipa::path(
    get,
    path = "/admin/v1/tiers",
    tag = "Administration",
    summary = "All tiers",
    responses(
        (status = 200, description = "The tiers", body = Listed<schema::Tier>),
    ),
)]
pub(crate) async fn list_tiers(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, ApiError> {
    let tiers = api.governor.tiers(&principal).await?;
    Ok(json_response(StatusCode::OK, &list(tiers.iter().map(tier_view).collect(), None)))
}

/// `GET /admin/v1/tiers/{name}`.
#[utoipa::path(
    get,
    path = "/admin/v1/tiers/{name}",
    tag = "Administration",
    summary = "One tier",
    params(("name" = String, Path, description = "The tier's name")),
    responses(
        (status = 200, description = "The tier", body = schema::Tier),
        (status = 404, description = "No such tier"),
    ),
)]
pub(crate) async fn get_tier(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    Ok(json_response(StatusCode::OK, &tier_view(&api.governor.tier(&principal, &name).await?)))
}

/// `POST /admin/v1/tiers`.
#[utoipa::path(
    post,
    path = "/admin/v1/tiers",
    tag = "Administration",
    summary = "Makes a tier",
    request_body = schema::NewTier,
    responses(
        (status = 201, description = "The tier", body = schema::Tier),
        (status = 409, description = "The name or the level is taken"),
    ),
)]
pub(crate) async fn create_tier(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let name = body.string("name")?;
    let patch = take_patch(&mut body)?;
    let level = patch.level.ok_or_else(|| body.complain("level", "is required"))?;
    body.ignore(READ_ONLY);
    body.refuse_unknown()?;
    let new = NewTier {
        name,
        display_name: patch.display_name,
        description: patch.description.unwrap_or_default(),
        level,
        groups: patch.groups.unwrap_or_default(),
        limits: patch.limits,
        weight: patch.weight,
    };
    let tier = api.governor.create_tier(&principal, new).await?;
    Ok(json_response(StatusCode::CREATED, &tier_view(&tier)))
}

/// `PUT /admin/v1/tiers/{name}`: changes the fields given.
#[utoipa::path(
    put,
    path = "/admin/v1/tiers/{name}",
    tag = "Administration",
    summary = "Changes the given fields of a tier, from the next request on",
    params(("name" = String, Path, description = "The tier's name")),
    request_body = TierChange,
    responses(
        (status = 200, description = "The tier as it is now", body = schema::Tier),
        (status = 404, description = "No such tier"),
        (status = 409, description = "The level is taken, or a watched file declares the field"),
    ),
)]
pub(crate) async fn put_tier(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let patch = take_patch(&mut body)?;
    body.ignore(&["name"]);
    body.ignore(READ_ONLY);
    body.refuse_unknown()?;
    let tier = api.governor.update_tier(&principal, &name, patch).await?;
    Ok(json_response(StatusCode::OK, &tier_view(&tier)))
}

/// `DELETE /admin/v1/tiers/{name}`; with `?dry_run=true` it only tells who would be affected.
#[utoipa::path(
    delete,
    path = "/admin/v1/tiers/{name}",
    tag = "Administration",
    summary = "Deletes a tier",
    params(
        ("name" = String, Path, description = "The tier's name"),
        ("dry_run" = Option<bool>, Query, description = "Only tell who would be affected"),
    ),
    responses(
        (status = 200, description = "The tier, and who is affected", body = schema::DeletedTier),
        (status = 404, description = "No such tier"),
        (status = 409, description = "A watched file declares it"),
    ),
)]
pub(crate) async fn delete_tier(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(query.as_deref())?;
    let is_dry_run = query.take_switch("dry_run")?;
    query.refuse_unknown()?;
    let deleted = if is_dry_run {
        api.governor.preview_tier_deletion(&principal, &name).await?
    } else {
        api.governor.delete_tier(&principal, &name).await?
    };
    Ok(json_response(StatusCode::OK, &deleted_view(&deleted, !is_dry_run)))
}

fn take_patch(body: &mut Fields) -> Result<TierPatch, ApiError> {
    Ok(TierPatch {
        display_name: body.string("display_name")?,
        description: body.string("description")?,
        level: body.integer_in("level", 0..=LEVEL_MAX)?,
        groups: body.strings("groups")?,
        limits: take_limits(body, "limits")?,
        weight: body.integer_in("weight", 1..=WEIGHT_MAX)?,
    })
}

pub(super) fn tier_view(tier: &TierRecord) -> Value {
    json!({
        "object": "tier",
        "name": tier.name,
        "display_name": tier.display_name,
        "description": tier.description,
        "level": tier.level,
        "groups": tier.groups,
        "limits": limit_views(&tier.limits),
        "weight": tier.weight,
        "origin": tier.origin.as_str(),
    })
}

pub(super) fn deleted_view(deleted: &DeletedTier, is_deleted: bool) -> Value {
    let affected = deleted.affected.iter().map(|one| json!({"user": one.user, "falls_to": one.falls_to}));
    let mut view = tier_view(&deleted.tier);
    view["deleted"] = is_deleted.into();
    view["affected"] = affected.collect();
    view["affected_count"] = deleted.affected_count.into();
    view["models"] = json!(deleted.models);
    view
}
