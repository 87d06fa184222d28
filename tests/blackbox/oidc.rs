//! O1: tokens of an identity provider: which are believed, whom they stand for, and every attack on them we know of.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::time::Duration;

use millgate::app::HttpDocuments;
use millgate::governance::ports::Records;
use millgate::governance::{Documents, NewUser, OidcIssuer, UserPatch};
use serde_json::{Value, json};
use tokio_util::task::TaskTracker;

use crate::support::{Actor, Issuer, IssuerKey, TestApp, sign_with_secret, unsigned};

/// The second at which every test server starts.
const START_S: i64 = 1_700_000_000;

/// A provider with one key, and a server that believes it.
async fn pair(change: impl FnOnce(&mut OidcIssuer)) -> (Issuer, IssuerKey, TestApp) {
    let key = IssuerKey::ec("k1");
    let issuer = Issuer::start(&[&key]).await;
    let mut config = issuer.config();
    change(&mut config);
    let app = TestApp::new().governance(|governance| governance.oidc = vec![config]).start().await;
    (issuer, key, app)
}

fn holder(app: &TestApp, token: &str) -> Actor {
    app.anonymous().with_key(token)
}

async fn status(app: &TestApp, token: &str) -> u16 {
    let reply = holder(app, token).get("/v1/me").await;
    let claims = token.split('.').nth(1).unwrap();
    assert!(!reply.body.contains(claims), "an answer never repeats a token: {}", reply.body);
    reply.status
}

#[tokio::test]
async fn o1_a_token_of_the_provider_says_who_somebody_is_with_any_of_its_kinds_of_key() {
    let keys = [IssuerKey::rsa("r"), IssuerKey::ec("e"), IssuerKey::ed("d")];
    let issuer = Issuer::start(&keys.each_ref()).await;
    let app = TestApp::new().governance(|governance| governance.oidc = vec![issuer.config()]).start().await;
    for (key, name) in keys.iter().zip(["ann", "bob", "eve"]) {
        let token = key.sign(&issuer.claims(name, name, &["premium-users"], START_S));
        let me = holder(&app, &token).get("/v1/me").await;
        assert_eq!(me.status, 200, "{}", me.body);
        assert_eq!((&me.json()["user"], &me.json()["tier"]), (&json!(format!("corp:{name}")), &json!("premium")));
    }
    assert_eq!(issuer.key_fetches(), 1);
}

#[tokio::test]
async fn o1_invalid_expired_and_tampered_tokens_are_401() {
    let (issuer, key, app) = pair(|_| {}).await;
    let good = issuer.claims("1", "ann", &[], START_S);
    let token = key.sign(&good);
    assert_eq!(status(&app, &token).await, 200);
    let changed = |name: &str, value: Value| {
        let mut claims = good.clone();
        claims[name] = value;
        claims
    };
    let parts: Vec<&str> = token.split('.').collect();
    let header = json!({"alg": "ES256", "typ": "JWT", "kid": "k1"});
    let admin = unsigned(&header, &changed("sub", json!("admin")));
    for (what, bad) in [
        ("expired", key.sign(&changed("exp", json!(START_S - 31)))),
        ("not yet valid", key.sign(&changed("nbf", json!(START_S + 31)))),
        ("from the future", key.sign(&changed("iat", json!(START_S + 31)))),
        ("without an end", key.sign(&changed("exp", json!(null)))),
        ("tampered claims", format!("{admin}.{}", parts[2])),
        ("no signature", format!("{}.{}.", parts[0], parts[1])),
        ("a cut signature", token[..token.len() - 4].to_owned()),
        ("another key", IssuerKey::ec("k1").sign(&good)),
        ("another issuer", key.sign(&changed("iss", json!("https://evil.example")))),
        ("logout token", key.sign_with(&json!({"alg": "ES256", "typ": "logout+jwt", "kid": "k1"}), &good)),
        ("critical extension", key.sign_with(&json!({"alg": "ES256", "kid": "k1", "crit": ["x"]}), &good)),
        ("its own key", key.sign_with(&json!({"alg": "ES256", "kid": "k1", "jwk": key.public}), &good)),
        ("ours by name", key.sign(&changed("iss", json!("millgate")))),
    ] {
        assert_eq!(status(&app, &bad).await, 401, "{what}");
    }
    // The same name twice: another reader could take the other value.
    let twice = good.to_string().replacen('{', "{\"sub\":\"1\",", 1);
    let twice = key.sign_text(&format!("{}.{}", parts[0], base64_url(twice.as_bytes())));
    assert_eq!(status(&app, &twice).await, 401);
}

fn base64_url(bytes: &[u8]) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes)
}

#[tokio::test]
async fn o1_tokens_for_another_audience_or_client_are_401() {
    let (issuer, key, app) = pair(|config| config.clients = vec!["web".into()]).await;
    let mut claims = issuer.claims("1", "ann", &[], START_S);
    claims["azp"] = "web".into();
    assert_eq!(status(&app, &key.sign(&claims)).await, 200);
    for (name, value) in [("azp", json!("other")), ("azp", json!(null)), ("aud", json!("other")), ("aud", json!([]))] {
        let mut wrong = claims.clone();
        wrong[name] = value.clone();
        assert_eq!(status(&app, &key.sign(&wrong)).await, 401, "{name}: {value}");
    }
    claims["aud"] = json!(["other", "millgate"]);
    assert_eq!(status(&app, &key.sign(&claims)).await, 200);
}

#[tokio::test]
async fn o1_unsafe_group_names_are_refused_and_unsafe_user_names_too() {
    let (issuer, key, app) = pair(|_| {}).await;
    let groups = ["staff", "a\",\"millgate-admins", "a b", "a\nb", "system:masters", "grün", "<b>"];
    let token = key.sign(&issuer.claims("1", "ann", &groups, START_S));
    let me = holder(&app, &token).get("/v1/me").await.json();
    assert_eq!(me["groups"], json!(["staff", "system:authenticated"]));
    for name in ["ann smith", "a\"b", "corp:ann", "admin\n", "", "аdmin"] {
        assert_eq!(status(&app, &key.sign(&issuer.claims("2", name, &[], START_S))).await, 401, "{name:?}");
    }
}

#[tokio::test]
async fn no_algorithm_and_a_public_key_taken_for_a_secret_open_nothing() {
    let key = IssuerKey::rsa("r");
    let issuer = Issuer::start(&[&key]).await;
    let app = TestApp::new().governance(|governance| governance.oidc = vec![issuer.config()]).start().await;
    let claims = issuer.claims("1", "ann", &["Platform Admins"], START_S);
    assert_eq!(status(&app, &key.sign(&claims)).await, 200);
    let public = key.public["n"].as_str().unwrap().to_owned();
    for alg in ["none", "None", "NONE", "", "HS256", "hs256", "RS512", "PS256", "ES256", "EdDSA"] {
        let header = json!({"alg": alg, "typ": "JWT", "kid": "r"});
        assert_eq!(status(&app, &format!("{}.", unsigned(&header, &claims))).await, 401, "{alg}");
        assert_eq!(status(&app, &key.sign_with(&header, &claims)).await, 401, "{alg}");
        for secret in [public.as_bytes(), key.public.to_string().as_bytes(), b""] {
            assert_eq!(status(&app, &sign_with_secret(secret, &header, &claims)).await, 401, "{alg}");
        }
    }
}

#[tokio::test]
async fn a_flood_of_unknown_key_ids_is_no_flood_of_fetches() {
    let (issuer, key, app) = pair(|_| {}).await;
    let claims = issuer.claims("1", "ann", &[], START_S);
    for nth in 0..60 {
        assert_eq!(status(&app, &key.named(&format!("made-up-{nth}")).sign(&claims)).await, 401);
    }
    assert_eq!(issuer.key_fetches(), 1);
    assert_eq!(status(&app, &key.sign(&claims)).await, 200);
    app.advance(Duration::from_secs(10));
    for nth in 60..80 {
        assert_eq!(status(&app, &key.named(&format!("made-up-{nth}")).sign(&claims)).await, 401);
    }
    assert_eq!(issuer.key_fetches(), 2);
}

#[tokio::test]
async fn a_new_key_of_the_provider_is_found_at_once_and_a_withdrawn_one_soon_opens_nothing() {
    let (issuer, old, app) = pair(|config| config.keys_refresh = Duration::from_secs(300)).await;
    let claims = issuer.claims("1", "ann", &[], START_S);
    let token = old.sign(&claims);
    assert_eq!(status(&app, &token).await, 200);
    let new = IssuerKey::ed("k2");
    issuer.publish(&[&new]);
    app.advance(Duration::from_secs(10));
    assert_eq!(status(&app, &new.sign(&claims)).await, 200, "an unknown key is looked for");
    assert_eq!(status(&app, &token).await, 200, "checked before, for five minutes");
    app.advance(Duration::from_secs(290));
    assert_eq!(status(&app, &token).await, 401, "its key is gone");
}

#[tokio::test]
async fn a_provider_that_is_down_is_waited_out_within_a_bound_and_never_means_yes() {
    let (issuer, key, app) = pair(|_| {}).await;
    issuer.set_down(true);
    let token = key.sign(&issuer.claims("1", "ann", &[], START_S));
    let reply = holder(&app, &token).get("/v1/me").await;
    assert_eq!(reply.status, 503, "{}", reply.body);
    assert!(reply.retry_after().is_some());
    issuer.set_down(false);
    app.advance(Duration::from_secs(10));
    assert_eq!(status(&app, &token).await, 200);
    issuer.set_down(true);
    let later = 23 * 3600;
    app.advance(Duration::from_secs(later));
    let at_s = START_S + 10 + i64::try_from(later).unwrap();
    assert_eq!(status(&app, &key.sign(&issuer.claims("2", "bob", &[], at_s))).await, 200, "the keys at hand");
    app.advance(Duration::from_secs(2 * 3600));
    let token = key.sign(&issuer.claims("3", "eve", &[], at_s + 7200));
    assert_eq!(holder(&app, &token).get("/v1/me").await.status, 503, "a day without the provider");
}

#[tokio::test]
async fn a_discovery_document_of_somebody_else_is_not_believed() {
    let (issuer, key, app) = pair(|_| {}).await;
    issuer.call_itself(&format!("{}/", issuer.name()));
    let token = key.sign(&issuer.claims("1", "ann", &[], START_S));
    assert_eq!(holder(&app, &token).get("/v1/me").await.status, 503);
    assert_eq!(issuer.key_fetches(), 0);
}

#[tokio::test]
async fn clocks_may_be_apart_by_the_leeway_and_no_more() {
    let (issuer, key, app) = pair(|config| config.leeway = Duration::from_secs(60)).await;
    let mut claims = issuer.claims("1", "ann", &[], START_S + 60);
    assert_eq!(status(&app, &key.sign(&claims)).await, 200);
    claims["iat"] = (START_S + 61).into();
    assert_eq!(status(&app, &key.sign(&claims)).await, 401);
    let token = key.sign(&issuer.claims("1", "ann", &[], START_S));
    app.advance(Duration::from_secs(3659));
    assert_eq!(status(&app, &token).await, 200);
    app.advance(Duration::from_secs(1));
    assert_eq!(status(&app, &token).await, 401);
}

#[tokio::test]
async fn administration_comes_from_the_map_and_never_from_a_claim_or_a_name() {
    let (issuer, key, app) = pair(|_| {}).await;
    let admin_of = async |subject: &str, name: &str, groups: &[&str]| {
        let token = key.sign(&issuer.claims(subject, name, groups, START_S));
        holder(&app, &token).get("/admin/v1/users").await.status
    };
    assert_eq!(admin_of("1", "ann", &["millgate-admins", "system:masters"]).await, 403);
    assert_eq!(admin_of("admin", "admin", &[]).await, 403, "a provider's admin is not ours");
    assert_eq!(admin_of("2", "bob", &["Platform Admins"]).await, 200);
    let users = app.admin().get("/admin/v1/users").await.json();
    let names: Vec<&str> =
        users["data"].as_array().unwrap().iter().map(|user| user["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["admin", "corp:admin", "corp:ann", "corp:bob"]);
}

#[tokio::test]
async fn a_name_that_somebody_has_is_not_given_away_twice() {
    let (issuer, key, app) = pair(|_| {}).await;
    let local = NewUser { name: "corp:ann".into(), groups: vec!["millgate-admins".into()] };
    app.governor.create_user(&app.operator(), local).await.unwrap();
    let user_of = async |subject: &str| {
        let token = key.sign(&issuer.claims(subject, "ann", &[], START_S));
        let me = holder(&app, &token).get("/v1/me").await.json();
        assert_eq!(me["is_admin"], false);
        me["user"].as_str().unwrap().to_owned()
    };
    let (first, second) = (user_of("1").await, user_of("2").await);
    assert!(first.starts_with("corp:ann:") && second.starts_with("corp:ann:") && first != second, "{first} {second}");
    assert_eq!(user_of("1").await, first, "and stays");
    let again = NewUser { name: first, groups: Vec::new() };
    assert!(app.governor.create_user(&app.operator(), again).await.is_err());
}

#[tokio::test]
async fn a_login_opens_the_account_and_a_key_or_token_made_there_opens_inference() {
    let (issuer, key, app) = pair(|_| {}).await;
    let ann = holder(&app, &key.sign(&issuer.claims("1", "ann", &["premium-users"], START_S)));
    let refused = ann.chat("hi").await;
    assert_eq!(refused.status, 403);
    assert!(refused.message().contains("make an API key"), "{}", refused.body);
    assert_eq!(ann.get("/v1/models").await.status, 200);
    let made = ann.post("/v1/api-keys", &json!({"name": "laptop"})).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let api_key = ann.with_key(made.json()["key"].as_str().unwrap());
    assert_eq!(api_key.chat("hi").await.status, 200);
    let made = ann.post("/v1/tokens", &json!({})).await;
    let token = ann.with_key(made.json()["token"].as_str().unwrap());
    assert_eq!(token.chat("hi").await.status, 200);
    assert_eq!(token.get("/v1/me").await.json()["tier"], "premium");
    assert_eq!(ann.delete("/v1/tokens").await.status, 204);
    assert_eq!((token.get("/v1/me").await.status, ann.get("/v1/me").await.status), (401, 200));
}

#[tokio::test]
async fn tokens_of_a_provider_open_inference_where_the_operator_says_so() {
    let (issuer, key, app) = pair(|config| config.allow_inference = true).await;
    let ann = holder(&app, &key.sign(&issuer.claims("1", "ann", &[], START_S)));
    assert_eq!(ann.chat("hi").await.status, 200);
}

#[tokio::test]
async fn groups_are_those_of_the_last_login_and_an_older_token_brings_none_back() {
    let (issuer, key, app) = pair(|_| {}).await;
    let first = key.sign(&issuer.claims("1", "ann", &["premium-users", "Platform Admins"], START_S));
    let ann = holder(&app, &first);
    let made = ann.post("/v1/api-keys", &json!({"name": "laptop"})).await.json();
    let api_key = ann.with_key(made["key"].as_str().unwrap());
    assert_eq!(api_key.get("/admin/v1/tiers").await.status, 200);
    app.advance(Duration::from_secs(60));
    let second = key.sign(&issuer.claims("1", "ann", &["staff"], START_S + 60));
    assert_eq!(holder(&app, &second).get("/v1/me").await.json()["tier"], "free");
    assert_eq!(api_key.get("/admin/v1/tiers").await.status, 403, "on the next request");
    // A token that was made before, and presented for the first time after: an old word is no news.
    let mut stale = issuer.claims("1", "ann", &["Platform Admins"], START_S + 30);
    stale["jti"] = "unseen".into();
    assert_eq!(holder(&app, &key.sign(&stale)).get("/admin/v1/tiers").await.status, 403);
    assert_eq!(ann.get("/admin/v1/tiers").await.status, 403);
}

#[tokio::test]
async fn a_key_keeps_the_providers_groups_only_so_long_after_the_last_login() {
    let (issuer, key, app) = pair(|_| {}).await;
    let ann = holder(&app, &key.sign(&issuer.claims("1", "ann", &["premium-users"], START_S)));
    let made = ann.post("/v1/api-keys", &json!({"name": "laptop"})).await.json();
    let api_key = ann.with_key(made["key"].as_str().unwrap());
    let tier = async || api_key.get("/v1/me").await.json()["tier"].as_str().unwrap().to_owned();
    let week = Duration::from_secs(7 * 86_400);
    app.advance(week - Duration::from_micros(1));
    assert_eq!(tier().await, "premium");
    app.advance(Duration::from_micros(1));
    assert_eq!(tier().await, "free");
    let at_s = START_S + 7 * 86_400;
    let again = key.sign(&issuer.claims("1", "ann", &["premium-users"], at_s));
    assert_eq!(status(&app, &again).await, 200);
    assert_eq!(tier().await, "premium", "a login brings them back");
}

#[tokio::test]
async fn a_login_that_says_nothing_new_writes_nothing() {
    let (issuer, key, app) = pair(|_| {}).await;
    let log_in = async |at_s: i64| status(&app, &key.sign(&issuer.claims("1", "ann", &["staff"], at_s))).await;
    assert_eq!(log_in(START_S).await, 200);
    let version = app.records.policy_version().await.unwrap();
    for at_s in 1..20 {
        app.advance(Duration::from_secs(1));
        assert_eq!(log_in(START_S + at_s).await, 200);
    }
    assert_eq!(app.records.policy_version().await.unwrap(), version);
}

#[tokio::test]
async fn who_is_locked_out_here_stays_out_whatever_the_provider_says() {
    let (issuer, key, app) = pair(|_| {}).await;
    let ann = holder(&app, &key.sign(&issuer.claims("1", "ann", &[], START_S)));
    let made = ann.post("/v1/api-keys", &json!({"name": "laptop"})).await.json();
    let patch = UserPatch { active: Some(false), ..UserPatch::default() };
    app.governor.update_user(&app.operator(), "corp:ann", patch).await.unwrap();
    assert_eq!(ann.get("/v1/me").await.status, 401);
    assert_eq!(ann.with_key(made["key"].as_str().unwrap()).get("/v1/me").await.status, 401);
    let fresh = key.sign(&issuer.claims("1", "ann", &["Platform Admins"], START_S));
    assert_eq!(status(&app, &fresh).await, 401);
}

#[tokio::test]
async fn documents_are_fetched_within_bounds() {
    use axum::response::Redirect;
    use axum::routing::get;
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = axum::Router::new()
        .route("/good", get(async || "{}"))
        .route("/away", get(async || Redirect::temporary("/good")))
        .route("/large", get(async || "x".repeat(300 << 10)))
        .route("/broken", get(async || axum::http::StatusCode::INTERNAL_SERVER_ERROR));
    TaskTracker::new().spawn(async move { axum::serve(listener, router).await });
    let documents = HttpDocuments::new().unwrap();
    assert_eq!(documents.get(&format!("http://{address}/good")).await, Ok(b"{}".to_vec()));
    for (path, problem) in [("away", "answers 307"), ("large", "larger than"), ("broken", "answers 500")] {
        let error = documents.get(&format!("http://{address}/{path}")).await.unwrap_err();
        assert!(error.to_string().contains(problem), "{error}");
    }
    assert!(documents.get("http://127.0.0.1:1/").await.is_err());
}
