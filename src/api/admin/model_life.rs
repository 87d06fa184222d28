//! Models come and go while the server runs: create, load, unload, delete.
use axum::extract::{Extension, Path, Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use super::model_view::{READ_ONLY, answer, configured_elsewhere, model_view, spec_of, take_env, take_published};
use crate::api::error::{ApiError, Kind};
use crate::api::input::read_fields;
use crate::api::json::json_response;
use crate::api::model_orders::{KeptSettings, ModelSpec, OrderError};
use crate::api::models::ModelState;
use crate::api::schema;
use crate::api::state::Api;
use crate::governance::records::{ModelRecord, Published};
use crate::governance::{ModelPatch, NewModel, Principal, ServiceError};

/// `POST /admin/v1/models`: makes a model known, published to nobody unless it says otherwise, and begins to load it.
#[utoipa::path(
    post,
    path = "/admin/v1/models",
    tag = "Administration",
    summary = "Makes a model known and begins to load it, published to nobody unless it says otherwise",
    request_body = schema::NewModel,
    responses(
        (status = 201, description = "The model; its phase and progress tell how far it is", body = schema::Model),
        (status = 409, description = "There is a model of that name, or there are too many"),
    ),
)]
pub(crate) async fn create_model(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let name = body.required_string("name")?;
    let source = body.required_string("source")?;
    let display_name = body.string("display_name")?;
    let nobody = Published::Tiers(Vec::new());
    let published = take_published(&mut body, &nobody)?.unwrap_or(nobody);
    let env = take_env(&mut body)?.unwrap_or_default();
    let hardware = body.string("hardware")?;
    let read_only: Vec<&str> = READ_ONLY.iter().copied().filter(|field| *field != "name").collect();
    body.ignore(&read_only);
    body.refuse_unknown()?;

    check_open(&api)?;
    let kept = KeptSettings { is_from_api: true, is_wanted: true, hardware, env };
    let created_at_us = api.clock.now_us();
    let spec = ModelSpec {
        name: name.clone(),
        source: source.clone(),
        hardware: kept.hardware.clone(),
        env: kept.env.clone(),
        created_at_us,
    };
    api.orders.check(spec).await?;
    let new = NewModel { name, display_name, source, published, settings: kept.text() };
    let model = api.governor.create_model(&principal, new).await?;
    order_load(&api, &principal, &model, Some(spec_of(&model, &kept))).await?;
    Ok(answer(&api, StatusCode::CREATED, &model))
}

/// `POST /admin/v1/models/{name}/load`: 200 when it is ready, else 202, and the model's phase and progress tell the rest.
/// A model whose source or settings changed is unloaded and loaded again.
#[utoipa::path(
    post,
    path = "/admin/v1/models/{name}/load",
    tag = "Administration",
    summary = "Loads a model, or loads it again when its source or settings changed",
    params(("name" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "It is ready already", body = schema::Model),
        (status = 202, description = "It is being loaded", body = schema::Model),
        (status = 404, description = "No such model"),
        (status = 409, description = "It is a model of an earlier configuration"),
    ),
)]
pub(crate) async fn load_model(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let old = api.governor.model(&principal, &name).await?;
    let kept = KeptSettings { is_wanted: true, ..KeptSettings::read(&old.settings) };
    let spec = match api.models.get(&name).map(|served| served.configured_in) {
        Some(Some(_)) => None,
        Some(None) => Some(spec_of(&old, &kept)),
        None if kept.is_from_api => Some(spec_of(&old, &kept)),
        None => {
            let message = format!("model `{name}` is not in the configuration any more; delete it and create it again");
            return Err(ApiError::new(Kind::Conflict, message));
        }
    };
    check_open(&api)?;
    if let Some(spec) = &spec {
        // Again: what may be loaded from where can have changed since it was created.
        api.orders.check(spec.clone()).await?;
    }
    let model = remember_wish(&api, &principal, &old, &kept).await?;
    // Before the order: a small model may be loaded before the answer to it is written.
    let is_ready = api.models.get(&name).is_some_and(|served| served.ready().is_some() && !served.needs_reload);
    order_load(&api, &principal, &model, spec).await?;
    Ok(answer(&api, if is_ready { StatusCode::OK } else { StatusCode::ACCEPTED }, &model))
}

/// `POST /admin/v1/models/{name}/unload`: 200 when nothing is loaded, else 202: what runs may finish, then the memory is free.
#[utoipa::path(
    post,
    path = "/admin/v1/models/{name}/unload",
    tag = "Administration",
    summary = "Lets what runs finish, then frees the model's memory",
    params(("name" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "Nothing of it is loaded", body = schema::Model),
        (status = 202, description = "It is draining, or its load is being given up", body = schema::Model),
        (status = 404, description = "No such model"),
        (status = 409, description = "Others keep changing things"),
    ),
)]
pub(crate) async fn unload_model(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let old = api.governor.model(&principal, &name).await?;
    check_open(&api)?;
    let kept = KeptSettings { is_wanted: false, ..KeptSettings::read(&old.settings) };
    let model = remember_wish(&api, &principal, &old, &kept).await?;
    match api.orders.unload(&name).await {
        // A model of an earlier configuration is not loaded: nothing is left to do.
        Ok(()) | Err(OrderError::Unknown) => {}
        Err(error) => return Err(error.into()),
    }
    let served = api.models.get(&name);
    let is_gone = served.is_none_or(|served| matches!(served.state, ModelState::Unloaded));
    Ok(answer(&api, if is_gone { StatusCode::OK } else { StatusCode::ACCEPTED }, &model))
}

/// `DELETE /admin/v1/models/{name}`: unloads and forgets; what the ledger says about it stays.
#[utoipa::path(
    delete,
    path = "/admin/v1/models/{name}",
    tag = "Administration",
    summary = "Unloads a model and forgets it; the ledger stays",
    params(("name" = String, Path, description = "The model's name")),
    responses(
        (status = 200, description = "The model as it was", body = schema::DeletedModel),
        (status = 404, description = "No such model"),
        (status = 409, description = "It comes from the configuration, and can only be removed there"),
    ),
)]
pub(crate) async fn delete_model(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let model = api.governor.model(&principal, &name).await?;
    if let Some(place) = api.models.get(&name).and_then(|served| served.configured_in) {
        return Err(configured_elsewhere(&name, place, "removed"));
    }
    check_open(&api)?;
    let mut view = model_view(&api, &model);
    api.governor.delete_model(&principal, &name).await?;
    match api.orders.forget(&name).await {
        Ok(()) | Err(OrderError::Unknown) => {}
        Err(error) => return Err(error.into()),
    }
    view["deleted"] = true.into();
    Ok(json_response(StatusCode::OK, &view))
}

/// Models change only between start-up and shutdown.
pub(super) fn check_open(api: &Api) -> Result<(), ApiError> {
    if api.lifecycle.is_ready() { Ok(()) } else { Err(OrderError::Closed.into()) }
}

/// Keeps whether the model is to be loaded, over restarts and for the audit log.
async fn remember_wish(
    api: &Api,
    principal: &Principal,
    old: &ModelRecord,
    kept: &KeptSettings,
) -> Result<ModelRecord, ApiError> {
    let patch = ModelPatch { settings: Some(kept.text()), ..ModelPatch::default() };
    Ok(api.governor.update_model(principal, &old.name, patch).await?)
}

/// Orders the load; if the model was deleted meanwhile, the order is taken back.
async fn order_load(
    api: &Api,
    principal: &Principal,
    model: &ModelRecord,
    spec: Option<ModelSpec>,
) -> Result<(), ApiError> {
    api.orders.load(&model.name, spec).await?;
    match api.governor.model(principal, &model.name).await {
        Ok(_) => Ok(()),
        Err(error) => {
            // A deletion orders its own `forget` after its commit, so whichever comes last leaves nothing behind.
            if matches!(error, ServiceError::NotFound(_)) {
                api.orders.forget(&model.name).await?;
            }
            Err(error.into())
        }
    }
}
