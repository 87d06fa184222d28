//! X3, X7, X19: what is under way keeps what it holds, and gives it back the moment it ends, however it ends.

use std::time::Duration;

use millgate::engine::fake::FakeModel;
use millgate::governance::Status;
use serde_json::{Value, json};

use crate::process::ServerProcess;
use crate::support::{Actor, Builder, TestApp};

/// Answers that never end by themselves, slow enough to be interrupted.
fn endless(app: Builder) -> Builder {
    app.fake(|fake| {
        fake.end_logit = f32::NEG_INFINITY;
        fake.step_delay = Duration::from_millis(5);
    })
}

async fn limits_of(user: &Actor) -> Vec<Value> {
    user.get("/v1/me").await.json()["limits"].as_array().expect("limits").clone()
}

#[tokio::test]
async fn x3_a_client_that_leaves_stops_the_generation_and_pays_what_was_made() {
    let app = endless(TestApp::new().tier("daily", |tier| tier.tokens_per_day(2000))).start().await;
    let user = app.key("daily").await;
    let mut stream = user.chat_stream("hello", json!({"max_tokens": 1500})).await;
    stream.chunk().await.unwrap();
    drop(stream);
    app.eventually("the engine has stopped", async |app| app.engine.status().open_requests == 0).await;
    app.eventually("the request is settled", async |app| app.ledger().await.len() == 1).await;
    let row = app.ledger().await.remove(0);
    let made = app.engine.status().totals.completion_tokens;
    assert_eq!((row.status, row.usage.completion_tokens), (Status::Aborted, made));
    assert!(made < 1500);
    let limit = limits_of(&user).await.remove(0);
    assert_eq!((&limit["used"], &limit["held"]), (&json!(row.usage.total_tokens()), &json!(0)));
}

#[tokio::test]
async fn x19_a_long_generation_keeps_its_hold_and_an_aborted_one_releases_it_at_once() {
    let limits = |tier: crate::support::TierSpec| tier.limit("1 concurrent").tokens_per_day(1000);
    let app = endless(TestApp::new().tier("narrow", limits)).start().await;
    let user = app.key("narrow").await;
    let mut stream = user.chat_stream("hello", json!({"max_tokens": 900})).await;
    stream.chunk().await.unwrap();
    for _ in 0..5 {
        app.advance(Duration::from_secs(61));
        let held: Vec<Value> = limits_of(&user).await.iter().map(|limit| limit["held"].clone()).collect();
        assert_eq!(held[0], 1, "the place is held");
        assert!(held[1].as_u64().unwrap() > 900, "prompt and maximum are held");
        assert_eq!(user.complete(json!([65]), json!({"max_tokens": 1})).await.status, 429);
    }
    drop(stream);
    app.eventually("the hold is released", async |_| limits_of(&user).await.iter().all(|limit| limit["held"] == 0))
        .await;
    assert_eq!(user.complete(json!([65]), json!({"max_tokens": 1})).await.status, 200);
}

#[tokio::test]
async fn x19_a_failed_request_releases_its_hold_and_costs_no_token() {
    let limits = |tier: crate::support::TierSpec| tier.limit("1 concurrent").tokens_per_day(1000);
    let app = TestApp::new().tier("narrow", limits).start().await;
    let user = app.key("narrow").await;
    let failed = user.complete(json!([FakeModel::ERROR_TOKEN]), json!({"max_tokens": 900})).await;
    assert_eq!(failed.status, 500, "{}", failed.body);
    for limit in limits_of(&user).await {
        assert_eq!((&limit["used"], &limit["held"]), (&json!(0), &json!(0)), "{limit}");
    }
    assert_eq!(app.ledger().await[0].status, Status::Failed);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x7_counters_and_keys_survive_kill_9_and_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(folder.path(), &[]).await;
    let tier = json!({"name": "metered", "display_name": "Metered", "level": 9, "groups": ["metered"],
        "limits": [{"resource": "requests", "amount": 2, "window": "1h"}, {"resource": "tokens", "amount": 5000, "window": "day"}]});
    let made = server.post("/admin/v1/tiers", &tier).send().await.unwrap();
    assert_eq!(made.status(), 201);
    server.post("/admin/v1/users", &json!({"name": "ann", "groups": ["metered"]})).send().await.unwrap();
    let key = server.post("/admin/v1/api-keys", &json!({"user": "ann", "name": "laptop"})).send().await.unwrap();
    let key: Value = key.json().await.unwrap();
    let key = key["key"].as_str().unwrap().to_owned();
    let mut used = 0;
    for seed in 0..2 {
        let (status, answer) = server.chat_as(&key, seed).await;
        assert_eq!(status, 200, "{answer}");
        used += answer["usage"]["total_tokens"].as_u64().unwrap();
    }
    assert_eq!(server.chat_as(&key, 2).await.0, 429);
    server.signal("-KILL");
    assert!(!server.ended().await.success());
    let server = ServerProcess::start(folder.path(), &[]).await;
    let (status, refused) = server.chat_as(&key, 3).await;
    assert_eq!((status, &refused["error"]["detail"]["used"]), (429, &json!(2)), "{refused}");
    let me = server.me(&key).await;
    assert_eq!(me["limits"][1]["used"], used, "{me}");
}
