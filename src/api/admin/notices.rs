//! Thresholds of quotas that were reached, and whether the webhook was told.
use axum::extract::{Extension, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::api::error::ApiError;
use crate::api::input::Page;
use crate::api::json::{json_response, list, moment};
use crate::api::schema::{self, Listed, PageQuery};
use crate::api::state::Api;
use crate::governance::Principal;
use crate::governance::notices::Notice;

const PAGE: u32 = 100;

/// `GET /admin/v1/notices`: newest first.
#[utoipa::path(
    get,
    path = "/admin/v1/notices",
    tag = "Administration",
    summary = "Thresholds of quotas that were reached",
    params(PageQuery),
    responses((status = 200, description = "Notices, newest first", body = Listed<schema::Notice>)),
)]
pub(crate) async fn list_notices(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let page = Page::parse(query.as_deref())?;
    let before = match page.cursor.as_deref().map(read_cursor) {
        None => None,
        Some(Some(before)) => Some(before),
        Some(None) => return Err(ApiError::invalid(Some("cursor"), "`cursor` is not one of this list")),
    };
    let wanted = page.limit.unwrap_or(PAGE);
    let mut notices = api.governor.notices(&principal, before, wanted + 1).await?;
    let has_more = notices.len() > wanted as usize;
    notices.truncate(wanted as usize);
    let next = notices.last().filter(|_| has_more).map(|last| format!("{}-{}", last.at_us, last.id.simple()));
    Ok(json_response(StatusCode::OK, &list(notices.into_iter().map(notice_view).collect(), next)))
}

fn read_cursor(cursor: &str) -> Option<(i64, Uuid)> {
    let (us, id) = cursor.split_once('-')?;
    Some((us.parse().ok()?, id.parse().ok()?))
}

fn notice_view(notice: Notice) -> Value {
    let mut view = notice.body;
    view["object"] = "notice".into();
    view["id"] = notice.id.to_string().into();
    view["at"] = moment(notice.at_us);
    view["delivery"] = json!({
        "state": notice.state.as_str(),
        "attempts": notice.attempts,
        "last_error": notice.last_error,
    });
    view
}
