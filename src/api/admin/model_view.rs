//! Models as administrators see them, and the fields they share between creating and changing one.
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Map, Value, json};

use crate::api::error::{ApiError, Kind};
use crate::api::fields::{Fields, kind};
use crate::api::json::{json_response, moment};
use crate::api::model_orders::{KeptSettings, ModelSpec, OrderError};
use crate::api::models::{ModelState, ServedModel};
use crate::api::state::Api;
use crate::governance::records::{ModelRecord, Published};

/// When to ask again for a server that is starting or stopping.
const CLOSED_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

/// What an answer shows and a change may send back without effect.
pub(super) const READ_ONLY: &[&str] = &[
    "object",
    "name",
    "origin",
    "status",
    "phase",
    "reason",
    "progress",
    "reload_required",
    "created_at",
    "context_window",
];

/// The model as an answer.
pub(super) fn answer(api: &Api, status: StatusCode, model: &ModelRecord) -> Response {
    json_response(status, &model_view(api, model))
}

/// A model with how it is doing.
pub(super) fn model_view(api: &Api, model: &ModelRecord) -> Value {
    let served = api.models.get(&model.name);
    let kept = KeptSettings::read(&model.settings);
    let standing = standing(served.as_deref());
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
        "hardware": kept.hardware,
        "env": served.as_ref().map_or(&kept.env, |served| &served.env),
        "origin": served.as_ref().map_or("nowhere", |served| served.configured_in.unwrap_or("api")),
        "status": standing.status,
        "phase": standing.phase,
        "reason": standing.reason,
        "progress": standing.progress,
        "reload_required": served.as_ref().is_some_and(|served| served.needs_reload),
        "context_window": served.as_ref().and_then(|served| served.context_window()),
        "created_at": moment(model.created_at_us),
    })
}

/// How a model is doing, in words.
pub(crate) struct Standing<'a> {
    pub(crate) status: &'static str,
    pub(crate) phase: Option<&'static str>,
    pub(crate) reason: Option<&'a str>,
    pub(crate) progress: Option<f64>,
}

/// How `served` is doing; `None` is a model that this process does not know.
pub(crate) fn standing(served: Option<&ServedModel>) -> Standing<'_> {
    let plain = |status, phase, reason| Standing { status, phase, reason, progress: None };
    match served.map(|served| &served.state) {
        None => {
            plain("unknown", None, Some("it is not in the configuration any more; delete it, or configure it again"))
        }
        Some(ModelState::Loading(progress)) => {
            let (phase, progress) = progress.read();
            Standing { status: "not_ready", phase: Some(phase), reason: None, progress }
        }
        Some(ModelState::Failed { reason }) => plain("not_ready", Some("failed"), Some(reason)),
        Some(ModelState::Unloading(_)) => plain("not_ready", Some("draining"), None),
        Some(ModelState::Unloaded) => plain("not_ready", Some("unloaded"), None),
        Some(ModelState::Ready(ready)) if !ready.engine.status().is_healthy => {
            plain("not_ready", Some("failed"), Some("the engine makes no progress; load it again"))
        }
        Some(ModelState::Ready(_)) => plain("ready", None, None),
    }
}

/// `tiers` says who; `published` alone is the switch for everybody or nobody.
pub(super) fn take_published(body: &mut Fields, old: &Published) -> Result<Option<Published>, ApiError> {
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
        (Some(true), None) if !is_published(old) => Some(Published::All),
        (Some(true) | None, None) => None,
    })
}

fn is_published(published: &Published) -> bool {
    match published {
        Published::All => true,
        Published::Tiers(tiers) => !tiers.is_empty(),
    }
}

/// Takes `env`, an object of settings.
pub(super) fn take_env(body: &mut Fields) -> Result<Option<Map<String, Value>>, ApiError> {
    match body.take("env") {
        None => Ok(None),
        // A setting that is null is one that is not set.
        Some(Value::Object(env)) => Ok(Some(env.into_iter().filter(|(_, value)| !value.is_null()).collect())),
        Some(other) => Err(body.complain("env", format!("must be an object of settings, found {}", kind(&other)))),
    }
}

/// How the record's model is to be loaded.
pub(super) fn spec_of(model: &ModelRecord, kept: &KeptSettings) -> ModelSpec {
    ModelSpec {
        name: model.name.clone(),
        source: model.source.clone(),
        hardware: kept.hardware.clone(),
        env: kept.env.clone(),
        created_at_us: model.created_at_us,
    }
}

/// The answer to a change of something that the configuration says.
pub(super) fn configured_elsewhere(name: &str, place: &str, change: &str) -> ApiError {
    ApiError::new(Kind::Conflict, format!("model `{name}` comes from {place}: it can only be {change} there"))
}

impl From<OrderError> for ApiError {
    fn from(error: OrderError) -> Self {
        match error {
            OrderError::Wrong { param, message } => Self::invalid(Some(&param), message),
            OrderError::Unknown => Self::not_found("Model"),
            OrderError::Closed => Self::unavailable(
                "Models cannot be changed while the server is starting or stopping. Please retry.",
                CLOSED_PAUSE,
            ),
        }
    }
}
