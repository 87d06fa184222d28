//! Models: how they are doing, and to which tiers they are published.
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::fields::{Fields, kind};
use crate::api::input::read_fields;
use crate::api::json::{json_response, list, moment};
use crate::api::models::ModelState;
use crate::api::schema::{self, Listed, ModelChange};
use crate::api::state::Api;
use crate::governance::records::{ModelRecord, Published};
use crate::governance::{ModelPatch, Principal};

/// What an answer shows and a change may send back without effect.
const READ_ONLY: &[&str] = &["object", "name", "status", "phase", "reason", "progress", "created_at", "context_window"];

/// `GET /admin/v1/models`.
#[utoipa::path(
    get,
    path = "/admin/v1/models",
    tag = "Administration",
    summary = "All models and how they are doing",
    operation_id = "list_all_models",
    responses(
        (status = 200, description = "The models", body = Listed<schema::Model>),
    ),
)]
pub(crate) async fn list_models(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
) -> Result<Response, ApiError> {
    let models = api.governor.models(&principal).await?;
    Ok(json_response(StatusCode::OK, &list(models.iter().map(|model| model_view(&api, model)).collect(), None)))
}

/// `GET /admin/v1/models/{name}`.
#[utoipa::path(
    get,
    path = "/admin/v1/models/{name}",
    tag = "Administration",
    summary = "One model",
    operation_id = "get_any_model",
    params(("name" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "The model", body = schema::Model),
        (status = 404, description = "No such model"),
    ),
)]
pub(crate) async fn get_model(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let model = api.governor.model(&principal, &name).await?;
    Ok(json_response(StatusCode::OK, &model_view(&api, &model)))
}

/// `PUT /admin/v1/models/{name}` `{display_name?, tiers?, published?}`: effective on the next request, without a reload.
#[utoipa::path(
    put,
    path = "/admin/v1/models/{name}",
    tag = "Administration",
    summary = "Publishes a model to tiers, or renames it, without a reload",
    params(("name" = String, Path, description = "The model's name")),
    request_body = ModelChange,
    responses(
        (status = 200, description = "The model as it is now", body = schema::Model),
        (status = 404, description = "No such model"),
    ),
)]
pub(crate) async fn put_model(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let old = api.governor.model(&principal, &name).await?;
    for field in ["hardware", "env"] {
        if body.take(field).is_some() {
            return Err(body.complain(field, "is not supported yet"));
        }
    }
    if body.string("source")?.is_some_and(|source| source != old.source) {
        return Err(body.complain("source", "cannot be changed here, that is not supported yet"));
    }
    let display_name = body.string("display_name")?;
    let published = take_published(&mut body, &old)?;
    body.ignore(READ_ONLY);
    body.refuse_unknown()?;
    let patch = ModelPatch { display_name, published, settings: None };
    let model = api.governor.update_model(&principal, &name, patch).await?;
    Ok(json_response(StatusCode::OK, &model_view(&api, &model)))
}

/// `tiers` says who; `published` alone is the switch for everybody or nobody.
fn take_published(body: &mut Fields, old: &ModelRecord) -> Result<Option<Published>, ApiError> {
    let switch = body.boolean("published")?;
    let tiers = match body.take("tiers") {
        None => None,
        Some(Value::String(word)) if word == "all" => Some(Published::All),
        Some(list @ Value::Array(_)) => {
            let mut wrapped = Fields::of_value(json!({ "tiers": list }), String::new())?;
            wrapped.strings("tiers")?.map(Published::Tiers)
        }
        Some(other) => {
            return Err(body.complain("tiers", format!("must be \"all\" or a list of tiers, found {}", kind(&other))));
        }
    };
    Ok(match (switch, tiers) {
        (Some(false), _) => Some(Published::Tiers(Vec::new())),
        (_, Some(tiers)) => Some(tiers),
        (Some(true), None) if !is_published(&old.published) => Some(Published::All),
        (Some(true) | None, None) => None,
    })
}

fn is_published(published: &Published) -> bool {
    match published {
        Published::All => true,
        Published::Tiers(tiers) => !tiers.is_empty(),
    }
}

fn model_view(api: &Api, model: &ModelRecord) -> Value {
    let served = api.models.get(&model.name);
    let (status, phase, reason, progress) = match served.as_deref().map(|served| &served.state) {
        None => ("unknown", None, None, None),
        Some(ModelState::Loading { phase, progress }) => ("not_ready", Some(phase.as_str()), None, *progress),
        Some(ModelState::Failed { reason }) => ("not_ready", Some("failed"), Some(reason.as_str()), None),
        Some(ModelState::Ready(ready)) if !ready.engine.status().is_healthy => {
            ("not_ready", Some("failed"), Some("the engine makes no progress"), None)
        }
        Some(ModelState::Ready(_)) => ("ready", None, None, None),
    };
    let tiers = match &model.published {
        Published::All => json!("all"),
        Published::Tiers(tiers) => json!(tiers),
    };
    json!({
        "object": "model",
        "name": model.name,
        "display_name": model.display_name,
        "source": model.source,
        "published": is_published(&model.published),
        "tiers": tiers,
        "status": status,
        "phase": phase,
        "reason": reason,
        "progress": progress,
        "context_window": served.as_ref().and_then(|served| served.context_window()),
        "created_at": moment(model.created_at_us),
    })
}
