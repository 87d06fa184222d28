//! API keys of the caller: make, list, look at, revoke.
use axum::extract::{Extension, Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::key_fields::{issued_view, key_view, take_key_search, take_new_key};
use crate::api::error::ApiError;
use crate::api::input::{Query, read_fields};
use crate::api::json::{json_response, list};
use crate::api::schema::{self, IssuedKey, KeyQuery, Listed};
use crate::api::state::Api;
use crate::governance::{KeyId, Principal};

/// `POST /v1/api-keys` `{name, description?, expires_in?, labels?, models?, limits?, ephemeral?}`.
#[utoipa::path(
    post,
    path = "/v1/api-keys",
    tag = "Account",
    summary = "Makes a key",
    request_body = schema::NewKey,
    responses(
        (status = 201, description = "The key, with its secret", body = IssuedKey),
        (status = 403, description = "A key may not make a stronger one"),
        (status = 409, description = "Too many live keys, or keys made by keys too deep"),
    ),
)]
pub(crate) async fn create_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let new = take_new_key(&mut body)?;
    body.refuse_unknown()?;
    let issued = api.governor.create_key(&principal, new).await?;
    Ok(json_response(StatusCode::CREATED, &issued_view(&issued)))
}

/// `GET /v1/api-keys`, with filters, an order and a cursor.
#[utoipa::path(
    get,
    path = "/v1/api-keys",
    tag = "Account",
    summary = "The caller's keys",
    params(KeyQuery),
    responses(
        (status = 200, description = "The keys", body = Listed<schema::Key>),
    ),
)]
pub(crate) async fn list_keys(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(query.as_deref())?;
    let search = take_key_search(&mut query)?;
    query.refuse_unknown()?;
    let page = api.governor.keys(&principal, &search).await?;
    Ok(json_response(StatusCode::OK, &list(page.keys.iter().map(key_view).collect(), page.next)))
}

/// `GET /v1/api-keys/{id}`.
#[utoipa::path(
    get,
    path = "/v1/api-keys/{id}",
    tag = "Account",
    summary = "One key",
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 200, description = "The key", body = schema::Key),
        (status = 404, description = "No such key, or not yours"),
    ),
)]
pub(crate) async fn get_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let key = api.governor.key(&principal, &KeyId::from(id.as_str())).await?;
    Ok(json_response(StatusCode::OK, &key_view(&key)))
}

/// `DELETE /v1/api-keys/{id}`.
#[utoipa::path(
    delete,
    path = "/v1/api-keys/{id}",
    tag = "Account",
    summary = "Revokes a key and ends what runs with it",
    params(("id" = String, Path, description = "The key's id")),
    responses(
        (status = 200, description = "The key, revoked", body = schema::Key),
        (status = 404, description = "No such key, or not yours, or revoked already"),
    ),
)]
pub(crate) async fn revoke_key(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let revoked = api.governor.revoke_key(&principal, &KeyId::from(id.as_str())).await?;
    Ok(json_response(StatusCode::OK, &key_view(&revoked)))
}
