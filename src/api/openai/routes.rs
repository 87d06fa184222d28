//! The HTTP side of generation: peek, read the bounded body, hand over.
use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::Response;
use tokio::time::Instant;

use super::chat::chat;
use super::completions::complete;
use super::start::Caller;
use crate::api::body::{discard, read_body};
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
    let id = caller.context.id;
    chat(&api, caller, model.as_deref(), &body).await.map_err(|error| error.naming_request(id))
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
    let id = caller.context.id;
    complete(&api, caller, model.as_deref(), &body).await.map_err(|error| error.naming_request(id))
}

/// Refuses who has nothing left before reading what they sent.
async fn governed_body(
    api: &Api,
    caller: &Caller,
    model: Option<&str>,
    request: Request,
) -> Result<axum::body::Bytes, ApiError> {
    let (parts, body) = request.into_parts();
    let windows = api.models.all().into_iter().filter_map(|served| served.context_window());
    let largest = windows.max().unwrap_or(0) as u64;
    if let Err(denied) = api.governor.peek(&caller.principal, model, largest).await {
        api.metrics.refused(denied.reason);
        discard(&parts.headers, body).await;
        return Err(denied_error(&denied, api.now()));
    }
    read_body(&parts.headers, body, &api.config).await
}
