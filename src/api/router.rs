//! Every route and every layer, on one page.
use axum::Router;
use axum::extract::MatchedPath;
use axum::handler::Handler;
use axum::http::Method;
use axum::middleware::from_fn_with_state;
use axum::routing::{MethodFilter, MethodRouter, on};

use super::auth::{require_admin, require_caller, require_inference};
use super::cors::cors;
use super::error::{ApiError, Kind};
use super::request_context::with_context;
use super::state::Api;
use super::{account, admin, docs_page, health, health_details, openai, openapi, reconciliation, simulation, usage};

/// Who may call a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Anybody, without a credential.
    Open,
    /// Whoever has a valid credential.
    Caller,
    /// Whoever has a valid credential that opens inference: not every provider's token does.
    Inference,
    /// Members of the administrators' group.
    Admin,
}

/// One route: what tests enumerate is what the router is built from.
#[derive(Clone)]
pub struct Route {
    /// The method.
    pub method: Method,
    /// The path, with parameters in braces.
    pub path: &'static str,
    /// Who may call it.
    pub access: Access,
    /// False: the contract names it, and for now it answers that it is not supported yet.
    pub is_supported: bool,
    handler: MethodRouter<Api>,
}

/// The routes of the main listener.
pub fn routes(has_ops_listener: bool) -> Vec<Route> {
    let mut routes = [probes(), inference(), account_routes(), administration(), later()].concat();
    routes.push(get("/health/details", Access::Admin, health_details::health_details));
    if has_ops_listener {
        routes.push(get("/openapi.json", Access::Caller, openapi::openapi_json));
    } else {
        routes.extend(figures_and_docs());
    }
    routes
}

/// The routes of the operations listener, all without a credential.
pub fn ops_routes() -> Vec<Route> {
    let mut routes = [probes(), figures_and_docs()].concat();
    routes.push(get("/health/details", Access::Open, health_details::health_details));
    routes.push(post("/v1/tiers/lookup", Access::Open, account::lookup_tier));
    routes
}

fn probes() -> Vec<Route> {
    vec![
        get("/livez", Access::Open, health::livez),
        get("/readyz", Access::Open, health::readyz),
        get("/health", Access::Open, health::health),
    ]
}

fn figures_and_docs() -> Vec<Route> {
    vec![
        get("/metrics", Access::Open, health::metrics),
        get("/openapi.json", Access::Open, openapi::openapi_json),
        get("/docs", Access::Open, docs_page::docs),
        get("/docs/", Access::Open, docs_page::docs_file),
        get("/docs/{file}", Access::Open, docs_page::docs_file),
    ]
}

fn inference() -> Vec<Route> {
    use Access::{Caller, Inference};
    vec![
        get("/v1/models", Caller, openai::list_models),
        get("/v1/models/{id}", Caller, openai::get_model),
        post("/v1/chat/completions", Inference, openai::post_chat),
        post("/v1/completions", Inference, openai::post_completion),
        get("/llm/{model}/v1/models", Caller, openai::list_models),
        post("/llm/{model}/v1/chat/completions", Inference, openai::post_chat),
        post("/llm/{model}/v1/completions", Inference, openai::post_completion),
    ]
}

fn account_routes() -> Vec<Route> {
    use Access::Caller;
    vec![
        post("/v1/api-keys", Caller, account::create_key),
        get("/v1/api-keys", Caller, account::list_keys),
        get("/v1/api-keys/{id}", Caller, account::get_key),
        route(Method::PATCH, "/v1/api-keys/{id}", Caller, account::patch_key),
        delete("/v1/api-keys/{id}", Caller, account::revoke_key),
        post("/v1/tokens", Caller, account::create_token),
        delete("/v1/tokens", Caller, account::revoke_tokens),
        get("/.well-known/jwks.json", Access::Open, account::jwks),
        post("/v1/api-keys/{id}/rotate", Caller, account::rotate_key),
        post("/v1/api-keys/bulk-revoke", Caller, account::bulk_revoke),
        get("/v1/me", Caller, account::me),
        get("/v1/usage", Caller, usage::own_usage),
        post("/v1/tiers/lookup", Caller, account::lookup_tier),
    ]
}

fn administration() -> Vec<Route> {
    use Access::Admin;
    vec![
        get("/admin/v1/tiers", Admin, admin::list_tiers),
        post("/admin/v1/tiers", Admin, admin::create_tier),
        post("/admin/v1/tiers/apply", Admin, admin::apply_tiers),
        get("/admin/v1/tiers/{name}", Admin, admin::get_tier),
        put("/admin/v1/tiers/{name}", Admin, admin::put_tier),
        delete("/admin/v1/tiers/{name}", Admin, admin::delete_tier),
        get("/admin/v1/users", Admin, admin::list_users),
        post("/admin/v1/users", Admin, admin::create_user),
        get("/admin/v1/users/{name}", Admin, admin::get_user),
        route(Method::PATCH, "/admin/v1/users/{name}", Admin, admin::patch_user),
        delete("/admin/v1/users/{name}", Admin, admin::delete_user),
        delete("/admin/v1/users/{name}/tokens", Admin, admin::revoke_tokens_of),
        get("/admin/v1/signing-keys", Admin, admin::list_signing_keys),
        post("/admin/v1/signing-keys", Admin, admin::rotate_signing_key),
        delete("/admin/v1/signing-keys/{id}", Admin, admin::withdraw_signing_key),
        get("/admin/v1/groups", Admin, admin::list_groups),
        post("/admin/v1/groups", Admin, admin::create_group),
        get("/admin/v1/audit", Admin, admin::list_audit),
        get("/admin/v1/audit/verify", Admin, admin::verify_audit),
        get("/admin/v1/models", Admin, admin::list_models),
        get("/admin/v1/models/{name}", Admin, admin::get_model),
        put("/admin/v1/models/{name}", Admin, admin::put_model),
        post("/admin/v1/models", Admin, admin::create_model),
        delete("/admin/v1/models/{name}", Admin, admin::delete_model),
        post("/admin/v1/models/{name}/load", Admin, admin::load_model),
        post("/admin/v1/models/{name}/unload", Admin, admin::unload_model),
        get("/admin/v1/api-keys", Admin, admin::list_all_keys),
        post("/admin/v1/api-keys", Admin, admin::create_key_for),
        get("/admin/v1/api-keys/{id}", Admin, admin::get_any_key),
        route(Method::PATCH, "/admin/v1/api-keys/{id}", Admin, admin::patch_any_key),
        delete("/admin/v1/api-keys/{id}", Admin, admin::revoke_any_key),
        get("/admin/v1/prices", Admin, admin::list_prices),
        put("/admin/v1/prices", Admin, admin::put_prices),
        get("/admin/v1/config", Admin, admin::get_config),
        put("/admin/v1/config", Admin, admin::put_config),
        get("/admin/v1/usage", Admin, usage::all_usage),
        get("/admin/v1/notices", Admin, admin::list_notices),
        get("/admin/v1/reconciliation", Admin, reconciliation::reconciliation),
        post("/admin/v1/tier-simulations", Admin, simulation::simulate_tiers),
        get("/v1/organization/usage/completions", Admin, usage::completions),
        get("/v1/organization/costs", Admin, usage::costs),
        post("/admin/v1/api-keys/{id}/rotate", Admin, admin::rotate_any_key),
        post("/admin/v1/api-keys/bulk-revoke", Admin, admin::bulk_revoke_any),
    ]
}

/// What the contract names and a later version answers.
fn later() -> Vec<Route> {
    let post_only = ["/v1/embeddings", "/v1/responses", "/v1/messages", "/tokenize", "/detokenize"];
    let routes = post_only.iter().map(|path| post(path, Access::Caller, not_yet));
    routes.map(|route| Route { is_supported: false, ..route }).collect()
}

/// The main listener's router.
pub fn router(api: &Api) -> Router {
    assemble(api, routes(api.config.has_ops_listener))
}

/// The operations listener's router.
pub fn ops_router(api: &Api) -> Router {
    assemble(api, ops_routes())
}

/// Layers, outermost first: ids, panics and the log line; cross-origin rules; then each route's own access.
fn assemble(api: &Api, routes: Vec<Route>) -> Router {
    let mut router = Router::new();
    for route in routes {
        let handler = match route.access {
            Access::Open => route.handler,
            Access::Caller => route.handler.route_layer(from_fn_with_state(api.clone(), require_caller)),
            Access::Inference => route.handler.route_layer(from_fn_with_state(api.clone(), require_inference)),
            Access::Admin => route.handler.route_layer(from_fn_with_state(api.clone(), require_admin)),
        };
        router = router.route(route.path, handler);
    }
    router = router
        .fallback(async || ApiError::not_found("Route"))
        .method_not_allowed_fallback(async || ApiError::new(Kind::MethodNotAllowed, "this route has no such method"));
    if !api.config.cors_origins.is_empty() {
        router = router.layer(from_fn_with_state(api.clone(), cors));
    }
    router.layer(from_fn_with_state(api.clone(), with_context)).with_state(api.clone())
}

async fn not_yet(path: MatchedPath) -> ApiError {
    ApiError::invalid(None, format!("{} is not supported yet", path.as_str()))
}

fn route<H, T>(method: Method, path: &'static str, access: Access, handler: H) -> Route
where
    H: Handler<T, Api>,
    T: 'static,
{
    let filter = MethodFilter::try_from(method.clone()).expect("routes use the common methods");
    Route { method, path, access, is_supported: true, handler: on(filter, handler) }
}

fn get<H: Handler<T, Api>, T: 'static>(path: &'static str, access: Access, handler: H) -> Route {
    route(Method::GET, path, access, handler)
}

fn post<H: Handler<T, Api>, T: 'static>(path: &'static str, access: Access, handler: H) -> Route {
    route(Method::POST, path, access, handler)
}

fn put<H: Handler<T, Api>, T: 'static>(path: &'static str, access: Access, handler: H) -> Route {
    route(Method::PUT, path, access, handler)
}

fn delete<H: Handler<T, Api>, T: 'static>(path: &'static str, access: Access, handler: H) -> Route {
    route(Method::DELETE, path, access, handler)
}
