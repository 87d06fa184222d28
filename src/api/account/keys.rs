//! API keys of the caller, and the JSON of keys and of wishes for keys that administration shares.
use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::{Extension, Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::tiers::limit_views;
use crate::api::error::ApiError;
use crate::api::fields::{Fields, kind};
use crate::api::input::{Page, read_fields, take_limits};
use crate::api::json::{json_response, list, moment};
use crate::api::schema::{self, IssuedKey, Listed, PageQuery};
use crate::api::state::Api;
use crate::governance::{Issued, Key, KeyId, NewKey, Principal};

/// `POST /v1/api-keys`.
#[utoipa::path(
    post,
    path = "/v1/api-keys",
    tag = "Account",
    summary = "Makes a key",
    request_body = schema::NewKey,
    responses(
        (status = 201, description = "The key, with its secret", body = IssuedKey),
        (status = 403, description = "A key may not make a stronger one"),
        (status = 409, description = "Too many live keys"),
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

/// `GET /v1/api-keys`.
#[utoipa::path(
    get,
    path = "/v1/api-keys",
    tag = "Account",
    summary = "The caller's keys, newest first",
    params(PageQuery),
    responses(
        (status = 200, description = "The keys", body = Listed<schema::Key>),
    ),
)]
pub(crate) async fn list_keys(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let page = Page::parse(query.as_deref())?;
    let after = page.cursor.as_deref().map(KeyId::from);
    let keys = api.governor.keys(&principal, after, page.limit).await?;
    let data = keys.keys.iter().map(key_view).collect();
    Ok(json_response(StatusCode::OK, &list(data, keys.next.map(|id| id.to_string()))))
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
    Ok(json_response(StatusCode::OK, &key_view(&own_key(&api, &principal, &id).await?)))
}

/// `DELETE /v1/api-keys/{id}`.
#[utoipa::path(
    delete,
    path = "/v1/api-keys/{id}",
    tag = "Account",
    summary = "Revokes a key",
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
    let key = own_key(&api, &principal, &id).await?;
    let revoked = api.governor.revoke_key(&principal, &key.id).await?;
    Ok(json_response(StatusCode::OK, &key_view(&revoked)))
}

/// Here even an administrator sees their own keys only.
async fn own_key(api: &Api, principal: &Principal, id: &str) -> Result<Key, ApiError> {
    let key = api.governor.key(principal, &KeyId::from(id)).await?;
    if key.user == principal.user { Ok(key) } else { Err(ApiError::not_found("API key")) }
}

/// A key just made: the one answer that holds its text.
pub(crate) fn issued_view(issued: &Issued) -> Value {
    let mut view = key_view(&issued.key);
    view["key"] = issued.secret.reveal().into();
    view
}

/// A key without its secret.
pub(crate) fn key_view(key: &Key) -> Value {
    json!({
        "id": key.id.as_str(),
        "object": "api_key",
        "name": key.name,
        "prefix": key.prefix,
        "status": key.status.as_str(),
        "user": key.user_name,
        "description": key.description,
        "labels": key.labels,
        "models": key.models,
        "limits": limit_views(&key.limits),
        "created_at": moment(key.created_at_us),
        "expires_at": key.expires_at_us.map(moment),
        "revoked_at": key.revoked_at_us.map(moment),
        "last_used_at": key.last_used_at_us.map(moment),
    })
}

/// What a request for a key says about it.
pub(crate) fn take_new_key(body: &mut Fields) -> Result<NewKey, ApiError> {
    Ok(NewKey {
        name: body.required_string("name")?,
        description: body.string("description")?,
        expires_in: take_duration(body, "expires_in")?,
        labels: take_labels(body)?,
        models: body.strings("models")?,
        limits: take_limits(body, "limits")?.unwrap_or_default(),
    })
}

fn take_labels(body: &mut Fields) -> Result<BTreeMap<String, String>, ApiError> {
    let Some(labels) = body.object("labels")? else { return Ok(BTreeMap::new()) };
    let label = |(name, value): (&str, &Value)| match value {
        Value::String(text) => Ok((name.to_owned(), text.clone())),
        other => Err(labels.complain(name, format!("must be a string, found {}", kind(other)))),
    };
    labels.rest().map(label).collect()
}

/// `30s`, `15m`, `4h`, `90d`.
pub(super) fn take_duration(body: &mut Fields, field: &str) -> Result<Option<Duration>, ApiError> {
    let Some(text) = body.string(field)? else { return Ok(None) };
    match parse_seconds(&text) {
        Some(seconds) => Ok(Some(Duration::from_secs(seconds))),
        None => {
            let shown: String = text.chars().take(20).collect();
            let message = format!("must be a duration like `30s`, `15m`, `4h` or `90d`, found `{shown}`");
            Err(body.complain(field, message))
        }
    }
}

fn parse_seconds(text: &str) -> Option<u64> {
    let (count, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let factor = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3600,
        "d" => 86_400,
        _ => return None,
    };
    let is_plain = !count.is_empty() && count.bytes().all(|byte| byte.is_ascii_digit());
    if is_plain { count.parse::<u64>().ok()?.checked_mul(factor) } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_a_count_and_a_unit() {
        for (text, seconds) in [("30s", Some(30)), ("4h", Some(14_400)), ("90d", Some(7_776_000)), ("0s", Some(0))] {
            assert_eq!(parse_seconds(text), seconds);
        }
        for text in ["", "s", "4", "-4h", "+4h", "4 h", "4w", "99999999999999999999d", "999999999999999999d", "4µ"] {
            assert_eq!(parse_seconds(text), None, "{text}");
        }
    }
}
