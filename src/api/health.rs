//! Whether the process lives, whether it takes work, and its figures.
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::json::json_response;
use super::models::ServedModel;
use super::schema::Health;
use super::state::Api;
use crate::engine::EngineHandle;
use crate::telemetry::{EngineReading, PageFormat};

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
    responses(
        (
            status = 200,
            description = "The figures; OpenMetrics when `Accept` asks for it",
            content((String = "text/plain"), (String = "application/openmetrics-text")),
        ),
        (status = 404, description = "There is an operations listener, and the figures are there"),
    ),
)]
pub(crate) async fn metrics(State(api): State<Api>, headers: HeaderMap) -> Response {
    let engines: Vec<EngineReading> = api.models.all().iter().map(|model| reading(model)).collect();
    let format = PageFormat::accepted(headers.get(header::ACCEPT).and_then(|accept| accept.to_str().ok()));
    // With a listener of its own, figures are the operator's alone.
    let page = api.metrics.render(format, &engines, api.config.has_ops_listener);
    ([(header::CONTENT_TYPE, HeaderValue::from_static(format.content_type()))], page).into_response()
}

fn reading(model: &ServedModel) -> EngineReading {
    let totals = model.totals();
    let engine = model.ready().map(|ready| &ready.engine);
    EngineReading {
        model: model.name.clone(),
        device: engine.map(|engine| engine.spec().device.to_string()).unwrap_or_default(),
        running: totals.running as u64,
        waiting: totals.waiting.max(totals.queued_requests) as u64,
        owned_blocks: totals.blocks.owned as u64,
        cached_blocks: totals.blocks.cached as u64,
        total_blocks: totals.blocks.total as u64,
        block_tokens: engine.map_or(0, |engine| engine.spec().block_tokens as u64),
        steps: totals.steps,
        step_tokens: engine.map(EngineHandle::step_tokens),
        prompt_tokens: totals.prompt_tokens,
        cached_tokens: totals.cached_tokens,
        completion_tokens: totals.completion_tokens,
        drafts: totals.drafts,
        draft_tokens: totals.draft_tokens,
        accepted_tokens: totals.accepted_tokens,
        preemptions: totals.preemptions,
        is_healthy: model.is_healthy(),
    }
}
