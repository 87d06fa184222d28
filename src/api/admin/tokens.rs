//! Ending a user's tokens, and the keys that sign tokens.
use axum::extract::{Extension, Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::json::{json_response, list, moment};
use crate::api::schema::{self, Listed};
use crate::api::state::Api;
use crate::governance::{Principal, SigningKey};

/// `DELETE /admin/v1/users/{name}/tokens`.
#[utoipa::path(
    delete,
    path = "/admin/v1/users/{name}/tokens",
    tag = "Administration",
    summary = "Ends all short-lived tokens of a user",
    params(("name" = String, Path, description = "The user's name or id")),
    responses(
        (status = 204, description = "Every token made before is dead on its next use"),
        (status = 404, description = "There is no such user"),
    ),
)]
pub(crate) async fn revoke_tokens_of(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    api.governor.revoke_tokens_of(&principal, &name).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /admin/v1/signing-keys`.
#[utoipa::path(
    get,
    path = "/admin/v1/signing-keys",
    tag = "Administration",
    summary = "The keys that sign tokens, or did and still verify, newest first",
    responses((status = 200, description = "The keys", body = Listed<schema::SigningKey>)),
)]
pub(crate) async fn list_signing_keys(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, ApiError> {
    let keys = api.governor.signing_keys(&principal).await?;
    Ok(json_response(StatusCode::OK, &list(keys.iter().map(signing_key_view).collect(), None)))
}

/// `POST /admin/v1/signing-keys`: a new key signs from now on; tokens of the old one live to their end.
#[utoipa::path(
    post,
    path = "/admin/v1/signing-keys",
    tag = "Administration",
    summary = "Lets a new key sign from now on; tokens of the old one live to their end",
    responses((status = 201, description = "The new key", body = schema::SigningKey)),
)]
pub(crate) async fn rotate_signing_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, ApiError> {
    let key = api.governor.rotate_signing_key(&principal).await?;
    Ok(json_response(StatusCode::CREATED, &signing_key_view(&key)))
}

/// `DELETE /admin/v1/signing-keys/{id}`: every token the key signed is dead on its next use.
#[utoipa::path(
    delete,
    path = "/admin/v1/signing-keys/{id}",
    tag = "Administration",
    summary = "Withdraws a signing key: the tokens it signed are dead",
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 204, description = "Every token the key signed is dead on its next use"),
        (status = 404, description = "There is no such key"),
    ),
)]
pub(crate) async fn withdraw_signing_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    api.governor.withdraw_signing_key(&principal, &id).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

fn signing_key_view(key: &SigningKey) -> Value {
    json!({
        "object": "signing_key",
        "id": key.id,
        "status": if key.retired_at_us.is_none() { "active" } else { "retired" },
        "created_at": moment(key.created_at_us),
        "retired_at": key.retired_at_us.map(moment),
    })
}
