//! `GET /openapi.json`: the list of everything documented, and the document made from it.
use std::sync::OnceLock;

use axum::body::Bytes;
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use utoipa::OpenApi;

use super::contract::complete;
use super::router::{ops_routes, routes};
use super::{
    account, admin, docs_page, health, health_details, openai, openapi, reconciliation, schema, simulation, usage,
};

/// Every handler that is part of the contract. A test compares this list with the router, in both directions.
///
/// What follows from a route alone, [`complete`] adds: who may call it, the answers that every such route can give,
/// headers, and the addresses with the model in the path.
#[derive(OpenApi)]
#[openapi(
    info(
        title = "Millgate",
        description = "Language models over OpenAI's API, with keys, tiers and limits enforced in the same process.\n\n\
                       Times are RFC 3339 in UTC. A `null` in a request counts as an absent field.",
        license(name = "Apache-2.0", identifier = "Apache-2.0"),
    ),
    servers((url = "/", description = "This server")),
    tags(
        (name = "Inference", description = "OpenAI's endpoints, for whoever's tier may use the model."),
        (name = "Account", description = "The caller's own things."),
        (name = "Administration", description = "For members of the group `millgate-admins`."),
        (name = "Operations", description = "Probes, figures and this document; without a credential."),
    ),
    paths(
        openai::models::list_models,
        openai::models::get_model,
        openai::routes::post_chat,
        openai::routes::post_completion,
        account::keys::create_key,
        account::keys::list_keys,
        account::keys::get_key,
        account::keys::revoke_key,
        account::tokens::create_token,
        account::tokens::revoke_tokens,
        account::tokens::jwks,
        account::key_changes::patch_key,
        account::key_changes::rotate_key,
        account::key_changes::bulk_revoke,
        account::me::me,
        account::tiers::lookup_tier,
        admin::tiers::list_tiers,
        admin::tiers::create_tier,
        admin::tier_apply::apply_tiers,
        admin::tiers::get_tier,
        admin::tiers::put_tier,
        admin::tiers::delete_tier,
        admin::users::list_users,
        admin::users::create_user,
        admin::users::get_user,
        admin::users::patch_user,
        admin::users::delete_user,
        admin::users::list_groups,
        admin::users::create_group,
        admin::tokens::revoke_tokens_of,
        admin::tokens::list_signing_keys,
        admin::tokens::rotate_signing_key,
        admin::tokens::withdraw_signing_key,
        admin::audit::list_audit,
        admin::audit::verify_audit,
        admin::models::list_models,
        admin::models::get_model,
        admin::models::put_model,
        admin::model_life::create_model,
        admin::model_life::load_model,
        admin::model_life::unload_model,
        admin::model_life::delete_model,
        admin::keys::list_all_keys,
        admin::keys::create_key_for,
        admin::keys::get_any_key,
        admin::keys::patch_any_key,
        admin::keys::revoke_any_key,
        admin::keys::rotate_any_key,
        admin::keys::bulk_revoke_any,
        admin::notices::list_notices,
        admin::prices::list_prices,
        admin::prices::put_prices,
        admin::settings::get_config,
        admin::settings::put_config,
        usage::report::own_usage,
        usage::report::all_usage,
        reconciliation::reconciliation,
        simulation::simulate_tiers,
        usage::organization::completions,
        usage::organization::costs,
        health::livez,
        health::readyz,
        health::health,
        health_details::health_details,
        health::metrics,
        openapi::openapi_json,
        docs_page::docs,
    ),
    components(schemas(
        schema::ErrorBody,
        // Of parameters, whose types are not found through bodies.
        schema::Bucket,
        schema::CompletionsGroup,
        schema::CostsGroup,
        schema::DayBucket,
        schema::KeySort,
        schema::Moment,
        schema::ReportFormat,
        schema::SortOrder,
        schema::UserId,
    )),
)]
struct Listed;

/// The whole document, OpenAPI 3.1.
pub fn document() -> &'static Value {
    static DOCUMENT: OnceLock<Value> = OnceLock::new();
    DOCUMENT.get_or_init(|| {
        let mut document = serde_json::to_value(Listed::openapi()).expect("an OpenAPI document is JSON");
        let mut all = routes(false);
        all.extend(ops_routes());
        complete(&mut document, &all);
        document
    })
}

/// Answers with the document.
#[utoipa::path(
    get,
    path = "/openapi.json",
    tag = "Operations",
    summary = "This document",
    responses(
        (status = 200, description = "OpenAPI 3.1", body = Object),
        (status = 401, description = "There is an operations listener, and here a credential is needed"),
        (status = 429, description = "Likewise: too many failed credentials from this address"),
        (status = 503, description = "Likewise: stopping, or a store does not answer"),
    ),
    security((), ("bearer" = []), ("x_api_key" = [])),
)]
pub(crate) async fn openapi_json() -> Response {
    static TEXT: OnceLock<Bytes> = OnceLock::new();
    let text = TEXT.get_or_init(|| document().to_string().into());
    ([(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))], text.clone()).into_response()
}
