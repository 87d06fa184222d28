//! Whether the process lives, whether it takes work, and its figures.
use axum::extract::State;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::json;

use super::json::json_response;
use super::state::Api;
use crate::telemetry::EngineReading;

/// `GET /livez`: the process is up.
pub(crate) async fn livez() -> Response {
    json_response(StatusCode::OK, &json!({"status": "ok"}))
}

/// `GET /readyz` and `GET /health`: start-up is over and the server is not draining.
pub(crate) async fn readyz(State(api): State<Api>) -> Response {
    let (status, word) = match (api.lifecycle.is_ready(), api.lifecycle.is_draining()) {
        (true, _) => (StatusCode::OK, "ok"),
        (false, true) => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        (false, false) => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
    };
    json_response(status, &json!({"status": word}))
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(api): State<Api>) -> Response {
    for model in api.models.all() {
        let Some(ready) = model.ready() else { continue };
        let status = ready.engine.status();
        let totals = status.totals;
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
            is_healthy: status.is_healthy,
        };
        api.metrics.read_engine(&model.name, &reading);
    }
    let content_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    ([(header::CONTENT_TYPE, content_type)], api.metrics.render()).into_response()
}
