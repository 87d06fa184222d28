//! Short-lived tokens of the caller, and the public keys that verify them.
use axum::extract::{Extension, Request, State};
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::key_fields::take_duration;
use crate::api::error::ApiError;
use crate::api::input::read_optional_fields;
use crate::api::json::{json_response, moment};
use crate::api::schema;
use crate::api::state::Api;
use crate::governance::Principal;

/// `POST /v1/tokens` `{expiration?, name?}`.
#[utoipa::path(
    post,
    path = "/v1/tokens",
    tag = "Account",
    summary = "Makes a short-lived token, as strong as the key it is made with",
    request_body = Option<schema::NewToken>,
    responses(
        (status = 201, description = "The token", body = schema::IssuedToken),
        (status = 403, description = "A token makes no other token"),
    ),
)]
pub(crate) async fn create_token(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_optional_fields(&api, request).await?;
    let life = take_duration(&mut body, "expiration")?;
    let name = body.string("name")?;
    body.refuse_unknown()?;
    let made = api.governor.create_token(&principal, life, name.as_deref()).await?;
    let view = json!({
        "token": made.token.reveal(),
        "expires_at": moment(made.expires_at_us),
        "jti": made.id.to_string(),
        "name": name,
    });
    Ok(json_response(StatusCode::CREATED, &view))
}

/// `DELETE /v1/tokens`: every token of the caller is dead on its next use.
#[utoipa::path(
    delete,
    path = "/v1/tokens",
    tag = "Account",
    summary = "Ends all short-lived tokens of the caller; keys stay",
    responses((status = 204, description = "Every token made before is dead on its next use")),
)]
pub(crate) async fn revoke_tokens(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, ApiError> {
    api.governor.revoke_tokens(&principal).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// `GET /.well-known/jwks.json`.
#[utoipa::path(
    get,
    path = "/.well-known/jwks.json",
    tag = "Account",
    summary = "The public keys that verify short-lived tokens",
    responses(
        (status = 200, description = "A JWKS document", body = schema::Jwks),
        (status = 503, description = "The store does not answer"),
    ),
)]
pub(crate) async fn jwks(State(api): State<Api>) -> Result<Response, ApiError> {
    let mut response = json_response(StatusCode::OK, &api.governor.jwks().await?);
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    Ok(response)
}
