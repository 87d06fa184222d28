//! Everybody's API keys.
use axum::extract::{Extension, Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::api::account::{
    bulk_view, issued_view, key_view, take_grace, take_key_patch, take_key_search, take_new_key, take_revoke_many,
};
use crate::api::error::ApiError;
use crate::api::input::{Query, read_fields};
use crate::api::json::{json_response, list};
use crate::api::schema::{self, BulkRevocation, IssuedKey, KeyQuery, Listed, NewKeyFor};
use crate::api::state::Api;
use crate::governance::{KeyId, Principal};

/// `POST /admin/v1/api-keys` `{user, name, ...}`.
#[utoipa::path(
    post,
    path = "/admin/v1/api-keys",
    tag = "Administration",
    summary = "Makes a key for a user",
    request_body = NewKeyFor,
    responses(
        (status = 201, description = "The key, with its secret", body = IssuedKey),
        (status = 404, description = "No such user"),
        (status = 409, description = "Too many live keys, or keys made by keys too deep"),
    ),
)]
pub(crate) async fn create_key_for(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let user = body.required_string("user")?;
    let new = take_new_key(&mut body)?;
    body.refuse_unknown()?;
    let issued = api.governor.create_key_for(&principal, &user, new).await?;
    Ok(json_response(StatusCode::CREATED, &issued_view(&issued)))
}

/// `GET /admin/v1/api-keys`, of one user with `?user=`.
#[utoipa::path(
    get,
    path = "/admin/v1/api-keys",
    tag = "Administration",
    summary = "Everybody's keys",
    params(
        KeyQuery,
        ("user" = Option<String>, Query, description = "Only keys of this user"),
    ),
    responses(
        (status = 200, description = "The keys", body = Listed<schema::Key>),
        (status = 404, description = "No such user"),
    ),
)]
pub(crate) async fn list_all_keys(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(query.as_deref())?;
    let (search, user) = (take_key_search(&mut query)?, query.take("user"));
    query.refuse_unknown()?;
    let page = api.governor.all_keys(&principal, user.as_deref(), &search).await?;
    Ok(json_response(StatusCode::OK, &list(page.keys.iter().map(key_view).collect(), page.next)))
}

/// `GET /admin/v1/api-keys/{id}`.
#[utoipa::path(
    get,
    path = "/admin/v1/api-keys/{id}",
    tag = "Administration",
    summary = "One key",
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 200, description = "The key", body = schema::Key),
        (status = 404, description = "No such key"),
    ),
)]
pub(crate) async fn get_any_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let key = api.governor.any_key(&principal, &KeyId::from(id.as_str())).await?;
    Ok(json_response(StatusCode::OK, &key_view(&key)))
}

/// `PATCH /admin/v1/api-keys/{id}`: models and limits set here the owner cannot change.
#[utoipa::path(
    patch,
    path = "/admin/v1/api-keys/{id}",
    tag = "Administration",
    summary = "Renames, relabels, sets models and limits that the owner cannot change",
    params(("id" = String, Path, description = "The key's id")),
    request_body = schema::KeyChange,
    responses(
        (status = 200, description = "The key as it is now", body = schema::Key),
        (status = 404, description = "No such key"),
    ),
)]
pub(crate) async fn patch_any_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let patch = take_key_patch(read_fields(&api, request).await?)?;
    let key = api.governor.update_any_key(&principal, &KeyId::from(id.as_str()), &patch).await?;
    Ok(json_response(StatusCode::OK, &key_view(&key)))
}

/// `DELETE /admin/v1/api-keys/{id}`.
#[utoipa::path(
    delete,
    path = "/admin/v1/api-keys/{id}",
    tag = "Administration",
    summary = "Revokes a key and ends what runs with it",
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 200, description = "The key, revoked", body = schema::Key),
        (status = 404, description = "No such key, or revoked already"),
    ),
)]
pub(crate) async fn revoke_any_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let key = api.governor.revoke_any_key(&principal, &KeyId::from(id.as_str())).await?;
    Ok(json_response(StatusCode::OK, &key_view(&key)))
}

/// `POST /admin/v1/api-keys/{id}/rotate` `{grace?}`.
#[utoipa::path(
    post,
    path = "/admin/v1/api-keys/{id}/rotate",
    tag = "Administration",
    summary = "Gives a key a new secret",
    params(("id" = String, Path, description = "The key's id")),
    request_body = Option<schema::Rotation>,
    responses(
        (status = 200, description = "The key, with its new secret", body = IssuedKey),
        (status = 404, description = "No such key, or revoked"),
        (status = 409, description = "It is over, or set by the configuration"),
    ),
)]
pub(crate) async fn rotate_any_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let grace = take_grace(&api, request).await?;
    let issued = api.governor.rotate_any_key(&principal, &KeyId::from(id.as_str()), grace).await?;
    Ok(json_response(StatusCode::OK, &issued_view(&issued)))
}

/// `POST /admin/v1/api-keys/bulk-revoke` `{user?, label?, created_before?, dry_run?}`, over everybody's keys.
#[utoipa::path(
    post,
    path = "/admin/v1/api-keys/bulk-revoke",
    tag = "Administration",
    summary = "Revokes everybody's keys that fit",
    request_body = schema::RevokeMany,
    responses(
        (status = 200, description = "The keys that were revoked, or would be", body = BulkRevocation),
        (status = 404, description = "No such user"),
    ),
)]
pub(crate) async fn bulk_revoke_any(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let wish = take_revoke_many(read_fields(&api, request).await?)?;
    let done = api.governor.revoke_many_of_all(&principal, &wish).await?;
    Ok(json_response(StatusCode::OK, &bulk_view(&done)))
}
