//! Models: how they are doing, to which tiers they are published, and what they are loaded with.
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::model_life::check_open;
use super::model_view::{READ_ONLY, answer, configured_elsewhere, model_view, spec_of, take_env, take_published};
use crate::api::error::ApiError;
use crate::api::input::read_fields;
use crate::api::json::{json_response, list};
use crate::api::model_orders::KeptSettings;
use crate::api::schema::{self, Listed, ModelChange};
use crate::api::state::Api;
use crate::governance::records::ModelRecord;
use crate::governance::{ModelPatch, Principal};

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
    Ok(answer(&api, StatusCode::OK, &model))
}

/// `PUT /admin/v1/models/{name}`: `display_name`, `tiers` and `published` act on the next request; `source`, `env` and
/// `hardware` with the next load, and `reload_required` says so.
#[utoipa::path(
    put,
    path = "/admin/v1/models/{name}",
    tag = "Administration",
    summary = "Publishes a model to tiers or renames it, without a reload; changes what its next load uses",
    params(("name" = String, Path, description = "The model's name")),
    request_body = ModelChange,
    responses(
        (status = 200, description = "The model as it is now", body = schema::Model),
        (status = 404, description = "No such model"),
        (status = 409, description = "Its source and settings come from the configuration, or others keep changing things"),
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
    let display_name = body.string("display_name")?;
    let published = take_published(&mut body, &old.published)?;
    let source = body.string("source")?;
    let env = take_env(&mut body)?;
    let hardware = body.string("hardware")?;
    body.ignore(READ_ONLY);
    body.refuse_unknown()?;

    let served = api.models.get(&name);
    let mut kept = KeptSettings::read(&old.settings);
    if let Some(served) = &served {
        kept.env.clone_from(&served.env);
    }
    let changed = ModelRecord { source: source.clone().unwrap_or_else(|| old.source.clone()), ..old.clone() };
    let before = spec_of(&old, &kept);
    kept.env = env.unwrap_or(kept.env);
    kept.hardware = hardware.or(kept.hardware);
    let after = spec_of(&changed, &kept);
    let mut patch = ModelPatch { display_name, published, source: None, settings: None };
    if before == after {
        return Ok(answer(&api, StatusCode::OK, &api.governor.update_model(&principal, &name, patch).await?));
    }
    match served.as_ref().map(|served| served.configured_in) {
        Some(Some(place)) => return Err(configured_elsewhere(&name, place, "given another source or settings")),
        None => return Err(configured_elsewhere(&name, "a configuration that does not hold it any more", "changed")),
        Some(None) => {}
    }
    check_open(&api)?;
    api.orders.check(after.clone()).await?;
    patch.source = source;
    patch.settings = Some(kept.text());
    let model = api.governor.update_model(&principal, &name, patch).await?;
    api.orders.replace(after).await?;
    Ok(answer(&api, StatusCode::OK, &model))
}
