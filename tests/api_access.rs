//! Who may call what: every route against every role, credentials that do not hold, models of other tiers.

use std::time::Duration;

use insta::assert_snapshot;
use millgate::api::{Access, routes};
use millgate::governance::NewKey;
use serde_json::json;

use crate::support::{Actor, MODEL, Reply, TestApp};

/// A path with its parameters filled in.
fn concrete(path: &str) -> String {
    path.replace("{model}", MODEL).replace("{id}", "nothing").replace("{name}", "nothing")
}

#[tokio::test]
async fn every_route_lets_in_exactly_who_may() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    for route in routes(false) {
        let path = concrete(route.path);
        let name = format!("{} {}", route.method, route.path);
        let ask = async |actor: Actor| actor.send(route.method.as_str(), &path).await.status;
        let (anonymous, caller, admin) = (ask(app.anonymous()).await, ask(user.clone()).await, ask(app.admin()).await);
        assert_eq!(anonymous == 401, route.access != Access::Open, "{name} without a credential: {anonymous}");
        assert_ne!(caller, 401, "{name} as a user");
        assert_eq!(caller == 403, route.access == Access::Admin, "{name} as a user: {caller}");
        assert!(admin != 401 && admin != 403, "{name} as an administrator: {admin}");
    }
}

#[tokio::test]
async fn routes_of_later_versions_say_that_they_are_not_supported_yet() {
    let app = TestApp::new().start().await;
    for route in routes(false).into_iter().filter(|route| !route.is_supported) {
        let reply = app.admin().send(route.method.as_str(), &concrete(route.path)).await;
        assert_eq!(reply.status, 400, "{} {}", route.method, route.path);
        assert!(reply.message().contains("not supported yet"), "{}", reply.body);
    }
}

#[tokio::test]
async fn a_missing_or_bad_credential_is_answered_in_the_one_shape() {
    let app = TestApp::new().start().await;
    let missing = app.anonymous().get("/v1/models").await;
    assert_eq!(missing.header("www-authenticate"), "Bearer");
    assert_snapshot!(missing.status_and_body(), @r#"401 {"error":{"message":"Invalid or expired token: no credential was given","type":"authentication_error","code":401,"param":null}}"#);
    for (header, value) in [
        ("authorization", "Bearer sk-mg_000000000000_000000000000000000000000000000000000000"),
        ("authorization", "Bearer nonsense"),
        ("authorization", "Basic YTpi"),
        ("x-api-key", "nonsense"),
    ] {
        let request = app.anonymous().request("GET", "/v1/models").header(header, value);
        let reply = Reply::read(request.send().await.unwrap()).await;
        assert_eq!(reply.status, 401, "{header}: {value}");
        assert!(reply.message().starts_with("Invalid or expired token"), "{}", reply.body);
    }
}

#[tokio::test]
async fn the_api_key_header_is_as_good_as_a_bearer_token() {
    let app = TestApp::new().start().await;
    let key = app.user("ann", &[]).await.key.unwrap();
    let request = app.anonymous().request("GET", "/v1/me").header("x-api-key", key);
    assert_eq!(Reply::read(request.send().await.unwrap()).await.json()["user"], "ann");
}

#[tokio::test]
async fn a_revoked_or_expired_key_is_refused_on_the_next_request() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    // Keys list newest first; of two made at the same instant either may come first.
    app.advance(Duration::from_secs(1));
    let short = app.key_of("ann", NewKey { expires_in: Some(Duration::from_secs(60)), ..NewKey::default() }).await;
    assert_eq!(short.get("/v1/me").await.status, 200);
    app.advance(Duration::from_secs(60));
    assert_eq!(short.get("/v1/me").await.status, 401);

    let id = user.get("/v1/api-keys").await.json()["data"][1]["id"].as_str().unwrap().to_owned();
    let revoked = user.delete(&format!("/v1/api-keys/{id}")).await;
    assert_eq!((revoked.status, revoked.json()["status"].as_str()), (200, Some("revoked")));
    assert_eq!(user.get("/v1/me").await.status, 401);
}

#[tokio::test]
async fn who_is_known_is_believed_for_a_minute_while_the_store_cannot_be_asked_and_not_longer() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let url = format!("sqlite://{}", app.data_dir().join("millgate.db").display());
    let intruder = sqlx::SqlitePool::connect(&url).await.unwrap();
    sqlx::query("ALTER TABLE policy_version RENAME TO taken_away").execute(&intruder).await.unwrap();
    assert_eq!(user.get("/v1/models").await.status, 200);
    app.advance(Duration::from_secs(59));
    assert_eq!(user.get("/v1/models").await.status, 200);
    app.advance(Duration::from_secs(2));
    let refused = user.get("/v1/models").await;
    assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (503, Some("unavailable_error")));
    assert!(!refused.header("retry-after").is_empty());
    sqlx::query("ALTER TABLE taken_away RENAME TO policy_version").execute(&intruder).await.unwrap();
    assert_eq!(user.get("/v1/models").await.status, 200, "on the next request");
}

#[tokio::test]
async fn identity_headers_from_clients_are_never_believed() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let request = user
        .request("GET", "/admin/v1/tiers")
        .header("x-user", "admin")
        .header("x-forwarded-user", "admin")
        .header("x-remote-group", "millgate-admins")
        .header("x-maas-group", "millgate-admins");
    assert_eq!(request.send().await.unwrap().status(), 403);
}

#[tokio::test]
async fn a_model_is_found_only_by_tiers_it_is_published_to() {
    let app = TestApp::new().hidden_model("secret").start().await;
    let user = app.user("ann", &[]).await;
    let list = user.get("/v1/models").await.json();
    assert_eq!(list["data"].as_array().unwrap().len(), 1);
    assert_eq!(user.get("/v1/models/secret").await.status, 404);
    let forbidden = user.chat_with("hi", json!({"model": "secret"})).await;
    assert_snapshot!(forbidden.status_and_body(), @r#"403 {"error":{"message":"Access denied. Your tier does not have permission to access this model.","type":"authorization_error","code":403,"param":null}}"#);
    let missing = user.chat_with("hi", json!({"model": "nonexistent"})).await;
    assert_snapshot!(missing.status_and_body(), @r#"404 {"error":{"message":"Model not found","type":"not_found_error","code":404,"param":null}}"#);

    let published = app.admin().put("/admin/v1/models/secret", &json!({"tiers": ["free"]})).await;
    assert_eq!((published.status, published.json()["tiers"][0].as_str()), (200, Some("free")));
    assert_eq!(user.chat_with("hi", json!({"model": "secret"})).await.status, 200, "no reload is needed");
}

#[tokio::test]
async fn a_model_card_says_what_a_client_needs() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let mut card = user.get("/v1/models/fake").await.json();
    assert!(card["url"].as_str().unwrap().ends_with("/llm/fake/v1"));
    card["url"] = "-".into();
    assert_snapshot!(card, @r#"{"capabilities":["chat","completions"],"context_window":2048,"created":1700000000,"id":"fake","object":"model","owned_by":"llm","ready":true,"url":"-"}"#);
}

#[tokio::test]
async fn failed_credentials_are_throttled_and_a_valid_one_still_passes() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let stranger = app.anonymous().with_key("sk-mg_wrong");
    let mut statuses = Vec::new();
    for _ in 0..130 {
        statuses.push(stranger.get("/v1/me").await.status);
    }
    assert_eq!(statuses[0], 401);
    assert_eq!(statuses[129], 429);
    assert!(stranger.get("/v1/me").await.retry_after().is_some());
    assert_eq!(user.get("/v1/me").await.status, 200, "never a weapon to lock others out");
}
