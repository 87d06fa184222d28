//! Short-lived tokens over HTTP: what they open, what ends them, what they can never do.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::sync::Arc;
use std::time::Duration;

use millgate::governance::{Config, ManualClock, NewKey, NewUser, Secret, UserPatch};
use serde_json::{Value, json};

use crate::governance_house::{House, NOON_US};
use crate::support::{Actor, TestApp};

const HOUR: Duration = Duration::from_secs(3600);

/// A token made with the actor's key, as the next actor.
async fn with_token(actor: &Actor, body: &Value) -> Actor {
    let made = actor.post("/v1/tokens", body).await;
    assert_eq!(made.status, 201, "{}", made.body);
    actor.with_key(made.json()["token"].as_str().unwrap())
}

/// The claims of a token, unchecked.
fn claims_of(token: &str) -> Value {
    use base64::Engine as _;
    let part = token.split('.').nth(1).unwrap();
    serde_json::from_slice(&base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(part).unwrap()).unwrap()
}

#[tokio::test]
async fn a_token_opens_what_its_key_opens_until_it_expires() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &["premium-users"]).await;
    let made = ann.post("/v1/tokens", &json!({"expiration": "4h", "name": "notebook"})).await;
    let body = made.json();
    assert_eq!((made.status, body["name"].as_str()), (201, Some("notebook")));
    assert_eq!(body["expires_at"], "2023-11-15T02:13:20Z");
    let token = ann.with_key(body["token"].as_str().unwrap());
    assert_eq!(claims_of(body["token"].as_str().unwrap())["jti"], body["jti"]);
    let me = token.get("/v1/me").await.json();
    assert_eq!((me["user"].as_str(), me["tier"].as_str()), (Some("ann"), Some("premium")));
    assert_eq!(token.chat("hi").await.status, 200);
    app.advance(4 * HOUR - Duration::from_micros(1));
    assert_eq!(token.get("/v1/me").await.status, 200);
    app.advance(Duration::from_micros(1));
    let over = token.get("/v1/me").await;
    assert_eq!(over.status, 401);
    assert!(!over.body.contains("eyJ"), "{}", over.body);
    assert_eq!(ann.get("/v1/me").await.status, 200, "the key lives on");
}

#[tokio::test]
async fn a_life_out_of_bounds_is_refused_and_no_body_means_the_default() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    for (life, message) in [
        ("9m", "`expiration` must be 10m to 24h"),
        ("25h", "`expiration` must be 10m to 24h"),
        ("0s", "`expiration` must be 10m to 24h"),
        ("soon", "`expiration` must be a duration like `30s`, `15m`, `4h` or `90d`, found `soon`"),
    ] {
        let reply = ann.post("/v1/tokens", &json!({"expiration": life})).await;
        assert_eq!((reply.status, reply.message().as_str(), reply.param()), (400, message, json!("expiration")));
    }
    assert_eq!(ann.post("/v1/tokens", &json!({"groups": ["millgate-admins"]})).await.param(), "groups");
    let made = ann.send("POST", "/v1/tokens").await;
    assert_eq!((made.status, made.json()["expires_at"].as_str()), (201, Some("2023-11-15T02:13:20Z")));
    assert_eq!(ann.post("/v1/tokens", &json!({"expiration": "24h"})).await.status, 201);
}

#[tokio::test]
async fn a_token_never_outlives_its_key_and_dies_with_it_on_the_next_request() {
    let app = TestApp::new().start().await;
    app.user("ann", &[]).await;
    let short = NewKey { expires_in: Some(HOUR), ..NewKey::default() };
    let key = app.key_of("ann", short).await;
    let made = key.post("/v1/tokens", &json!({"expiration": "24h"})).await.json();
    assert_eq!(made["expires_at"], "2023-11-14T23:13:20Z");

    let key = app.key_of("ann", NewKey::default()).await;
    let token = with_token(&key, &json!({})).await;
    assert_eq!(token.get("/v1/me").await.status, 200);
    let id = key.key.as_ref().unwrap()[6..18].to_owned();
    assert_eq!(key.delete(&format!("/v1/api-keys/{id}")).await.status, 200);
    assert_eq!(token.get("/v1/me").await.status, 401);
}

#[tokio::test]
async fn a_token_has_its_keys_models_and_counts_on_its_keys_limits() {
    let app = TestApp::new().hidden_model("other").start().await;
    app.admin().put("/admin/v1/models/other", &json!({"tiers": "all"})).await;
    app.user("ann", &[]).await;
    let weak = NewKey {
        models: Some(vec!["fake".into()]),
        limits: vec!["2 requests / 1h".parse().unwrap()],
        ..NewKey::default()
    };
    let key = app.key_of("ann", weak).await;
    let token = with_token(&key, &json!({})).await;
    assert_eq!(token.get("/v1/models").await.json()["data"].as_array().unwrap().len(), 1);
    assert_eq!(token.chat_with("hi", json!({"model": "other"})).await.status, 403);
    assert_eq!((token.chat("hi").await.status, key.chat("hi").await.status), (200, 200));
    let (by_token, by_key) = (token.chat("hi").await, key.chat("hi").await);
    assert_eq!((by_token.status, by_key.status), (429, 429), "one counter for both");
    assert!(app.ledger().await.iter().all(|row| row.request.key.is_some()));
}

#[tokio::test]
async fn a_token_makes_no_other_credential() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    let token = with_token(&ann, &json!({})).await;
    assert_eq!(token.post("/v1/tokens", &json!({})).await.status, 403);
    let key = token.post("/v1/api-keys", &json!({"name": "longer"})).await;
    assert_eq!(key.status, 403);
    assert!(key.message().contains("A token makes no keys"), "{}", key.body);
    let admin = with_token(&app.admin(), &json!({})).await;
    assert_eq!(admin.post("/admin/v1/api-keys", &json!({"name": "longer", "user": "admin"})).await.status, 403);
    assert_eq!(admin.get("/admin/v1/users").await.status, 200, "it still administers");
}

#[tokio::test]
async fn ending_all_tokens_ends_those_made_before_and_no_others() {
    let app = TestApp::new().start().await;
    let (ann, bob) = (app.user("ann", &[]).await, app.user("bob", &[]).await);
    let (first, second) = (with_token(&ann, &json!({})).await, with_token(&ann, &json!({})).await);
    let of_bob = with_token(&bob, &json!({})).await;
    assert_eq!(first.get("/v1/me").await.status, 200);
    let ended = first.delete("/v1/tokens").await;
    assert_eq!((ended.status, ended.body.as_str()), (204, ""));
    for token in [&first, &second] {
        assert_eq!(token.get("/v1/me").await.status, 401);
    }
    assert_eq!((of_bob.get("/v1/me").await.status, ann.get("/v1/me").await.status), (200, 200));
    let third = with_token(&ann, &json!({})).await;
    assert_eq!(third.get("/v1/me").await.status, 200);
    assert_eq!(bob.delete("/admin/v1/users/ann/tokens").await.status, 403);
    assert_eq!(app.admin().delete("/admin/v1/users/ann/tokens").await.status, 204);
    assert_eq!(third.get("/v1/me").await.status, 401);
    assert_eq!(app.admin().delete("/admin/v1/users/nobody/tokens").await.status, 404);
}

#[tokio::test]
async fn deactivating_the_user_ends_the_tokens_and_a_namesake_gets_none_of_them() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    let token = with_token(&ann, &json!({})).await;
    let set = async |active: bool| {
        let patch = UserPatch { active: Some(active), ..UserPatch::default() };
        app.governor.update_user(&app.operator(), "ann", patch).await.unwrap();
    };
    set(false).await;
    assert_eq!(token.get("/v1/me").await.status, 401);
    set(true).await;
    assert_eq!(token.get("/v1/me").await.status, 200);
    app.governor.delete_user(&app.operator(), "ann").await.unwrap();
    let namesake = NewUser { name: "ann".into(), groups: Vec::new() };
    app.governor.create_user(&app.operator(), namesake).await.unwrap();
    assert_eq!(token.get("/v1/me").await.status, 401);
}

#[tokio::test]
async fn group_changes_act_on_the_next_request_of_a_token() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &["millgate-admins"]).await;
    let token = with_token(&ann, &json!({})).await;
    assert_eq!(token.get("/admin/v1/tiers").await.status, 200);
    let patch = UserPatch { groups: Some(Vec::new()), ..UserPatch::default() };
    app.governor.update_user(&app.operator(), "ann", patch).await.unwrap();
    assert_eq!(token.get("/admin/v1/tiers").await.status, 403);
}

#[tokio::test]
async fn tampered_and_foreign_tokens_are_refused_and_never_repeated() {
    let app = TestApp::new().start().await;
    let other = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    let good = with_token(&ann, &json!({})).await.key.unwrap();
    let foreign = with_token(&other.user("ann", &[]).await, &json!({})).await.key.unwrap();
    let parts: Vec<&str> = good.split('.').collect();
    let encode = |value: &Value| {
        use base64::Engine as _;
        base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string())
    };
    let mut claims = claims_of(&good);
    claims["exp"] = (claims["exp"].as_u64().unwrap() + 1).into();
    let none = encode(&json!({"alg": "none", "typ": "at+jwt"}));
    for bad in [
        foreign,
        format!("{}.{}.{}", parts[0], encode(&claims), parts[2]),
        format!("{none}.{}.", parts[1]),
        format!("{none}.{}.{}", parts[1], parts[2]),
        format!("{}.{}.", parts[0], parts[1]),
        good[..good.len() - 2].to_owned(),
    ] {
        let reply = ann.with_key(&bad).get("/v1/me").await;
        assert_eq!(reply.status, 401, "{bad}");
        assert!(!reply.body.contains(parts[1]) && !reply.body.contains("eyJ"), "{}", reply.body);
    }
    assert_eq!(ann.with_key(&good).get("/v1/me").await.status, 200);
}

#[tokio::test]
async fn failing_tokens_are_throttled_like_failing_keys() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    let good = with_token(&ann, &json!({})).await;
    let bad = ann.with_key(&format!("{}x", good.key.as_ref().unwrap()));
    let mut statuses = Vec::new();
    for _ in 0..130 {
        statuses.push(bad.get("/v1/me").await.status);
    }
    assert_eq!(statuses.iter().filter(|status| **status == 401).count(), 120);
    assert_eq!(statuses.last(), Some(&429));
    assert_eq!(good.get("/v1/me").await.status, 200, "one that verifies always passes");
}

#[tokio::test]
async fn a_new_signing_key_takes_over_and_the_old_one_stays_published_until_its_tokens_are_over() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    let keys = async || app.anonymous().get("/.well-known/jwks.json").await.json()["keys"].as_array().unwrap().clone();
    assert!(keys().await.is_empty(), "no key before the first token");
    let old = with_token(&ann, &json!({"expiration": "24h"})).await;
    let first = keys().await;
    assert_eq!((first.len(), first[0]["kty"].as_str(), first[0]["d"].as_str()), (1, Some("OKP"), None));
    assert_eq!(ann.post("/admin/v1/signing-keys", &json!({})).await.status, 403);
    let rotated = app.admin().send("POST", "/admin/v1/signing-keys").await;
    assert_eq!((rotated.status, rotated.json()["status"].as_str()), (201, Some("active")));
    let second = keys().await;
    assert_eq!((second.len(), &second[1]["kid"]), (2, &first[0]["kid"]));
    assert_eq!(second[0]["kid"], rotated.json()["id"]);
    let new = with_token(&ann, &json!({"expiration": "24h"})).await;
    assert_eq!((old.get("/v1/me").await.status, new.get("/v1/me").await.status), (200, 200));
    let listed = app.admin().get("/admin/v1/signing-keys").await;
    assert!(listed.body.contains("retired") && !listed.body.contains("seed"), "{}", listed.body);
    app.advance(25 * HOUR);
    assert_eq!(keys().await.len(), 1);
}

#[tokio::test]
async fn a_withdrawn_signing_key_ends_its_tokens_at_once_also_those_verified_before() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &[]).await;
    let token = with_token(&ann, &json!({})).await;
    assert_eq!(token.get("/v1/me").await.status, 200);
    let id = app.admin().get("/admin/v1/signing-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(app.admin().delete(&format!("/admin/v1/signing-keys/{id}")).await.status, 204);
    assert_eq!(token.get("/v1/me").await.status, 401);
    assert_eq!(app.admin().delete(&format!("/admin/v1/signing-keys/{id}")).await.status, 404);
    assert_eq!(with_token(&ann, &json!({})).await.get("/v1/me").await.status, 200, "the next token has a new key");
}

#[tokio::test]
async fn tokens_survive_a_restart_and_their_keys_are_replaced_by_age() {
    let house = House::new().await;
    let (ann, _) = house.user("ann", &[]).await;
    let token = house.governor.create_token(&ann, None, None).await.unwrap().token;
    let admin = house.admin().await;
    let first = house.governor.signing_keys(&admin).await.unwrap()[0].id.clone();
    let house = house.restart_with(Config { signing_key_life: 2 * HOUR, ..Config::default() }).await;
    let again = house.authenticate(&token).await.expect("still valid");
    assert_eq!(again.user, ann.user);
    house.clock.advance(2 * HOUR);
    let operator = house.governor.operator();
    house.governor.create_token(&ann, None, None).await.unwrap();
    let keys = house.governor.signing_keys(&operator).await.unwrap();
    assert_eq!((keys.len(), keys[1].id.as_str()), (2, first.as_str()));
    assert!(keys[0].retired_at_us.is_none() && keys[1].retired_at_us.is_some());
    assert!(house.authenticate(&token).await.is_some(), "the old key still verifies");
    house.clock.advance(2 * HOUR);
    assert!(house.authenticate(&token).await.is_none(), "its four hours are over");
}

#[tokio::test]
async fn another_bootstrap_key_ends_the_tokens_of_the_one_before_and_a_revoked_one_stays_revoked() {
    let with = |secret: &str| Config { admin_key: Some(Secret::new(secret)), ..Config::default() };
    let leaked = Secret::new("the-first-secret-of-the-administrator");
    let house = House::with(with(leaked.reveal())).await;
    let thief = house.authenticate(&leaked).await.expect("the bootstrap key works");
    let token = house.governor.create_token(&thief, None, None).await.unwrap().token;
    assert!(house.authenticate(&token).await.is_some());

    let house = house.restart_with(with("the-second-secret-of-the-administrator")).await;
    assert!(house.authenticate(&leaked).await.is_none());
    assert!(house.authenticate(&token).await.is_none(), "a token ends with its key");

    let second = Secret::new("the-second-secret-of-the-administrator");
    let admin = house.authenticate(&second).await.expect("the new bootstrap key works");
    house.governor.revoke_key(&admin, admin.key.as_ref().unwrap()).await.unwrap();
    let house = house.restart_with(with(second.reveal())).await;
    assert!(house.authenticate(&second).await.is_none(), "a start does not undo a revocation");
}

#[tokio::test]
async fn replicas_agree_on_one_signing_key() {
    let house = Arc::new(House::new().await);
    let (ann, _) = house.user("ann", &[]).await;
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (house, ann) = (house.clone(), ann.clone());
        tasks.spawn(async move { house.governor.create_token(&ann, None, None).await.unwrap().token });
    }
    let tokens = tasks.join_all().await;
    assert_eq!(house.governor.signing_keys(&house.governor.operator()).await.unwrap().len(), 1);
    for token in tokens {
        assert!(house.authenticate(&token).await.is_some());
    }
}

#[tokio::test]
async fn no_clock_makes_a_token_older_than_a_day() {
    let dir = Arc::new(tempfile::TempDir::new().unwrap());
    let clock = Arc::new(ManualClock::at(NOON_US));
    let house = House::open(dir, clock.clone(), Config::default()).await;
    let (ann, _) = house.user("ann", &[]).await;
    let token = house.governor.create_token(&ann, Some(24 * HOUR), None).await.unwrap().token;
    clock.advance(24 * HOUR - Duration::from_secs(1));
    assert!(house.authenticate(&token).await.is_some());
    clock.advance(Duration::from_secs(1));
    assert!(house.authenticate(&token).await.is_none());
}

/// Runs the program against the test server; what it wrote to standard output.
async fn millgate(app: &TestApp, key: &str, args: &[&str]) -> String {
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_millgate"));
    command.args(args).arg("--url").arg(format!("http://{}", app.address)).env("MILLGATE_API_KEY", key);
    command.env_remove("HTTP_PROXY").env_remove("http_proxy");
    let output = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_command_line_makes_and_ends_tokens_and_looks_after_their_keys() {
    let app = TestApp::new().start().await;
    let ann = app.user("ann", &["millgate-admins"]).await;
    let key = ann.key.clone().unwrap();
    let made = millgate(&app, &key, &["token", "create", "--expires", "30m"]).await;
    let token = ann.with_key(made.trim());
    assert_eq!(token.get("/v1/me").await.status, 200);
    let listed = millgate(&app, &key, &["token", "keys", "--json"]).await;
    let first = serde_json::from_str::<Value>(&listed).unwrap()[0]["id"].as_str().unwrap().to_owned();
    assert!(millgate(&app, &key, &["token", "rotate"]).await.contains("signs from now on"));
    assert!(millgate(&app, &key, &["token", "keys"]).await.contains("retired"));
    assert_eq!(token.get("/v1/me").await.status, 200);
    millgate(&app, &key, &["token", "withdraw", &first]).await;
    assert_eq!(token.get("/v1/me").await.status, 401);
    let token = with_token(&ann, &json!({})).await;
    assert_eq!(millgate(&app, &key, &["token", "revoke"]).await, "ended all your tokens\n");
    assert_eq!(token.get("/v1/me").await.status, 401);
}
