//! `POST /admin/v1/tier-simulations`: what other tiers would have done to the requests of the past.
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::Fields;
use super::input::read_fields;
use super::json::{json_response, moment};
use super::limits::figure;
use super::schema;
use super::state::Api;
use crate::governance::calendar::parse_moment;
use crate::governance::replay::{Amounts, Case, Report, UNKNOWN, UserLine, Verdicts};
use crate::governance::tier_files::Declaration;
use crate::governance::{Principal, Resource};

/// Single requests told when nothing else is asked for.
const CASES: u32 = 20;
/// Single requests told at most.
const CASES_MAX: u32 = 10_000;

/// Plays the recorded ledger under the tiers of a file; nothing changes.
#[utoipa::path(
    post,
    path = "/admin/v1/tier-simulations",
    tag = "Administration",
    summary = "What other tiers would have done",
    description = "Runs the ledger once more through the limiter under the tiers as they would be with the file applied, and \
                   tells who would have been refused, when, by which limit, and what would have been saved.",
    request_body = schema::NewSimulation,
    responses((status = 200, description = "What was found", body = schema::Simulation)),
)]
pub(crate) async fn simulate_tiers(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let content = body.required_string("content")?;
    let format = body.string("format")?;
    let to_us = take_moment(&mut body, "end")?.unwrap_or_else(|| api.clock.now_us() + 1);
    let from_us = take_moment(&mut body, "start")?.ok_or_else(|| body.complain("start", "is required"))?;
    let cases = body.integer_in("cases", 0..=CASES_MAX)?.unwrap_or(CASES);
    let declared = match format.as_deref() {
        None | Some("yaml" | "json") => Declaration::from_yaml(&content),
        Some("toml") => Declaration::from_toml(&content),
        Some(_) => return Err(body.complain("format", "must be yaml, json or toml")),
    };
    let declared = declared.map_err(|error| body.complain("content", format!("declares no tiers: {error}")))?;
    if from_us >= to_us {
        return Err(body.complain("start", "must be before `end`"));
    }
    body.refuse_unknown()?;
    let report = api.governor.simulate_tiers(&principal, &declared, (from_us, to_us), cases as usize).await?;
    Ok(json_response(StatusCode::OK, &to_json(&report)))
}

fn take_moment(body: &mut Fields, field: &str) -> Result<Option<i64>, ApiError> {
    let Some(value) = body.take(field) else { return Ok(None) };
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    let wrong = || body.complain(field, "must be RFC 3339 or seconds since the Unix epoch");
    parse_moment(&text).map(Some).ok_or_else(wrong)
}

/// The report as the API tells it and as the command line prints it.
pub(crate) fn to_json(report: &Report) -> Value {
    let tiers = report.tiers.iter().map(|(name, verdicts)| {
        with(json!({"tier": if name.is_empty() { Value::Null } else { json!(name) }}), verdicts_view(verdicts))
    });
    let limits = report.limits.iter().map(|(limit, line)| {
        json!({"limit": &**limit, "refused": line.refused, "cut": line.cut, "saved": amounts_view(line.saved)})
    });
    json!({
        "object": "tier_simulation",
        "start": moment(report.from_us),
        "end": moment(report.to_us),
        "total": verdicts_view(&report.total),
        "failed_requests": report.failed,
        "counted_before": report.counted_before,
        "unknown_groups": report.unknown_groups,
        "tiers": tiers.collect::<Vec<_>>(),
        "users": report.users.iter().map(user_view).collect::<Vec<_>>(),
        "users_left_out": report.users_left_out,
        "limits": limits.collect::<Vec<_>>(),
        "cases": report.cases.iter().map(case_view).collect::<Vec<_>>(),
        "cases_left_out": report.cases_left_out,
        "cannot_know": UNKNOWN,
    })
}

fn user_view(line: &UserLine) -> Value {
    let view = json!({
        "user": line.name,
        "user_id": line.user.to_string(),
        "tier_before": line.tier_before,
        "tier_after": line.tier_after,
        "first": line.first_us.map(moment),
        "last": line.last_us.map(moment),
    });
    with(view, verdicts_view(&line.verdicts))
}

fn case_view(case: &Case) -> Value {
    json!({
        "at": moment(case.at_us),
        "request_id": case.request.to_string(),
        "user": case.user,
        "tier": case.tier,
        "model": case.model,
        "limit": &*case.limit,
        "outcome": if case.is_cut { "cut" } else { "refused" },
        "saved_tokens": case.saved_tokens,
        "retry_after_ms": case.retry_after.map(super::error::retry_after_ms),
    })
}

fn verdicts_view(verdicts: &Verdicts) -> Value {
    let view = json!({
        "refused": verdicts.refused,
        "cut": verdicts.cut,
        "slowed": verdicts.slowed,
        "saved": amounts_view(verdicts.saved),
    });
    with(view, amounts_view(verdicts.recorded))
}

fn amounts_view(amounts: Amounts) -> Value {
    let cost = figure(Resource::Cost, amounts.cost_nano_usd);
    json!({"requests": amounts.requests, "tokens": amounts.tokens, "cost": cost})
}

fn with(mut view: Value, more: Value) -> Value {
    if let (Value::Object(view), Value::Object(more)) = (&mut view, more) {
        view.extend(more);
    }
    view
}
