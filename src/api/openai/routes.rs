//! The HTTP side of generation: peek, read the bounded body, hand over.
use axum::body::Body;
use axum::extract::{Extension, Path, Request, State};
use axum::http::Response;
use tokio::time::Instant;

use super::chat::chat;
use super::completions::complete;
use super::start::{Caller, tenant};
use crate::api::body::{discard, read_body};
use crate::api::error::ApiError;
use crate::api::limits::denied_error;
use crate::api::request_context::RequestContext;
use crate::api::schema::{ChatCompletion, ChatRequest, CompletionRequest, TextCompletion};
use crate::api::state::Api;
use crate::governance::Principal;

/// The model of an address that names one; under a name of its own because the OpenAPI macro cannot read the type.
pub(crate) type PathModel = Option<Path<String>>;

/// `POST /v1/chat/completions`, also with the model in the path.
#[utoipa::path(
    post,
    path = "/v1/chat/completions",
    tag = "Inference",
    summary = "Answers a conversation",
    operation_id = "create_chat_completion",
    request_body = ChatRequest,
    responses(
        (
            status = 200,
            description = "The answer; with `stream` as server-sent events that end with `[DONE]`",
            content((ChatCompletion = "application/json"), (String = "text/event-stream")),
        ),
        (status = 403, description = "The tier may not use this model"),
        (status = 404, description = "No such model"),
    ),
)]
pub(crate) async fn post_chat(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Extension(context): Extension<RequestContext>,
    path: PathModel,
    request: Request,
) -> Result<Response<Body>, ApiError> {
    let caller = Caller { principal, context, endpoint: "chat.completions", arrived: Instant::now() };
    let model = path.map(|Path(name)| name);
    let body = governed_body(&api, &caller, model.as_deref(), request).await?;
    let id = caller.context.id;
    chat(&api, caller, model.as_deref(), &body).await.map_err(|error| error.naming_request(id))
}

/// `POST /v1/completions`, also with the model in the path.
#[utoipa::path(
    post,
    path = "/v1/completions",
    tag = "Inference",
    summary = "Continues texts",
    operation_id = "create_completion",
    request_body = CompletionRequest,
    responses(
        (
            status = 200,
            description = "The answer; with `stream` as server-sent events that end with `[DONE]`",
            content((TextCompletion = "application/json"), (String = "text/event-stream")),
        ),
        (status = 403, description = "The tier may not use this model"),
        (status = 404, description = "No such model"),
    ),
)]
pub(crate) async fn post_completion(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Extension(context): Extension<RequestContext>,
    path: PathModel,
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
    // Every choice of every prompt may fill a context window of its own.
    let most = api.config.bounds.max_prompts.saturating_mul(api.config.bounds.max_choices as usize);
    let largest = windows.max().unwrap_or(0).saturating_mul(most) as u64;
    if let Err(denied) = api.governor.peek(&caller.principal, model, largest).await {
        api.metrics.refused(denied.reason);
        // The name in the address is the client's: only one that exists may become a label.
        let known = model.filter(|name| api.models.get(name).is_some()).unwrap_or_default();
        api.metrics.tenant_refused(&tenant(&caller.principal), known);
        discard(&parts.headers, body).await;
        return Err(denied_error(&denied));
    }
    read_body(&parts.headers, body, &api.config).await
}
