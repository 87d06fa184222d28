//! A1 to A4, A6, X6 and X17: who gets in, with what, until when, and who is asked.

use millgate::governance::ports::Records as _;
use serde_json::json;

use crate::support::{Reply, TestApp, chat_body};

#[tokio::test]
async fn a1_no_header_a_garbage_key_and_a_revoked_key_are_401() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let id = user.get("/v1/api-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(app.anonymous().chat("hi").await.status, 401);
    // The server we replace answers 403 to a garbage key; OpenAI's clients understand 401.
    let garbage = app.anonymous().with_key("garbage").chat("hi").await;
    assert_eq!((garbage.status, garbage.header("www-authenticate")), (401, "Bearer"));
    user.delete(&format!("/v1/api-keys/{id}")).await;
    assert_eq!(user.chat("hi").await.status, 401);
}

#[tokio::test]
async fn a2_the_api_key_header_is_accepted_checked_and_may_stand_beside_the_other() {
    let app = TestApp::new().start().await;
    let key = app.user("ann", &[]).await.key.unwrap();
    let ask = async |headers: &[(&'static str, &str)]| {
        let mut request = app.anonymous().request("POST", "/v1/chat/completions").json(&chat_body("hi", json!({})));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.send().await.unwrap().status().as_u16()
    };
    assert_eq!(ask(&[("x-api-key", &key)]).await, 200);
    assert_eq!(ask(&[("x-api-key", "bad")]).await, 401);
    assert_eq!(ask(&[("x-api-key", &key.replace("sk-mg_", "sk-oai-"))]).await, 401, "wrong prefix");
    assert_eq!(ask(&[("x-api-key", &key), ("authorization", &format!("Bearer {key}"))]).await, 200);
    assert_eq!(ask(&[("x-api-key", &key), ("authorization", "Bearer bad")]).await, 401, "the one that is read decides");
}

const IDENTITY_HEADERS: &[(&str, &str)] = &[
    ("x-maas-username", "admin"),
    ("x-maas-group", "[\"millgate-admins\",\"enterprise-users\"]"),
    ("x-maas-subscription", "enterprise"),
    ("x-forwarded-user", "admin"),
    ("x-forwarded-groups", "millgate-admins,enterprise-users"),
    ("x-remote-user", "admin"),
    ("x-remote-group", "millgate-admins"),
    ("x-auth-request-user", "admin"),
    ("x-user", "admin"),
    ("impersonate-user", "admin"),
    ("impersonate-group", "millgate-admins"),
];

#[tokio::test]
async fn a3_identity_headers_of_a_client_change_nothing_in_inference_minting_and_administration() {
    let app = TestApp::new().tier("tight", |tier| tier.limit("1 requests / 1h")).start().await;
    let user = app.key("tight").await;
    let forged = async |who: &crate::support::Actor, method: &str, path: &str, body: serde_json::Value| {
        let mut request = who.request(method, path).json(&body);
        for (name, value) in IDENTITY_HEADERS {
            request = request.header(*name, *value);
        }
        Reply::read(request.send().await.unwrap()).await
    };
    assert_eq!(forged(&app.anonymous(), "GET", "/v1/me", json!({})).await.status, 401);
    let minted = forged(&user, "POST", "/v1/api-keys", json!({"name": "k"})).await.json();
    assert_eq!(minted["user"], "tight-user-0");
    let minted = user.with_key(minted["key"].as_str().unwrap());
    let me = forged(&minted, "GET", "/v1/me", json!({})).await.json();
    assert_eq!(
        (me["user"].as_str(), &me["groups"]),
        (Some("tight-user-0"), &json!(["system:authenticated", "tight-members"]))
    );
    assert_eq!(forged(&user, "POST", "/v1/chat/completions", chat_body("hi", json!({}))).await.status, 200);
    assert_eq!(forged(&user, "POST", "/v1/chat/completions", chat_body("hi", json!({}))).await.status, 429);
    assert_eq!(forged(&user, "GET", "/admin/v1/users", json!({})).await.status, 403);
    let row = app.ledger().await.remove(0);
    assert_eq!((row.request.user_name.as_str(), row.request.tier.as_str()), ("tight-user-0", "tight"));
}

#[tokio::test]
async fn a4_odd_characters_and_duplicate_headers_never_give_500() {
    let app = TestApp::new().start().await;
    let key = app.user("ann", &[]).await.key.unwrap();
    let odd: [&[u8]; 8] = [
        b"Bearer \xff\xfe",
        b"Bearer \t",
        b"\xc3\xa9",
        b"Bearer sk-mg_\xf0\x9f\x98\x80",
        b"Bearer a b c",
        b"Bearer",
        b",",
        b"Bearer ' OR 1=1 --",
    ];
    for name in ["authorization", "x-api-key", "x-request-id", "x-forwarded-for", "x-forwarded-user", "origin"] {
        for value in odd {
            let value = reqwest::header::HeaderValue::from_bytes(value).unwrap();
            let mut request = app.anonymous().request("GET", "/v1/me").header(name, value.clone()).header(name, value);
            if name != "authorization" && name != "x-api-key" {
                request = request.bearer_auth(&key);
            }
            let reply = Reply::read(request.send().await.unwrap()).await;
            let expected = if name == "authorization" || name == "x-api-key" { 401 } else { 200 };
            assert_eq!(reply.status, expected, "{name}: {}", reply.body);
        }
    }
    for twice in [[key.as_str(), "wrong"], ["wrong", key.as_str()], [key.as_str(), key.as_str()]] {
        let request =
            twice.iter().fold(app.anonymous().request("GET", "/v1/me"), |request, key| request.bearer_auth(key));
        assert_eq!(request.send().await.unwrap().status(), 401, "nobody guesses which one is meant");
    }
}

#[tokio::test]
async fn a6_a_right_to_enter_without_a_model_is_403_and_a_model_without_the_right_is_401() {
    let app = TestApp::new().hidden_model("secret").start().await;
    let user = app.user("ann", &[]).await;
    assert_eq!(user.get("/v1/me").await.status, 200);
    assert_eq!(user.chat_with("hi", json!({"model": "secret"})).await.status, 403, "entered, and no model");
    app.admin().put("/admin/v1/models/secret", &json!({"tiers": ["free"]})).await;
    assert_eq!(user.chat_with("hi", json!({"model": "secret"})).await.status, 200);
    // The server we replace says 403; here nobody is known without a credential that holds.
    let locked = app.admin().send_json("PATCH", "/admin/v1/users/ann", &json!({"active": false})).await;
    assert_eq!(locked.status, 200, "{}", locked.body);
    assert_eq!(user.chat_with("hi", json!({"model": "secret"})).await.status, 401, "a model, and no entry");
    let tierless = TestApp::new().start().await;
    tierless.admin().delete("/admin/v1/tiers/free").await;
    let nobody = tierless.user("bob", &[]).await;
    assert_eq!((nobody.get("/v1/me").await.status, nobody.chat("hi").await.status), (200, 403));
}

/// The gateways we compare with ask other services several times a request; here nobody is asked, not even the store.
#[tokio::test]
async fn x17_who_is_known_is_recognised_and_refused_from_memory_alone() {
    let app = TestApp::new().tier("tight", |tier| tier.limit("1 requests / 1h")).start().await;
    let (user, stranger) = (app.key("tight").await, app.user("ann", &[]).await);
    assert_eq!(user.chat("hi").await.status, 200);
    app.records.close().await;
    let refused = user.chat("hi").await;
    assert_eq!((refused.status, refused.header("x-ratelimit-remaining")), (429, "0"), "{}", refused.body);
    assert_eq!(user.get("/v1/models").await.status, 200);
    assert_eq!(user.get("/v1/me").await.json()["limits"][0]["used"], 1);
    assert_eq!(stranger.chat("hi").await.status, 503, "the store is really gone");
}

#[tokio::test]
async fn x6_a_change_acts_on_the_very_next_request() {
    let app = TestApp::new().tier("tight", |tier| tier.limit("1 requests / 1h")).start().await;
    let user = app.user("ann", &["tight-members"]).await;
    assert_eq!((user.chat("hi").await.status, user.chat("hi").await.status), (200, 429));
    app.admin().put("/admin/v1/tiers/tight", &json!({"limits": ["2 requests / 1h"]})).await;
    assert_eq!((user.chat("hi").await.status, user.chat("hi").await.status), (200, 429), "a wider limit, usage kept");
    app.admin().send_json("PATCH", "/admin/v1/users/ann", &json!({"groups": ["premium-users"]})).await;
    assert_eq!(user.chat("hi").await.status, 200, "another tier");
    assert_eq!(user.get("/v1/me").await.json()["tier"], "premium");
    let id = user.get("/v1/api-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    app.admin().delete(&format!("/admin/v1/api-keys/{id}")).await;
    assert_eq!(user.chat("hi").await.status, 401);
}
