//! API keys of the caller: rename and relabel, a new secret, many at once.
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::key_fields::{bulk_view, issued_view, key_view, take_grace, take_key_patch, take_revoke_many};
use crate::api::error::ApiError;
use crate::api::input::read_fields;
use crate::api::json::json_response;
use crate::api::schema::{self, BulkRevocation, IssuedKey};
use crate::api::state::Api;
use crate::governance::{KeyId, Principal};

/// `PATCH /v1/api-keys/{id}` `{name?, description?, labels?, models?, limits?}`.
#[utoipa::path(
    patch,
    path = "/v1/api-keys/{id}",
    tag = "Account",
    summary = "Renames, relabels, changes models and limits",
    params(("id" = String, Path, description = "The key's id")),
    request_body = schema::KeyChange,
    responses(
        (status = 200, description = "The key as it is now", body = schema::Key),
        (status = 403, description = "An administrator set the models and limits, or the key in use has some"),
        (status = 404, description = "No such key, or not yours"),
    ),
)]
pub(crate) async fn patch_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let patch = take_key_patch(read_fields(&api, request).await?)?;
    let key = api.governor.update_key(&principal, &KeyId::from(id.as_str()), &patch).await?;
    Ok(json_response(StatusCode::OK, &key_view(&key)))
}

/// `POST /v1/api-keys/{id}/rotate` `{grace?}`: the answer holds the new text of the key, this once.
#[utoipa::path(
    post,
    path = "/v1/api-keys/{id}/rotate",
    tag = "Account",
    summary = "Gives a key a new secret",
    params(("id" = String, Path, description = "The key's id")),
    request_body = Option<schema::Rotation>,
    responses(
        (status = 200, description = "The key, with its new secret", body = IssuedKey),
        (status = 403, description = "The key in use is weaker than this one"),
        (status = 404, description = "No such key, or not yours, or revoked"),
        (status = 409, description = "It is over, or set by the configuration"),
    ),
)]
pub(crate) async fn rotate_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let grace = take_grace(&api, request).await?;
    let issued = api.governor.rotate_key(&principal, &KeyId::from(id.as_str()), grace).await?;
    Ok(json_response(StatusCode::OK, &issued_view(&issued)))
}

/// `POST /v1/api-keys/bulk-revoke` `{label?, created_before?, user?, dry_run?}`.
#[utoipa::path(
    post,
    path = "/v1/api-keys/bulk-revoke",
    tag = "Account",
    summary = "Revokes all of the caller's keys that fit",
    request_body = schema::RevokeMany,
    responses(
        (status = 200, description = "The keys that were revoked, or would be", body = BulkRevocation),
        (status = 403, description = "Only administrators revoke keys of others"),
        (status = 404, description = "No such user"),
    ),
)]
pub(crate) async fn bulk_revoke(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let wish = take_revoke_many(read_fields(&api, request).await?)?;
    let done = api.governor.revoke_many(&principal, &wish).await?;
    Ok(json_response(StatusCode::OK, &bulk_view(&done)))
}
