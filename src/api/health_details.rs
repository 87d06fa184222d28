//! `GET /health/details`: what the probes do not say, for whoever operates the server.
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use super::admin::standing;
use super::json::json_response;
use super::models::ServedModel;
use super::schema::HealthDetails;
use super::state::Api;

/// A store that takes longer than this for a small question is failing.
const PATIENCE: Duration = Duration::from_secs(2);

/// Every part and how it is doing. Always 200: whether to send traffic is `/readyz`'s to say.
#[utoipa::path(
    get,
    path = "/health/details",
    tag = "Operations",
    summary = "Every part and how it is doing",
    description = "For administrators; on the operations listener for everybody there.",
    responses((status = 200, description = "The parts; `degraded` when one of them has a problem", body = HealthDetails)),
)]
pub(crate) async fn health_details(State(api): State<Api>) -> Response {
    let models = api.models.all();
    let is_store_well = is_store_well(&api).await;
    let ledger_failures = api.metrics.ledger_failures();
    let is_well = is_store_well && models.iter().all(|model| model.is_healthy());
    let status = match (api.lifecycle.is_draining(), api.lifecycle.is_ready()) {
        (true, _) => "draining",
        (false, false) => "starting",
        (false, true) if is_well => "ok",
        (false, true) => "degraded",
    };
    let body = json!({
        "status": status,
        "version": env!("CARGO_PKG_VERSION"),
        "open_generations": api.metrics.open_generations(),
        "models": models.iter().map(|model| model_health(model)).collect::<Vec<_>>(),
        "store": {"status": if is_store_well { "ok" } else { "failing" }, "ledger_failures": ledger_failures},
    });
    json_response(StatusCode::OK, &body)
}

fn model_health(model: &ServedModel) -> Value {
    let (standing, totals) = (standing(Some(model)), model.totals());
    let engine = model.ready().map(|ready| ready.engine.status());
    json!({
        "name": model.name,
        "status": standing.status,
        "phase": standing.phase,
        "reason": standing.reason,
        "progress": standing.progress,
        "device": model.ready().map(|ready| ready.engine.spec().device.to_string()),
        "running": totals.running,
        "waiting": totals.waiting.max(totals.queued_requests),
        "parked": totals.parked,
        "heartbeat_age_ms": engine.as_ref().map(|engine| engine.heartbeat_age.as_millis() as u64),
        "fault": engine.and_then(|engine| engine.fault),
    })
}

/// Whether the store answers a small question.
async fn is_store_well(api: &Api) -> bool {
    let operator = api.governor.operator();
    match tokio::time::timeout(PATIENCE, api.governor.groups(&operator, None, Some(1))).await {
        Ok(Ok(_)) => true,
        Ok(Err(error)) => {
            tracing::warn!(%error, "the store does not answer a look at its health");
            false
        }
        Err(_) => false,
    }
}
