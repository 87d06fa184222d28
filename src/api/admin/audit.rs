//! The audit log: who changed what, when, from where, before and after.
use axum::extract::{Extension, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::input::{Page, Query};
use crate::api::json::{json_response, list, moment};
use crate::api::schema::{self, AuditVerdict, Listed, PageQuery};
use crate::api::state::Api;
use crate::governance::Principal;
use crate::governance::audit::{AuditFilter, AuditRow, Head};

/// `GET /admin/v1/audit?actor=&action=&target=&start=&end=`, newest first.
#[utoipa::path(
    get,
    path = "/admin/v1/audit",
    tag = "Administration",
    summary = "Who changed what, newest first",
    params(
        PageQuery,
        ("actor" = Option<String>, Query, description = "Only changes made by this user"),
        ("action" = Option<String>, Query, description = "Only changes of this kind"),
        ("target" = Option<String>, Query, description = "Only changes of this thing"),
        ("start" = Option<schema::Moment>, Query, description = "From here on: RFC 3339 or seconds since the Unix epoch"),
        ("end" = Option<schema::Moment>, Query, description = "Up to here, exclusive"),
    ),
    responses((status = 200, description = "The rows", body = Listed<schema::AuditRow>)),
)]
pub(crate) async fn list_audit(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(query.as_deref())?;
    let page = Page::take(&mut query)?;
    let below = page.cursor.map(|cursor| cursor.parse()).transpose();
    let below = below.map_err(|_| ApiError::invalid(Some("cursor"), "`cursor` is not one that a list gave"))?;
    let filter = AuditFilter {
        actor: query.take("actor"),
        action: query.take("action"),
        target: query.take("target"),
        start_us: query.take_moment("start")?,
        end_us: query.take_moment("end")?,
        below,
        limit: page.limit.unwrap_or_default(),
    };
    query.refuse_unknown()?;
    let page = api.governor.audit(&principal, filter).await?;
    let data = page.rows.iter().map(row_view).collect();
    Ok(json_response(StatusCode::OK, &list(data, page.next.map(|next| next.to_string()))))
}

/// `GET /admin/v1/audit/verify?head=`: follows the chain and names the first row that does not hold.
#[utoipa::path(
    get,
    path = "/admin/v1/audit/verify",
    tag = "Administration",
    summary = "Follows the chain and names the first row that does not hold",
    params(("head" = Option<String>, Query, pattern = "^[0-9]{1,18}:[0-9A-Fa-f]{64}$", description = "A head noted earlier that must still be part of the chain")),
    responses((status = 200, description = "The verdict", body = AuditVerdict)),
)]
pub(crate) async fn verify_audit(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(query.as_deref())?;
    let noted = query.take("head").map(|text| text.parse::<Head>()).transpose();
    let noted = noted.map_err(|error| ApiError::invalid(Some("head"), format!("`head`: {error}")))?;
    query.refuse_unknown()?;
    let verdict = api.governor.verify_audit(&principal, noted).await?;
    let broken = verdict.broken.map(|broken| json!({"row": broken.sequence, "reason": broken.what}));
    let view = json!({
        "object": "audit.verification",
        "intact": broken.is_none(),
        "rows": verdict.head.sequence,
        "head": verdict.head.to_string(),
        "broken": broken,
    });
    Ok(json_response(StatusCode::OK, &view))
}

fn row_view(row: &AuditRow) -> Value {
    json!({
        "object": "audit.row",
        "id": row.sequence,
        "at": moment(row.at_us),
        "actor": {"name": row.actor, "id": row.actor_id, "key": row.key, "source": row.source},
        "action": row.action,
        "target": row.target,
        "before": state(row.before.as_deref()),
        "after": state(row.after.as_deref()),
        "hash": row.hash,
    })
}

/// What was stored as JSON; as text where somebody has made something else of it.
fn state(text: Option<&str>) -> Value {
    text.map_or(Value::Null, |text| serde_json::from_str(text).unwrap_or_else(|_| text.into()))
}
