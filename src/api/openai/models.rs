//! `GET /v1/models` and `GET /v1/models/{id}`: what the caller's tier may use.
use axum::extract::{Extension, Path, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Response;
use serde_json::{Value, json};

use super::routes::PathModel;
use crate::api::error::ApiError;
use crate::api::json::json_response;
use crate::api::models::ServedModel;
use crate::api::schema::{ModelCard, ModelCards};
use crate::api::state::Api;
use crate::governance::Principal;

/// `GET /v1/models`; under `/llm/{model}` it holds that model alone.
#[utoipa::path(
    get,
    path = "/v1/models",
    tag = "Inference",
    summary = "The models the caller may use",
    responses(
        (status = 200, description = "The models", body = ModelCards),
        (status = 404, description = "With the model in the address: no such model"),
    ),
)]
pub(crate) async fn list_models(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    path: PathModel,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let only = path.map(|Path(name)| name);
    if only.as_deref().is_some_and(|only| !principal.policy.allows(only)) {
        return Err(ApiError::not_found("Model"));
    }
    let names = principal.policy.models().filter(|name| only.as_deref().is_none_or(|only| only == *name));
    let data: Vec<Value> = names.filter_map(|name| api.models.get(name)).map(|model| card(&model, &headers)).collect();
    Ok(json_response(StatusCode::OK, &json!({"object": "list", "data": data})))
}

/// `GET /v1/models/{id}`; a model of another tier does not exist for the caller.
#[utoipa::path(
    get,
    path = "/v1/models/{id}",
    tag = "Inference",
    summary = "One model",
    params(("id" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "The model", body = ModelCard),
        (status = 404, description = "No such model, or not for this tier"),
    ),
)]
pub(crate) async fn get_model(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let model = api.models.get(&name).filter(|_| principal.policy.allows(&name));
    let model = model.ok_or_else(|| ApiError::not_found("Model"))?;
    Ok(json_response(StatusCode::OK, &card(&model, &headers)))
}

fn card(model: &ServedModel, headers: &HeaderMap) -> Value {
    let capabilities: &[&str] = match model.ready() {
        Some(ready) if ready.text.chat_template.is_some() => &["chat", "completions"],
        Some(_) => &["completions"],
        None => &[],
    };
    json!({
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": model.owned_by,
        "ready": model.ready().is_some(),
        "url": model.url.clone().or_else(|| own_url(&model.name, headers)),
        "context_window": model.context_window(),
        "capabilities": capabilities,
    })
}

/// The model's own base URL as the caller would write it.
fn own_url(name: &str, headers: &HeaderMap) -> Option<String> {
    let host = headers.get(header::HOST)?.to_str().ok()?;
    Some(format!("http://{host}/llm/{name}/v1"))
}
