//! Tokens of a Kubernetes cluster: its API server says who somebody is, and every way in which it can fail to.

use std::time::{Duration, Instant};

use futures::future::join_all;
use millgate::governance::{KubernetesCluster, UserPatch};
use serde_json::json;

use crate::support::{ANOTHER_CA, Actor, Issuer, IssuerKey, Kubernetes, Mood, TestApp, jwt};

/// The second at which every test server starts, and one that no test reaches.
const START_S: i64 = 1_700_000_000;
const FAR_S: i64 = START_S + 1_000_000;
const PREMIUM: &str = "maas-default-gateway-tier-premium";
const CALLER: &str = "kubernetes:system:serviceaccount:default:caller";

/// A cluster, and a server that believes its tokens.
async fn pair(change: impl FnOnce(&mut KubernetesCluster)) -> (Kubernetes, TestApp) {
    let cluster = Kubernetes::start().await;
    let app = believing(&cluster, change).await;
    (cluster, app)
}

async fn believing(cluster: &Kubernetes, change: impl FnOnce(&mut KubernetesCluster)) -> TestApp {
    let mut config = cluster.config();
    change(&mut config);
    TestApp::new().governance(|governance| governance.kubernetes = Some(config)).start().await
}

fn holder(app: &TestApp, token: &str) -> Actor {
    app.anonymous().with_key(token)
}

async fn status(app: &TestApp, token: &str) -> u16 {
    let reply = holder(app, token).get("/v1/me").await;
    assert!(!reply.body.contains(token), "an answer never repeats a token: {}", reply.body);
    reply.status
}

#[tokio::test]
async fn a_service_account_has_the_tier_in_whose_namespace_it_lives() {
    let (cluster, app) = pair(|_| {}).await;
    for (namespace, tier) in [("default", "free"), (PREMIUM, "premium"), ("another-tier-premium", "free")] {
        let me = holder(&app, &cluster.service_account(namespace, "caller", FAR_S)).get("/v1/me").await;
        assert_eq!(me.status, 200, "{}", me.body);
        let me = me.json();
        assert_eq!(me["user"], format!("kubernetes:system:serviceaccount:{namespace}:caller"));
        assert_eq!(me["tier"], tier);
        let own = format!("system:serviceaccounts:{namespace}");
        assert_eq!(me["groups"], json!(["system:authenticated", "system:serviceaccounts", own]));
    }
}

#[tokio::test]
async fn a_namespaces_group_counts_for_nobody_who_does_not_live_in_it() {
    let (cluster, app) = pair(|_| {}).await;
    let group = format!("system:serviceaccounts:{PREMIUM}");
    for name in ["ann", "system:serviceaccount:default:caller", "system:serviceaccount"] {
        let token = cluster.token(name, "7", &[&group, "staff"], FAR_S);
        let me = holder(&app, &token).get("/v1/me").await.json();
        assert_eq!((&me["tier"], &me["groups"]), (&json!("free"), &json!(["staff", "system:authenticated"])), "{name}");
    }
}

#[tokio::test]
async fn what_the_api_server_does_not_vouch_for_is_401_and_counts_as_a_failed_credential() {
    let cluster = Kubernetes::start().await;
    let app = TestApp::new().governance(|governance| {
        governance.kubernetes = Some(cluster.config());
        governance.failed_credentials_per_minute = 4;
    });
    let app = app.start().await;
    let garbage = jwt("system:serviceaccount:default:caller", &["millgate"], FAR_S);
    let elsewhere = cluster.token_for(&["vault"], "system:serviceaccount:default:caller", "1", &["x"], FAR_S);
    let unsafe_name = cluster.token("ann smith", "1", &["x"], FAR_S);
    let deleted = cluster.service_account("default", "gone", FAR_S);
    cluster.revoke(&deleted);
    for token in [&garbage, &elsewhere, &unsafe_name, &deleted] {
        assert_eq!(status(&app, token).await, 401);
    }
    assert_eq!(status(&app, &garbage).await, 429);
    assert_eq!(status(&app, &cluster.service_account("default", "caller", FAR_S)).await, 200, "what is right passes");
}

#[tokio::test]
async fn no_key_and_no_token_of_somebody_else_ever_leaves_for_the_api_server() {
    let cluster = Kubernetes::start().await;
    let key = IssuerKey::ec("k1");
    let issuer = Issuer::start(&[&key]).await;
    let app = TestApp::new().governance(|governance| {
        governance.kubernetes = Some(cluster.config());
        governance.oidc = vec![issuer.config()];
    });
    let app = app.start().await;
    let ann = app.user("ann", &[]).await;
    let made = ann.post("/v1/tokens", &json!({})).await.json();
    let own = made["token"].as_str().unwrap();
    let of_provider = key.sign(&issuer.claims("1", "ann", &[], START_S));
    let good = [ann.key.clone().unwrap(), app.admin().key.unwrap(), own.to_owned(), of_provider.clone()];
    for credential in &good {
        assert_eq!(status(&app, credential).await, 200);
    }
    let mut mistyped = good[0].clone();
    mistyped.pop();
    let cut = |token: &str| token[..token.len() - 4].to_owned();
    for credential in [
        mistyped,
        "sk-mg_0123456789ab_thesecretpartofastrangerskeythatnobodymade".to_owned(),
        "sha256~a-token-of-another-program-with-many-characters".to_owned(),
        cut(own),
        cut(&of_provider),
        "eyJhbGciOiJSUzI1NiJ9.e30.c2ln".to_owned(),
        format!("{}{}.c2ln", "eyJhbGciOiJSUzI1NiJ9.", "a".repeat(17_000)),
    ] {
        assert_eq!(status(&app, &credential).await, 401, "{credential:.60}");
    }
    assert!(cluster.asked().is_empty(), "{:?}", cluster.asked());
}

#[tokio::test]
async fn many_requests_with_one_token_make_one_review_and_one_user() {
    let (cluster, app) = pair(|_| {}).await;
    let token = cluster.service_account("default", "caller", FAR_S);
    let caller = holder(&app, &token);
    cluster.set(Mood::Hangs);
    let requests = join_all((0..40).map(|_| caller.get("/v1/me")));
    let release = async {
        app.eventually("the API server is asked", async |_| !cluster.asked().is_empty()).await;
        cluster.set(Mood::Well);
    };
    let (replies, ()) = tokio::join!(requests, release);
    assert!(replies.iter().all(|reply| reply.status == 200));
    assert_eq!(cluster.asked(), [token]);
    let users = app.admin().get("/admin/v1/users").await.json();
    let of_cluster = users["data"].as_array().unwrap().iter().filter(|user| user["issuer"] == "kubernetes").count();
    assert_eq!(of_cluster, 1);
    let log = app.admin().get("/admin/v1/audit?limit=1000").await.json();
    let by_caller = log["data"].as_array().unwrap().iter().filter(|row| row["actor"]["name"] == CALLER).count();
    assert_eq!(by_caller, 1, "{log}");
}

#[tokio::test]
async fn a_yes_counts_for_a_minute_so_a_deleted_account_is_out_soon() {
    let (cluster, app) = pair(|_| {}).await;
    let token = cluster.service_account("default", "caller", FAR_S);
    assert_eq!(status(&app, &token).await, 200);
    cluster.revoke(&token);
    app.advance(Duration::from_secs(60) - Duration::from_micros(1));
    assert_eq!((status(&app, &token).await, cluster.asked().len()), (200, 1));
    app.advance(Duration::from_micros(1));
    assert_eq!((status(&app, &token).await, cluster.asked().len()), (401, 2));
}

#[tokio::test]
async fn a_yes_never_outlives_the_token() {
    let (cluster, app) = pair(|_| {}).await;
    let token = cluster.service_account("default", "caller", START_S + 20);
    assert_eq!(status(&app, &token).await, 200);
    cluster.revoke(&token);
    app.advance(Duration::from_secs(20) - Duration::from_micros(1));
    assert_eq!(status(&app, &token).await, 200);
    app.advance(Duration::from_micros(1));
    assert_eq!(status(&app, &token).await, 401);
}

#[tokio::test]
async fn a_no_counts_for_seconds_so_a_stubborn_client_costs_the_cluster_little() {
    let (cluster, app) = pair(|_| {}).await;
    let garbage = jwt("system:serviceaccount:default:caller", &["millgate"], FAR_S);
    for _ in 0..20 {
        assert_eq!(status(&app, &garbage).await, 401);
    }
    assert_eq!(cluster.asked().len(), 1);
    app.advance(Duration::from_secs(5));
    assert_eq!(status(&app, &garbage).await, 401);
    assert_eq!(cluster.asked().len(), 2);
}

#[tokio::test]
async fn an_api_server_that_fails_is_503_never_401_and_nobodys_failed_credential() {
    let cluster = Kubernetes::start().await;
    let app = TestApp::new().governance(|governance| {
        governance.kubernetes = Some(cluster.config());
        governance.failed_credentials_per_minute = 1;
    });
    let app = app.start().await;
    let known = cluster.service_account("default", "known", FAR_S);
    assert_eq!(status(&app, &known).await, 200);
    let token = cluster.service_account("default", "caller", FAR_S);
    for mood in [Mood::BreaksOff, Mood::Forbids, Mood::Fails, Mood::Garbled] {
        cluster.set(mood);
        let reply = holder(&app, &token).get("/v1/me").await;
        assert_eq!(reply.status, 503, "{mood:?}: {}", reply.body);
        assert!(reply.retry_after().is_some());
        assert!(!reply.body.contains("tokenreviews") && !reply.body.contains("etcd"), "{}", reply.body);
    }
    assert_eq!(status(&app, &known).await, 200, "for the rest of its minute");
    assert_eq!(app.admin().get("/v1/me").await.status, 200, "keys need no cluster");
    cluster.set(Mood::Well);
    assert_eq!(status(&app, &token).await, 200, "at once");
    let metrics = app.anonymous().get("/metrics").await.body;
    assert!(metrics.contains("millgate_failed_credentials_total 0"), "{metrics}");
    assert_eq!(status(&app, &jwt("x", &["millgate"], FAR_S)).await, 401, "the first failure");
    assert_eq!(status(&app, &jwt("x", &["millgate"], FAR_S)).await, 429, "the second");
}

#[tokio::test]
async fn an_api_server_that_hangs_or_is_gone_holds_nobody_up_for_longer_than_two_seconds() {
    let (cluster, app) = pair(|_| {}).await;
    cluster.set(Mood::Hangs);
    let token = cluster.service_account("default", "caller", FAR_S);
    let began = Instant::now();
    assert_eq!(status(&app, &token).await, 503);
    assert!((2..10).contains(&began.elapsed().as_secs()), "{:?}", began.elapsed());
    cluster.set(Mood::Well);
    assert_eq!(status(&app, &token).await, 200);
    let (cluster, app) = pair(|config| config.server = "http://127.0.0.1:1".into()).await;
    assert_eq!(status(&app, &cluster.service_account("default", "caller", FAR_S)).await, 503);
}

#[tokio::test]
async fn who_is_locked_out_here_stays_out_whatever_the_cluster_says() {
    let (cluster, app) = pair(|_| {}).await;
    let caller = holder(&app, &cluster.service_account("default", "caller", FAR_S));
    let made = caller.post("/v1/api-keys", &json!({"name": "laptop"})).await.json();
    let patch = UserPatch { active: Some(false), ..UserPatch::default() };
    app.governor.update_user(&app.operator(), CALLER, patch).await.unwrap();
    assert_eq!(caller.get("/v1/me").await.status, 401);
    assert_eq!(caller.with_key(made["key"].as_str().unwrap()).get("/v1/me").await.status, 401);
    let another = cluster.service_account("default", "caller", FAR_S);
    assert_eq!(status(&app, &another).await, 401, "another token of the same account");
}

#[tokio::test]
async fn an_account_opens_itself_and_a_key_made_with_it_opens_inference_in_the_same_tier() {
    let (cluster, app) = pair(|_| {}).await;
    let caller = holder(&app, &cluster.service_account(PREMIUM, "caller", FAR_S));
    let refused = caller.chat("hi").await;
    assert_eq!(refused.status, 403);
    assert!(refused.message().contains("make an API key"), "{}", refused.body);
    let made = caller.post("/v1/api-keys", &json!({"name": "laptop"})).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let api_key = caller.with_key(made.json()["key"].as_str().unwrap());
    let made = caller.post("/v1/tokens", &json!({})).await;
    let token = caller.with_key(made.json()["token"].as_str().unwrap());
    for own in [&api_key, &token] {
        assert_eq!(own.chat("hi").await.status, 200);
        assert_eq!(own.get("/v1/me").await.json()["tier"], "premium");
    }
    app.advance(Duration::from_secs(7 * 86_400));
    assert_eq!(api_key.get("/v1/me").await.json()["tier"], "free", "the cluster's word is a week old");
    let again = cluster.service_account(PREMIUM, "caller", FAR_S);
    assert_eq!(status(&app, &again).await, 200);
    assert_eq!(api_key.get("/v1/me").await.json()["tier"], "premium", "and is renewed by the next token");
}

#[tokio::test]
async fn tokens_of_the_cluster_open_inference_where_the_operator_says_so() {
    let (cluster, app) = pair(|config| config.allow_inference = true).await;
    let caller = holder(&app, &cluster.service_account(PREMIUM, "caller", FAR_S));
    assert_eq!(caller.chat("hi").await.status, 200);
    let ledger = app.ledger().await;
    assert_eq!((ledger.len(), ledger[0].request.tier.as_str()), (1, "premium"));
}

#[tokio::test]
async fn administration_comes_from_the_map_alone() {
    let map = [("system:serviceaccounts:platform".to_owned(), "millgate-admins".to_owned())];
    let (cluster, app) = pair(|config| config.group_map = map.into()).await;
    let admin_of = async |token: String| holder(&app, &token).get("/admin/v1/users").await.status;
    let groups = ["millgate-admins", "system:masters", "system:serviceaccounts:default"];
    assert_eq!(admin_of(cluster.token("admin", "", &groups, FAR_S)).await, 403);
    assert_eq!(admin_of(cluster.service_account("default", "admin", FAR_S)).await, 403);
    assert_eq!(admin_of(cluster.service_account("platform", "operator", FAR_S)).await, 200);
}

#[tokio::test]
async fn an_account_that_is_deleted_and_made_anew_is_somebody_else() {
    let (cluster, app) = pair(|_| {}).await;
    let name = "system:serviceaccount:default:caller";
    let first = holder(&app, &cluster.token(name, "1", &["x"], FAR_S));
    let made = first.post("/v1/api-keys", &json!({"name": "of the first"})).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let second = holder(&app, &cluster.token(name, "2", &["x"], FAR_S));
    assert_eq!(second.get("/v1/api-keys").await.json()["data"], json!([]));
    let me = second.get("/v1/me").await.json();
    assert!(me["user"].as_str().unwrap().starts_with(&format!("{CALLER}:")), "{me}");
}

#[tokio::test]
async fn the_servers_own_token_is_read_anew_when_it_was_replaced() {
    let (cluster, app) = pair(|_| {}).await;
    cluster.withdraw_own_token();
    let token = cluster.service_account("default", "caller", FAR_S);
    assert_eq!(status(&app, &token).await, 503);
    assert!(cluster.asked().is_empty());
    cluster.replace_own_token();
    assert_eq!(status(&app, &token).await, 200);
}

#[tokio::test]
async fn the_api_server_is_known_by_the_clusters_own_certificates_which_are_read_anew_too() {
    let cluster = Kubernetes::start_with_tls().await;
    let app = believing(&cluster, |_| {}).await;
    let token = |name| cluster.service_account("default", name, FAR_S);
    let right = std::fs::read_to_string(cluster.config().ca_file).unwrap();
    assert_eq!(status(&app, &token("a")).await, 200);
    cluster.trust(ANOTHER_CA);
    assert_eq!(status(&app, &token("b")).await, 503, "somebody else may have that address");
    cluster.trust("");
    assert_eq!(status(&app, &token("c")).await, 503, "no certificate is not any certificate");
    cluster.trust(&right);
    assert_eq!(status(&app, &token("d")).await, 200);
    assert_eq!(cluster.asked().len(), 2, "nothing was sent to whom it could not know");
}
