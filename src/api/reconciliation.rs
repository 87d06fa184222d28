//! `GET /admin/v1/reconciliation`: whether engines, ledger, limiter, and what clients were told agree; and the watch that keeps
//! the metric of it.
use std::time::Duration;

use axum::extract::{Extension, RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use super::error::ApiError;
use super::input::Query;
use super::json::{json_response, moment};
use super::limits::figure;
use super::schema;
use super::state::Api;
use crate::governance::reconcile::{Comparison, DurableReport, LiveReport, RollUpDifference, Sums};
use crate::governance::{Principal, Resource};

/// How far back the disk is checked when nothing is asked for.
const DAY_US: i64 = 24 * 3600 * 1_000_000;
/// How often the metric is brought up to date.
const EVERY: Duration = Duration::from_secs(60);

/// Compares what must be the same. `start` and `end` say which rows on the disk are looked at; the counts since the start of the
/// process are always compared.
#[utoipa::path(
    get,
    path = "/admin/v1/reconciliation",
    tag = "Administration",
    summary = "Whether engines, ledger, limiter, and what clients were told agree",
    params(
        ("start" = Option<schema::Moment>, Query, description = "Rows admitted from here on: RFC 3339 or seconds since the Unix epoch; a day ago when absent"),
        ("end" = Option<schema::Moment>, Query, description = "Up to here, exclusive; now when absent"),
    ),
    responses((status = 200, description = "What was found", body = schema::Reconciliation)),
)]
pub(crate) async fn reconciliation(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let mut query = Query::parse(query.as_deref())?;
    let to_us = query.take_moment("end")?.unwrap_or_else(|| api.clock.now_us() + 1);
    let from_us = query.take_moment("start")?.unwrap_or(to_us.saturating_sub(DAY_US));
    if from_us >= to_us {
        return Err(ApiError::invalid(Some("start"), "`start` must be before `end`"));
    }
    query.refuse_unknown()?;
    let durable = api.governor.check_books(&principal, from_us, to_us).await?;
    let live = live(&api).await?;
    Ok(json_response(StatusCode::OK, &to_json(&durable, Some(&live), from_us, to_us)))
}

/// Keeps the metric up to date until `stop`.
pub async fn watch_books(api: Api, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(EVERY) => {}
        }
        match live(&api).await {
            Ok(report) if report.is_equal() => {}
            Ok(report) => {
                let apart: Vec<_> =
                    report.comparisons.iter().filter(|one| !one.is_equal).map(|one| one.between).collect();
                tracing::error!(
                    ?apart,
                    answers = report.wrong_count,
                    "figures that must be the same differ: see `millgate reconcile`"
                );
            }
            Err(_) => tracing::warn!("cannot compare ledger, limiter and engines at the moment"),
        }
    }
}

async fn live(api: &Api) -> Result<LiveReport, ApiError> {
    let engines = || {
        let totals = api.models.all().into_iter().map(|model| model.totals());
        totals.fold((0, 0), |sum, totals| (sum.0 + totals.prompt_tokens, sum.1 + totals.completion_tokens))
    };
    let report = api.governor.reconcile(&engines).await?;
    for one in &report.comparisons {
        api.metrics.reconciled(one.between, one.tokens_apart);
    }
    Ok(report)
}

/// The report as the API tells it and as the command line prints it; without a server there is only what is on the disk.
pub(crate) fn to_json(durable: &DurableReport, live: Option<&LiveReport>, from_us: i64, to_us: i64) -> Value {
    let is_equal = durable.is_equal() && live.is_none_or(LiveReport::is_equal);
    json!({
        "object": "reconciliation",
        "is_equal": is_equal,
        "start": moment(from_us),
        "end": moment(to_us),
        "disk": {
            "rows": durable.rows,
            "ledger": sums_view(durable.ledger),
            "contradictions": durable.findings_count,
            "rows_that_differ": durable.findings.iter().map(|one| {
                json!({"request_id": one.request.to_string(), "what": one.what})
            }).collect::<Vec<_>>(),
            "roll_ups_that_differ": durable.roll_ups.iter().map(roll_up_view).collect::<Vec<_>>(),
        },
        "since_start": live.map(live_view),
    })
}

fn live_view(live: &LiveReport) -> Value {
    let wrong = live.wrong.iter().map(|(id, told, ledger)| {
        json!({"request_id": id.to_string(), "told": sums_view(*told), "ledger": sums_view(*ledger)})
    });
    json!({
        "comparisons": live.comparisons.iter().map(comparison_view).collect::<Vec<_>>(),
        "open_requests": live.open,
        "in_flight": sums_view(live.in_flight),
        "held": sums_view(live.held),
        "answers_that_differ": live.wrong_count,
        "answers": wrong.collect::<Vec<_>>(),
    })
}

fn comparison_view(one: &Comparison) -> Value {
    json!({
        "between": one.between,
        "is_equal": one.is_equal,
        "difference_tokens": one.tokens_apart,
        "found": sums_view(one.theirs),
        "expected": sums_view(one.ours),
    })
}

fn roll_up_view(one: &RollUpDifference) -> Value {
    json!({
        "bucket": one.bucket,
        "start": moment(one.start_us),
        "subject": one.subject,
        "requests": one.requests,
        "failed_requests": one.failures,
        "prompt_tokens": one.prompt_tokens,
        "cached_tokens": one.cached_tokens,
        "completion_tokens": one.completion_tokens,
        "nano_usd": one.cost_nano_usd,
    })
}

fn sums_view(sums: Sums) -> Value {
    json!({
        "requests": sums.requests,
        "prompt_tokens": sums.prompt_tokens,
        "completion_tokens": sums.completion_tokens,
        "cost": figure(Resource::Cost, sums.cost_nano_usd),
    })
}
