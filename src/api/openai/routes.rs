//! The HTTP side of generation: peek, read the bounded body, hand over.
use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::Response;
use tokio::time::Instant;

use super::chat::chat;
use super::completions::complete;
use super::start::Caller;
use crate::api::body::read_body;
use crate::api::error::ApiError;
use crate::api::limits::denied_error;
use crate::api::request_context::RequestContext;
use crate::api::state::Api;
use crate::governance::Principal;

/// `POST /v1/chat/completions`, also with the model in the path.
pub(crate) async fn post_chat(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Extension(context): Extension<RequestContext>,
    path: Option<Path<String>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let caller = Caller { principal, context, endpoint: "chat.completions", arrived: Instant::now() };
    let model = path.map(|Path(name)| name);
    let body = governed_body(&api, &caller, model.as_deref(), request).await?;
    chat(&api, caller, model.as_deref(), &body).await
}

/// `POST /v1/completions`, also with the model in the path.
pub(crate) async fn post_completion(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Extension(context): Extension<RequestContext>,
    path: Option<Path<String>>,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let caller = Caller { principal, context, endpoint: "completions", arrived: Instant::now() };
    let model = path.map(|Path(name)| name);
    let body = governed_body(&api, &caller, model.as_deref(), request).await?;
    complete(&api, caller, model.as_deref(), &body).await
}

/// Refuses who has nothing left before reading what they sent.
async fn governed_body(
    api: &Api,
    caller: &Caller,
    model: Option<&str>,
    request: Request,
) -> Result<axum::body::Bytes, ApiError> {
    if let Err(denied) = api.governor.peek(&caller.principal, model).await {
        api.metrics.refused(denied.reason);
        return Err(denied_error(&denied, api.now()));
    }
    let (parts, body) = request.into_parts();
    read_body(&parts.headers, body, &api.config).await
}
