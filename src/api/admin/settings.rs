//! The effective settings: read by administrators, and changed where that needs no restart.
use axum::extract::{Extension, Request, State};
use axum::http::StatusCode;
use axum::response::Response;

use crate::api::error::ApiError;
use crate::api::input::read_fields;
use crate::api::json::json_response;
use crate::api::schema;
use crate::api::state::Api;
use crate::governance::Principal;

/// What an answer shows and a change may send back without effect.
const READ_ONLY: &[&str] = &["object", "environment", "changeable", "changed_since_start", "note"];

/// `GET /admin/v1/config`.
#[utoipa::path(
    get,
    path = "/admin/v1/config",
    tag = "Administration",
    summary = "The settings in effect, secrets masked",
    responses((status = 200, description = "The settings", body = schema::ServerSettings)),
)]
pub(crate) async fn get_config(State(api): State<Api>) -> Response {
    json_response(StatusCode::OK, &api.settings.view())
}

/// `PUT /admin/v1/config` `{settings: {log: {level}}}`: lasts until the server stops.
#[utoipa::path(
    put,
    path = "/admin/v1/config",
    tag = "Administration",
    summary = "Changes the log level until the server stops",
    description = "Tables and keys that are left out stay. All other settings are read when the server starts: a value that is \
                   not the one in effect is refused. Nothing is written to the configuration file.",
    request_body = schema::SettingsChange,
    responses(
        (status = 200, description = "The settings as they are now", body = schema::ServerSettings),
        (status = 409, description = "`param` names a setting that only a restart changes; nothing was changed"),
    ),
)]
pub(crate) async fn put_config(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    body.ignore(READ_ONLY);
    let wish = body.object("settings")?;
    let missing = body.complain("settings", "is required");
    body.refuse_unknown()?;
    let wish = wish.ok_or(missing)?;
    // To its end also when the client goes away: what the audit log says is then in effect.
    let tasks = api.settings.tasks().clone();
    let change = tasks.spawn(async move {
        let Ok(_turn) = api.settings.turn.acquire().await else { return Err(ApiError::internal()) };
        if let Some(change) = api.settings.check(&wish)? {
            api.governor.note_config_change(&principal, &change.document).await?;
            api.settings.make(change);
        }
        Ok(json_response(StatusCode::OK, &api.settings.view()))
    });
    change.await.unwrap_or_else(|_| Err(ApiError::internal()))
}
