//! Everybody's API keys.
use axum::extract::{Extension, Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::api::account::{issued_view, key_view, take_new_key};
use crate::api::error::ApiError;
use crate::api::input::{Page, Query, read_fields};
use crate::api::json::{json_response, list};
use crate::api::schema::{self, IssuedKey, Listed, NewKeyFor, PageQuery};
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
        (status = 409, description = "Too many live keys"),
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
    summary = "Everybody's keys, newest first",
    params(
        PageQuery,
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
    let (page, user) = (Page::take(&mut query)?, query.take("user"));
    query.refuse_unknown()?;
    let after = page.cursor.as_deref().map(KeyId::from);
    let keys = api.governor.all_keys(&principal, user.as_deref(), after, page.limit).await?;
    let data = keys.keys.iter().map(key_view).collect();
    Ok(json_response(StatusCode::OK, &list(data, keys.next.map(|id| id.to_string()))))
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
    let key = api.governor.key(&principal, &KeyId::from(id.as_str())).await?;
    Ok(json_response(StatusCode::OK, &key_view(&key)))
}

/// `DELETE /admin/v1/api-keys/{id}`.
#[utoipa::path(
    delete,
    path = "/admin/v1/api-keys/{id}",
    tag = "Administration",
    summary = "Revokes a key",
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
    let key = api.governor.revoke_key(&principal, &KeyId::from(id.as_str())).await?;
    Ok(json_response(StatusCode::OK, &key_view(&key)))
}
