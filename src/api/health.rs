//! Whether the process lives, whether it takes work, and its figures.
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::json::json_response;
use super::schema::Health;
use super::state::Api;
use crate::telemetry::EngineReading;

/// `GET /livez`: the process is up.
#[utoipa::path(
    get,
    path = "/livez",
    tag = "Operations",
    summary = "Whether the process is up",
    responses(
        (status = 200, description = "It is", body = Health),
    ),
)]
pub(crate) async fn livez() -> Response {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

/// `GET /readyz`: start-up is over and the server is not draining.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "Operations",
    summary = "Whether it takes work",
    responses(
        (status = 200, description = "It does", body = Health),
        (status = 503, description = "Starting, or draining", body = Health),
    ),
)]
pub(crate) async fn readyz(State(api): State<Api>) -> Response {
    let (status, word) = match (api.lifecycle.is_ready(), api.lifecycle.is_draining()) {
        (true, _) => (StatusCode::OK, "ok"),
        (false, true) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
    };
    json_response(status, &json!({"status": word}))
}

/// `GET /health`: the same as `/readyz`.
#[utoipa::path(
    get,
    path = "/health",
    tag = "Operations",
    summary = "Whether it takes work",
    responses(
        (status = 200, description = "It does", body = Health),
        (status = 503, description = "Starting, or draining", body = Health),
    ),
)]
pub(crate) async fn health(State(api): State<Api>) -> Response {
    readyz(State(api)).await
}

/// `GET /metrics`.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "Operations",
    summary = "Figures for Prometheus",
    responses((
        status = 200,
        description = "The figures; OpenMetrics when `Accept` asks for it",
        content((String = "text/plain"), (String = "application/openmetrics-text")),
    )),
)]
pub(crate) async fn metrics(State(api): State<Api>) -> Response {
    for model in api.models.all() {
        let totals = model.totals();
        let reading = EngineReading {
            running: totals.running as u64,
            waiting: totals.waiting.max(totals.queued_requests) as u64,
            owned_blocks: totals.blocks.owned as u64,
            cached_blocks: totals.blocks.cached as u64,
            total_blocks: totals.blocks.total as u64,
            steps: totals.steps,
            prompt_tokens: totals.prompt_tokens,
            cached_tokens: totals.cached_tokens,
            completion_tokens: totals.completion_tokens,
            preemptions: totals.preemptions,
            is_healthy: model.is_healthy(),
        };
        api.metrics.read_engine(&model.name, &reading);
    }
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], api.metrics.render()).into_response()
}
