//! Users and the groups they belong to.
use axum::extract::{Extension, Path, RawQuery, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use serde_json::{Value, json};

use crate::api::error::ApiError;
use crate::api::input::{Page, name_cursor, read_fields};
use crate::api::json::{json_response, list, moment};
use crate::api::schema::{self, Group, Listed, NewGroup, PageQuery, UserChange};
use crate::api::state::Api;
use crate::governance::records::UserRecord;
use crate::governance::{NewUser, Principal, UserPatch};

/// What an answer shows and a change may send back without effect.
const READ_ONLY: &[&str] = &["object", "id", "name", "issuer", "created_at"];
/// Users on a page when nobody says how many.
const PAGE: u32 = 100;

/// `GET /admin/v1/users`.
#[utoipa::path(
    get,
    path = "/admin/v1/users",
    tag = "Administration",
    summary = "Users by name",
    params(PageQuery),
    responses(
        (status = 200, description = "The users", body = Listed<schema::User>),
    ),
)]
pub(crate) async fn list_users(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let page = Page::parse(query.as_deref())?;
    let limit = page.limit.unwrap_or(PAGE);
    let users = api.governor.users(&principal, page.after_name()?.as_deref(), Some(limit)).await?;
    // A full page may be followed by an empty one; that costs a client one call more, never a user.
    let next = users.last().filter(|_| users.len() == limit as usize).map(|user| name_cursor(&user.name));
    Ok(json_response(StatusCode::OK, &list(users.iter().map(user_view).collect(), next)))
}

/// `POST /admin/v1/users` `{name, groups?}`.
#[utoipa::path(
    post,
    path = "/admin/v1/users",
    tag = "Administration",
    summary = "Makes a user",
    request_body = schema::NewUser,
    responses(
        (status = 201, description = "The user", body = schema::User),
        (status = 409, description = "The name is taken"),
    ),
)]
pub(crate) async fn create_user(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let name = body.required_string("name")?;
    let groups = body.strings("groups")?.unwrap_or_default();
    body.refuse_unknown()?;
    let user = api.governor.create_user(&principal, NewUser { name, groups }).await?;
    Ok(json_response(StatusCode::CREATED, &user_view(&user)))
}

/// `GET /admin/v1/users/{name}`.
#[utoipa::path(
    get,
    path = "/admin/v1/users/{name}",
    tag = "Administration",
    summary = "One user",
    params(("name" = String, Path, description = "The user's name")),
    responses(
        (status = 200, description = "The user", body = schema::User),
        (status = 404, description = "No such user"),
    ),
)]
pub(crate) async fn get_user(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    Ok(json_response(StatusCode::OK, &user_view(&api.governor.user(&principal, &name).await?)))
}

/// `PATCH /admin/v1/users/{name}` `{groups?, active?}`.
#[utoipa::path(
    patch,
    path = "/admin/v1/users/{name}",
    tag = "Administration",
    summary = "Changes groups, or whether the user is active",
    params(("name" = String, Path, description = "The user's name")),
    request_body = UserChange,
    responses(
        (status = 200, description = "The user as it is now", body = schema::User),
        (status = 404, description = "No such user"),
        (status = 409, description = "The last administrator must stay, and nobody locks themselves out"),
    ),
)]
pub(crate) async fn patch_user(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let patch = UserPatch { groups: body.strings("groups")?, active: body.boolean("active")? };
    body.ignore(READ_ONLY);
    body.refuse_unknown()?;
    let user = api.governor.update_user(&principal, &name, patch).await?;
    Ok(json_response(StatusCode::OK, &user_view(&user)))
}

/// `DELETE /admin/v1/users/{name}`: revokes the keys, too.
#[utoipa::path(
    delete,
    path = "/admin/v1/users/{name}",
    tag = "Administration",
    summary = "Deletes a user and revokes the keys",
    params(("name" = String, Path, description = "The user's name")),
    responses(
        (status = 200, description = "The user", body = schema::DeletedUser),
        (status = 404, description = "No such user"),
        (status = 409, description = "The last administrator must stay"),
    ),
)]
pub(crate) async fn delete_user(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    Path(name): Path<String>,
) -> Result<Response, ApiError> {
    let user = api.governor.delete_user(&principal, &name).await?;
    let mut view = user_view(&user);
    view["deleted"] = true.into();
    Ok(json_response(StatusCode::OK, &view))
}

/// `GET /admin/v1/groups`.
#[utoipa::path(
    get,
    path = "/admin/v1/groups",
    tag = "Administration",
    summary = "Groups to pick from",
    params(PageQuery),
    responses(
        (status = 200, description = "The groups", body = Listed<Group>),
    ),
)]
pub(crate) async fn list_groups(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let page = Page::parse(query.as_deref())?;
    let limit = page.limit.unwrap_or(PAGE);
    let groups = api.governor.groups(&principal, page.after_name()?.as_deref(), Some(limit)).await?;
    let next = groups.last().filter(|_| groups.len() == limit as usize).map(|name| name_cursor(name));
    let data = groups.iter().map(|name| json!({"object": "group", "name": name})).collect();
    Ok(json_response(StatusCode::OK, &list(data, next)))
}

/// `POST /admin/v1/groups` `{name}`: 201 for a new one, 200 for one that is known already.
#[utoipa::path(
    post,
    path = "/admin/v1/groups",
    tag = "Administration",
    summary = "Makes a group known",
    request_body = NewGroup,
    responses(
        (status = 201, description = "The group", body = Group),
        (status = 200, description = "The group, which was known already", body = Group),
    ),
)]
pub(crate) async fn create_group(
    State(api): State<Api>,
    Extension(principal): Extension<Principal>,
    request: Request,
) -> Result<Response, ApiError> {
    let mut body = read_fields(&api, request).await?;
    let name = body.required_string("name")?;
    body.refuse_unknown()?;
    let is_new = api.governor.create_group(&principal, &name).await?;
    let status = if is_new { StatusCode::CREATED } else { StatusCode::OK };
    Ok(json_response(status, &json!({"object": "group", "name": name})))
}

fn user_view(user: &UserRecord) -> Value {
    let groups: Vec<&str> = user.groups.iter().map(|membership| membership.group.as_str()).collect();
    json!({
        "object": "user",
        "id": user.id.to_string(),
        "name": user.name,
        "issuer": user.issuer,
        "groups": groups,
        "active": user.active,
        "created_at": moment(user.created_at_us),
    })
}
