//! What every request carries: its ids, and the promise that a panic becomes an answer.
use std::borrow::Cow;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use axum::body::Body;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Response};
use axum::middleware::Next;
use axum::response::IntoResponse;
use futures::FutureExt;
use tracing::{debug, error, info};
use uuid::Uuid;

use super::error::{ApiError, ErrorReason, in_one_shape};
use super::state::Api;
use crate::telemetry::{RefusedRequest, redact};

const CLIENT_ID: HeaderName = HeaderName::from_static("x-request-id");
const OWN_ID: HeaderName = HeaderName::from_static("x-millgate-request-id");
/// Longer ids than this are not echoed.
const MAX_ID_LENGTH: usize = 128;
/// Routes that machines ask every few seconds; their lines would drown the others.
const PROBES: [&str; 4] = ["/livez", "/readyz", "/health", "/metrics"];

/// The ids of a request.
#[derive(Clone, Debug)]
pub(crate) struct RequestContext {
    /// Ours; what the ledger and the log use.
    pub(crate) id: Uuid,
    /// The client's, if it sent a well-formed one: a label, never an identity.
    pub(crate) client_id: Option<String>,
    /// The client's `traceparent`: a link for traces, nothing else.
    pub(crate) traceparent: Option<String>,
    /// When the request arrived.
    pub(crate) received: Instant,
    /// Whether its generation leaves a trace of its own.
    is_traced: Arc<AtomicBool>,
}

impl RequestContext {
    /// Takes note that the generation leaves a trace.
    pub(crate) fn note_traced(&self) {
        self.is_traced.store(true, Ordering::Relaxed);
    }
}

/// Gives the request its ids, catches panics, and logs one line when the answer's head is ready.
pub(crate) async fn with_context(State(api): State<Api>, mut request: Request, next: Next) -> Response<Body> {
    let started = Instant::now();
    let context = RequestContext {
        id: Uuid::now_v7(),
        client_id: client_id(request.headers()),
        traceparent: request.headers().get("traceparent").and_then(|value| value.to_str().ok()).map(str::to_owned),
        received: started,
        is_traced: Arc::default(),
    };
    let method = request.method().clone();
    let route = request
        .extensions()
        .get::<MatchedPath>()
        .map_or_else(|| "unmatched".to_owned(), |path| path.as_str().to_owned());
    request.extensions_mut().insert(context.clone());
    let mut response = match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => in_one_shape(response),
        Err(_) => {
            // The panic hook has printed what and where; this line says for whom.
            error!(request.id = %context.id, "{method} {route} panicked");
            ApiError::internal().naming_request(context.id).into_response()
        }
    };
    let id = HeaderValue::try_from(context.id.to_string()).expect("a UUID is header text");
    let echoed =
        context.client_id.as_deref().and_then(|text| HeaderValue::from_str(text).ok()).unwrap_or_else(|| id.clone());
    response.headers_mut().insert(CLIENT_ID, echoed);
    response.headers_mut().insert(OWN_ID, id);
    let (status, elapsed) = (response.status().as_u16(), started.elapsed());
    api.metrics.answered(&route, status);
    trace_refusal(&api, &context, &route, &response);
    let duration_ms = elapsed.as_millis() as u64;
    if PROBES.contains(&route.as_str()) {
        debug!(request.id = %context.id, status, duration_ms, "{method} {route} answered {status}");
    } else {
        info!(request.id = %context.id, status, duration_ms, "{method} {route} answered {status}");
    }
    response
}

/// What a trace calls the work of a route, if it is traced.
fn operation(route: &str) -> Option<&'static str> {
    match route {
        "/v1/chat/completions" | "/llm/{model}/v1/chat/completions" => Some("chat"),
        "/v1/completions" | "/llm/{model}/v1/completions" => Some("text_completion"),
        _ => None,
    }
}

/// A request for generation that was answered with an error and left no trace of its own leaves a span.
fn trace_refusal(api: &Api, context: &RequestContext, route: &str, response: &Response<Body>) {
    let status = response.status();
    let Some(operation) = operation(route).filter(|_| status.is_client_error() || status.is_server_error()) else {
        return;
    };
    if context.is_traced.load(Ordering::Relaxed) {
        return;
    }
    let reason = response.extensions().get::<ErrorReason>().map_or("", |reason| reason.0.as_str());
    api.tracer.refused(&RefusedRequest {
        operation,
        route,
        id: context.id.to_string(),
        traceparent: context.traceparent.clone(),
        received: context.received,
        status: status.as_u16(),
        reason,
    });
}

/// The client's id if it is short and plain enough to be echoed and logged, and no credential: it is stored in the ledger.
fn client_id(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(CLIENT_ID)?.to_str().ok()?;
    let is_secret = |text: &str| matches!(redact(text), Cow::Owned(_));
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/+=@".contains(&byte);
    (!text.is_empty() && text.len() <= MAX_ID_LENGTH && text.bytes().all(is_plain) && !is_secret(text))
        .then(|| text.to_owned())
}
