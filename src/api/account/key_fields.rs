//! The JSON of API keys and of wishes about them, shared with administration.
use std::collections::BTreeMap;
use std::time::Duration;

use axum::extract::Request;
use serde_json::{Value, json};

use super::tiers::limit_views;
use crate::api::error::ApiError;
use crate::api::fields::{Fields, kind};
use crate::api::input::{Page, Query, read_optional_fields, take_key_limits, take_moment};
use crate::api::json::moment;
use crate::api::state::Api;
use crate::governance::{BulkRevoked, Issued, Key, KeyPatch, KeySearch, KeySort, KeyStatus, NewKey, RevokeMany};

/// What an answer shows and a change may send back without effect.
const READ_ONLY: &[&str] = &[
    "id",
    "object",
    "prefix",
    "status",
    "user",
    "limits_set_by",
    "parent",
    "ephemeral",
    "created_at",
    "expires_at",
    "revoked_at",
    "last_used_at",
    "previous_secret_until",
];

/// A key that was just made or got a new secret: the one answer that holds its text.
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
        "limits_set_by": key.terms_by.as_str(),
        "parent": key.parent.as_ref().map(|parent| parent.as_str()),
        "ephemeral": key.is_ephemeral,
        "created_at": moment(key.created_at_us),
        "expires_at": key.expires_at_us.map(moment),
        "revoked_at": key.revoked_at_us.map(moment),
        "last_used_at": key.last_used_at_us.map(moment),
        "previous_secret_until": key.previous_until_us.map(moment),
    })
}

/// What a bulk revocation did or would do.
pub(crate) fn bulk_view(done: &BulkRevoked) -> Value {
    json!({
        "object": "bulk_revocation",
        "dry_run": done.is_dry_run,
        "count": done.keys.len(),
        "has_more": done.has_more,
        "data": done.keys.iter().map(key_view).collect::<Vec<_>>(),
    })
}

/// What a request for a key says about it.
pub(crate) fn take_new_key(body: &mut Fields) -> Result<NewKey, ApiError> {
    let is_ephemeral = body.boolean("ephemeral")?.unwrap_or(false);
    Ok(NewKey {
        name: if is_ephemeral { body.string("name")?.unwrap_or_default() } else { body.required_string("name")? },
        description: body.string("description")?,
        expires_in: take_duration(body, "expires_in")?,
        labels: take_labels(body)?.unwrap_or_default(),
        models: take_models(body)?.flatten(),
        limits: take_key_limits(body, "limits")?.unwrap_or_default(),
        is_ephemeral,
    })
}

/// What should change about a key.
pub(crate) fn take_key_patch(mut body: Fields) -> Result<KeyPatch, ApiError> {
    let patch = KeyPatch {
        name: body.string("name")?,
        description: body.string("description")?,
        labels: take_labels(&mut body)?,
        models: take_models(&mut body)?,
        limits: take_key_limits(&mut body, "limits")?,
    };
    body.ignore(READ_ONLY);
    body.refuse_unknown()?;
    Ok(patch)
}

/// Which keys a list should show: `status`, `name`, `label`, `created_after`, `created_before`, `include_ephemeral`,
/// `sort`, `order`, `limit`, `cursor`.
pub(crate) fn take_key_search(query: &mut Query) -> Result<KeySearch, ApiError> {
    let page = Page::take(query)?;
    let statuses = query.take_each("status");
    let statuses = statuses.iter().flat_map(|words| words.split(',')).map(parse_status).collect::<Result<_, _>>()?;
    let sort = match query.take("sort") {
        None => KeySort::default(),
        Some(word) => word.parse().map_err(|()| {
            let message = "`sort` must be created_at, expires_at, last_used_at or name";
            ApiError::invalid(Some("sort"), message)
        })?,
    };
    let is_ascending = match query.take("order").as_deref() {
        None => sort == KeySort::Name,
        Some("asc") => true,
        Some("desc") => false,
        Some(_) => return Err(ApiError::invalid(Some("order"), "`order` must be asc or desc")),
    };
    Ok(KeySearch {
        statuses,
        name_contains: query.take("name"),
        labels: query.take_each("label").iter().map(|text| parse_label(text)).collect(),
        created_from_us: query.take_moment("created_after")?,
        created_before_us: query.take_moment("created_before")?,
        with_ephemeral: query.take_switch("include_ephemeral")?,
        sort,
        is_ascending,
        cursor: page.cursor,
        limit: page.limit,
    })
}

/// Which keys to end.
pub(crate) fn take_revoke_many(mut body: Fields) -> Result<RevokeMany, ApiError> {
    let wish = RevokeMany {
        user: body.string("user")?,
        label: body.string("label")?.map(|text| parse_label(&text)),
        created_before_us: take_moment(&mut body, "created_before")?,
        is_dry_run: body.boolean("dry_run")?.unwrap_or(false),
    };
    body.refuse_unknown()?;
    Ok(wish)
}

/// The grace of a rotation; the body may be missing altogether.
pub(crate) async fn take_grace(api: &Api, request: Request) -> Result<Option<Duration>, ApiError> {
    let mut body = read_optional_fields(api, request).await?;
    let grace = take_duration(&mut body, "grace")?;
    body.refuse_unknown()?;
    Ok(grace)
}

fn parse_status(word: &str) -> Result<KeyStatus, ApiError> {
    let known = [KeyStatus::Active, KeyStatus::Expired, KeyStatus::Revoked];
    known.into_iter().find(|status| status.as_str() == word).ok_or_else(|| {
        ApiError::invalid(Some("status"), "`status` must be active, expired or revoked, or several with commas")
    })
}

/// `team=research`, or `team` for any value.
fn parse_label(text: &str) -> (String, Option<String>) {
    match text.split_once('=') {
        Some((name, value)) => (name.to_owned(), Some(value.to_owned())),
        None => (text.to_owned(), None),
    }
}

fn take_labels(body: &mut Fields) -> Result<Option<BTreeMap<String, String>>, ApiError> {
    let Some(labels) = body.object("labels")? else { return Ok(None) };
    let label = |(name, value): (&str, &Value)| match value {
        Value::String(text) => Ok((name.to_owned(), text.clone())),
        other => Err(labels.complain(name, format!("must be a string, found {}", kind(other)))),
    };
    labels.rest().map(label).collect::<Result<_, _>>().map(Some)
}

/// A list of models, or `"all"` for what the tier gives.
fn take_models(body: &mut Fields) -> Result<Option<Option<Vec<String>>>, ApiError> {
    match body.take("models") {
        None => Ok(None),
        Some(Value::String(word)) if word == "all" => Ok(Some(None)),
        Some(Value::Array(names)) => {
            let name = |(index, value): (usize, Value)| match value {
                Value::String(text) => Ok(text),
                other => {
                    let field = format!("models[{index}]");
                    Err(body.complain(&field, format!("must be a string, found {}", kind(&other))))
                }
            };
            names.into_iter().enumerate().map(name).collect::<Result<_, _>>().map(|names| Some(Some(names)))
        }
        Some(other) => {
            Err(body.complain("models", format!("must be \"all\" or a list of models, found {}", kind(&other))))
        }
    }
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

    #[test]
    fn models_are_a_list_or_all() {
        let take = |json: &str| take_models(&mut Fields::parse(json.as_bytes()).unwrap());
        assert_eq!(take("{}").unwrap(), None);
        assert_eq!(take(r#"{"models": "all"}"#).unwrap(), Some(None));
        assert_eq!(take(r#"{"models": ["a"]}"#).unwrap(), Some(Some(vec!["a".to_owned()])));
        for (json, param) in [(r#"{"models": "a"}"#, "models"), (r#"{"models": ["a", 1]}"#, "models[1]")] {
            assert_eq!(take(json).unwrap_err().param(), Some(param));
        }
    }

    #[test]
    fn a_search_is_read_from_the_address_and_wrong_words_are_named() {
        let take = |query: &str| take_key_search(&mut Query::parse(Some(query)).unwrap());
        let search = take("status=active,revoked&label=team%3Da&label=env&name=lap&sort=name&limit=5").unwrap();
        assert_eq!(search.statuses, [KeyStatus::Active, KeyStatus::Revoked]);
        assert_eq!(search.labels, [("team".to_owned(), Some("a".to_owned())), ("env".to_owned(), None)]);
        assert!(search.is_ascending && !search.with_ephemeral);
        for (query, param) in [
            ("status=alive", "status"),
            ("sort=colour", "sort"),
            ("order=up", "order"),
            ("created_after=soon", "created_after"),
            ("include_ephemeral=1", "include_ephemeral"),
        ] {
            assert_eq!(take(query).unwrap_err().param(), Some(param));
        }
    }
}
