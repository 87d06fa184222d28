//! Every route of the router against every role. A route that is missing here fails, and so does a row without a route.

use std::collections::BTreeMap;
use std::time::Duration;

use millgate::api::{ops_routes, routes};
use serde_json::json;

use crate::support::{Actor, MODEL, TestApp};

/// What a role gets from a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Gate {
    /// Answers everybody, credential or not.
    Open,
    /// Anybody with a valid credential; 401 without.
    Caller,
    /// The owner of the thing in the address; to everybody else, administrators included, it does not exist: 404.
    Owner,
    /// Administrators; 403 for everybody else with a valid credential.
    Admin,
}

use Gate::{Admin, Caller, Open, Owner};

/// One row a route: add one for each new route, thinking of who may call it.
const TABLE: &[(&str, &str, Gate)] = &[
    ("GET", "/livez", Open),
    ("GET", "/readyz", Open),
    ("GET", "/health", Open),
    ("GET", "/metrics", Open),
    ("GET", "/openapi.json", Open),
    ("GET", "/docs", Open),
    ("GET", "/docs/", Open),
    ("GET", "/docs/{file}", Open),
    ("GET", "/v1/models", Caller),
    ("GET", "/v1/models/{id}", Caller),
    ("POST", "/v1/chat/completions", Caller),
    ("POST", "/v1/completions", Caller),
    ("GET", "/llm/{model}/v1/models", Caller),
    ("POST", "/llm/{model}/v1/chat/completions", Caller),
    ("POST", "/llm/{model}/v1/completions", Caller),
    ("POST", "/v1/embeddings", Caller),
    ("POST", "/v1/responses", Caller),
    ("POST", "/v1/messages", Caller),
    ("POST", "/tokenize", Caller),
    ("POST", "/detokenize", Caller),
    ("POST", "/v1/api-keys", Caller),
    ("GET", "/v1/api-keys", Caller),
    ("GET", "/v1/api-keys/{id}", Owner),
    ("PATCH", "/v1/api-keys/{id}", Owner),
    ("DELETE", "/v1/api-keys/{id}", Owner),
    ("POST", "/v1/api-keys/{id}/rotate", Owner),
    ("POST", "/v1/api-keys/bulk-revoke", Caller),
    ("POST", "/v1/tokens", Caller),
    ("DELETE", "/v1/tokens", Caller),
    ("GET", "/.well-known/jwks.json", Open),
    ("GET", "/v1/me", Caller),
    ("GET", "/v1/usage", Caller),
    ("POST", "/v1/tiers/lookup", Caller),
    ("GET", "/admin/v1/tiers", Admin),
    ("POST", "/admin/v1/tiers", Admin),
    ("POST", "/admin/v1/tiers/apply", Admin),
    ("GET", "/admin/v1/tiers/{name}", Admin),
    ("PUT", "/admin/v1/tiers/{name}", Admin),
    ("DELETE", "/admin/v1/tiers/{name}", Admin),
    ("GET", "/admin/v1/users", Admin),
    ("POST", "/admin/v1/users", Admin),
    ("GET", "/admin/v1/users/{name}", Admin),
    ("PATCH", "/admin/v1/users/{name}", Admin),
    ("DELETE", "/admin/v1/users/{name}", Admin),
    ("DELETE", "/admin/v1/users/{name}/tokens", Admin),
    ("GET", "/admin/v1/signing-keys", Admin),
    ("POST", "/admin/v1/signing-keys", Admin),
    ("DELETE", "/admin/v1/signing-keys/{id}", Admin),
    ("GET", "/admin/v1/groups", Admin),
    ("POST", "/admin/v1/groups", Admin),
    ("GET", "/admin/v1/models", Admin),
    ("POST", "/admin/v1/models", Admin),
    ("GET", "/admin/v1/models/{name}", Admin),
    ("PUT", "/admin/v1/models/{name}", Admin),
    ("DELETE", "/admin/v1/models/{name}", Admin),
    ("POST", "/admin/v1/models/{name}/load", Admin),
    ("POST", "/admin/v1/models/{name}/unload", Admin),
    ("GET", "/admin/v1/api-keys", Admin),
    ("POST", "/admin/v1/api-keys", Admin),
    ("GET", "/admin/v1/api-keys/{id}", Admin),
    ("PATCH", "/admin/v1/api-keys/{id}", Admin),
    ("DELETE", "/admin/v1/api-keys/{id}", Admin),
    ("POST", "/admin/v1/api-keys/{id}/rotate", Admin),
    ("POST", "/admin/v1/api-keys/bulk-revoke", Admin),
    ("GET", "/admin/v1/notices", Admin),
    ("GET", "/admin/v1/prices", Admin),
    ("PUT", "/admin/v1/prices", Admin),
    ("GET", "/admin/v1/usage", Admin),
    ("GET", "/admin/v1/reconciliation", Admin),
    ("POST", "/admin/v1/tier-simulations", Admin),
    ("GET", "/v1/organization/usage/completions", Admin),
    ("GET", "/v1/organization/costs", Admin),
    ("GET", "/admin/v1/audit", Admin),
    ("GET", "/admin/v1/audit/verify", Admin),
    ("GET", "/health/details", Admin),
    ("GET", "/admin/v1/config", Admin),
    ("PUT", "/admin/v1/config", Admin),
];

#[test]
fn every_route_has_a_row_here_and_every_row_a_route() {
    let found: BTreeMap<(String, &str), ()> =
        routes(false).iter().map(|route| ((route.method.to_string(), route.path), ())).collect();
    let listed: BTreeMap<(String, &str), ()> =
        TABLE.iter().map(|(method, path, _)| (((*method).to_owned(), *path), ())).collect();
    assert_eq!(listed.len(), TABLE.len(), "no row twice");
    let missing: Vec<_> = found.keys().filter(|route| !listed.contains_key(*route)).collect();
    assert!(missing.is_empty(), "add to the table of roles who may call these routes: {missing:?}");
    let stale: Vec<_> = listed.keys().filter(|route| !found.contains_key(*route)).collect();
    assert!(stale.is_empty(), "these routes are gone: {stale:?}");
    for route in ops_routes() {
        assert_eq!(route.access, millgate::api::Access::Open, "the operations listener asks nobody: {}", route.path);
        assert!(!route.path.starts_with("/admin"), "and tells nothing: {}", route.path);
    }
}

/// An address of `path`, with an id of somebody else's key where it takes one.
fn concrete(path: &str, key: &str) -> String {
    let id = if path.contains("api-keys") { key } else { "nothing" };
    path.replace("{model}", MODEL).replace("{id}", id).replace("{name}", "nothing").replace("{file}", "nothing")
}

async fn status(who: &Actor, method: &str, path: &str) -> u16 {
    // Nothing in the body: what is let in answers 400 at the latest, and only what an address alone can do is done.
    who.send_json(method, path, &json!({})).await.status
}

#[tokio::test]
async fn every_route_answers_every_role_as_its_row_says() {
    let app = TestApp::new().start().await;
    let (member, other) = (app.user("ann", &[]).await, app.user("bob", &[]).await);
    let revoked = app.user("cid", &[]).await;
    let id = revoked.get("/v1/api-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(revoked.delete(&format!("/v1/api-keys/{id}")).await.status, 200);
    for (method, path, gate) in TABLE {
        let name = format!("{method} {path}");
        // Credentials that fail are slowed down, and here two fail for each route.
        app.advance(Duration::from_secs(2));
        // A key of its own for each route, so that one that is revoked here is not missed there.
        let made = member.post("/v1/api-keys", &json!({"name": "k"})).await.json();
        let theirs = made["id"].as_str().unwrap();
        let path = concrete(path, theirs);
        for nobody in [&app.anonymous(), &revoked, &app.anonymous().with_key("sk-mg_made_up")] {
            let status = status(nobody, method, &path).await;
            assert_eq!(status == 401, *gate != Open, "{name} as nobody: {status}");
        }
        let (other, admin) = (status(&other, method, &path).await, status(&app.admin(), method, &path).await);
        let own = status(&member, method, &path).await;
        match gate {
            Open | Caller => assert!([own, other, admin].iter().all(|status| ![401, 403].contains(status)), "{name}"),
            Owner => {
                assert_eq!((other, admin), (404, 404), "{name} to everybody else");
                assert!(![401, 403, 404].contains(&own), "{name} to its owner: {own}");
            }
            Admin => {
                assert_eq!((own, other), (403, 403), "{name} to members");
                assert!(![401, 403].contains(&admin), "{name} to administrators: {admin}");
            }
        }
        member.delete(&format!("/v1/api-keys/{theirs}")).await;
    }
}
