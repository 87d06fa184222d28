//! A right that is taken away ends what already runs under it, cleanly, and what was sampled is charged.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::time::Duration;

use millgate::governance::Status;
use serde_json::{Value, json};

use crate::support::{Actor, Reply, TestApp};

async fn endless() -> TestApp {
    let app = TestApp::new().hidden_model("other").fake(|fake| {
        fake.end_logit = f32::NEG_INFINITY;
        fake.step_delay = Duration::from_millis(5);
    });
    app.start().await
}

/// A stream that has begun, of a request that would take many seconds.
async fn begun(user: &Actor) -> reqwest::Response {
    let mut stream = user.chat_stream("hello", json!({"max_tokens": 1900})).await;
    stream.chunk().await.unwrap();
    stream
}

/// Reads a stream to its end and returns the error it ended with.
async fn ended_by(stream: reqwest::Response) -> Value {
    let reply = Reply::read(stream).await;
    let tail = reply.body.rsplit("\n\n").filter(|event| !event.is_empty()).take(2).collect::<Vec<_>>();
    assert_eq!(tail[0], "data: [DONE]", "{}", reply.body);
    let event: Value = serde_json::from_str(tail[1].strip_prefix("data: ").unwrap()).unwrap();
    event["error"].clone()
}

async fn is_charged_what_was_sampled(app: &TestApp) {
    app.eventually("it is settled", async |app| app.ledger().await.len() == 1).await;
    let row = app.ledger().await.remove(0);
    let totals = app.engine.status().totals;
    assert_eq!((row.status, totals.blocks.owned), (Status::Aborted, 0));
    assert!(row.usage.prompt_tokens > 0 && row.usage.completion_tokens < 1900);
    assert_eq!(row.usage.completion_tokens, totals.completion_tokens, "charged is what was sampled");
}

#[tokio::test]
async fn revoking_a_key_ends_its_streams_with_an_error_event_and_done() {
    let app = endless().await;
    let (user, other) = (app.user("ann", &[]).await, app.user("bob", &[]).await);
    let stream = begun(&user).await;
    let id = user.get("/v1/api-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(app.admin().delete(&format!("/admin/v1/api-keys/{id}")).await.status, 200);
    let error = ended_by(stream).await;
    assert_eq!((error["code"].as_u64(), error["type"].as_str()), (Some(401), Some("authentication_error")));
    is_charged_what_was_sampled(&app).await;
    let others = begun(&other).await;
    assert_eq!(user.get("/v1/me").await.status, 401);
    drop(others);
    app.stop().await;
}

#[tokio::test]
async fn stopping_a_secret_ends_its_streams_and_one_in_its_grace_goes_on() {
    for (grace, goes_on) in [("0s", false), ("10m", true)] {
        let app = endless().await;
        let user = app.user("ann", &[]).await;
        let token = user.post("/v1/tokens", &json!({})).await.json()["token"].as_str().unwrap().to_owned();
        let streams = [begun(&user).await, begun(&user.with_key(&token)).await];
        let id = user.get("/v1/api-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
        let rotated = user.post(&format!("/v1/api-keys/{id}/rotate"), &json!({"grace": grace})).await;
        assert_eq!(rotated.status, 200, "{}", rotated.body);
        if goes_on {
            // A later change has reached what runs, so this one has, too.
            let other = app.user("bob", &[]).await;
            let others = begun(&other).await;
            let id = other.get("/v1/api-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
            other.delete(&format!("/v1/api-keys/{id}")).await;
            assert_eq!(ended_by(others).await["code"], 401);
            assert_eq!(app.engine.status().open_requests, 2);
            for mut stream in streams {
                assert!(stream.chunk().await.unwrap().is_some());
            }
        } else {
            for stream in streams {
                assert_eq!(ended_by(stream).await["code"], 401);
            }
        }
        app.stop().await;
    }
}

#[tokio::test]
async fn ending_a_users_tokens_or_withdrawing_what_signed_them_ends_streams_of_tokens_and_leaves_those_of_keys() {
    for is_withdrawn in [false, true] {
        let app = endless().await;
        let (user, other) = (app.user("ann", &[]).await, app.user("bob", &[]).await);
        let token = user.post("/v1/tokens", &json!({})).await.json()["token"].as_str().unwrap().to_owned();
        let stream = begun(&user.with_key(&token)).await;
        let gone = if is_withdrawn {
            let keys = app.admin().get("/admin/v1/signing-keys").await.json();
            let id = keys["data"][0]["id"].as_str().unwrap().to_owned();
            app.admin().delete(&format!("/admin/v1/signing-keys/{id}")).await
        } else {
            user.delete("/v1/tokens").await
        };
        assert!(gone.status < 300, "{}", gone.body);
        let error = ended_by(stream).await;
        assert_eq!((error["code"].as_u64(), error["type"].as_str()), (Some(401), Some("authentication_error")));
        is_charged_what_was_sampled(&app).await;
        let mut of_a_key = begun(&user).await;
        assert!(other.delete("/v1/tokens").await.status < 300);
        for _ in 0..20 {
            let chunk = of_a_key.chunk().await.unwrap().expect("the stream goes on");
            assert!(!chunk.windows(7).any(|part| part == b"\"error\""));
        }
        drop(of_a_key);
        app.stop().await;
    }
}

#[tokio::test]
async fn deactivating_or_deleting_a_user_ends_their_streams() {
    for method in ["PATCH", "DELETE"] {
        let app = endless().await;
        let user = app.user("ann", &[]).await;
        let stream = begun(&user).await;
        let gone = app.admin().send_json(method, "/admin/v1/users/ann", &json!({"active": false})).await;
        assert_eq!(gone.status, 200, "{}", gone.body);
        assert_eq!(ended_by(stream).await["code"], 401, "{method}");
        is_charged_what_was_sampled(&app).await;
        app.stop().await;
    }
}

#[tokio::test]
async fn a_model_taken_from_the_tier_or_from_the_key_ends_streams_that_use_it() {
    let app = endless().await;
    let user = app.user("ann", &[]).await;
    let stream = begun(&user).await;
    app.admin().put("/admin/v1/models/fake", &json!({"tiers": []})).await;
    let error = ended_by(stream).await;
    assert_eq!((error["code"].as_u64(), error["type"].as_str()), (Some(403), Some("authorization_error")));
    is_charged_what_was_sampled(&app).await;
    app.admin().put("/admin/v1/models/fake", &json!({"tiers": "all"})).await;
    let stream = begun(&user).await;
    let id = user.get("/v1/api-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    app.admin().send_json("PATCH", &format!("/admin/v1/api-keys/{id}"), &json!({"models": ["other"]})).await;
    assert_eq!(ended_by(stream).await["code"], 403);
    app.stop().await;
}

#[tokio::test]
async fn a_change_that_takes_nothing_away_leaves_streams_alone_also_a_key_whose_time_is_over() {
    let app = endless().await;
    let user = app.user("ann", &["premium-users"]).await;
    let mut stream = begun(&user).await;
    app.user("bob", &[]).await;
    app.admin().send_json("PATCH", "/admin/v1/users/ann", &json!({"groups": []})).await;
    assert_eq!(user.get("/v1/me").await.json()["tier"], "free");
    app.advance(Duration::from_secs(91 * 86_400));
    assert_eq!(user.get("/v1/me").await.status, 401, "the key is over");
    app.admin().post("/admin/v1/groups", &json!({"name": "any-change"})).await;
    for _ in 0..20 {
        let chunk = stream.chunk().await.unwrap().expect("the stream goes on");
        assert!(!chunk.windows(7).any(|part| part == b"\"error\""));
    }
}

#[tokio::test]
async fn a_whole_answer_of_a_revoked_key_is_a_401_and_what_was_sampled_is_charged() {
    let app = endless().await;
    let user = app.user("ann", &[]).await;
    let id = user.get("/v1/api-keys").await.json()["data"][0]["id"].as_str().unwrap().to_owned();
    let mut asked = tokio::task::JoinSet::new();
    asked.spawn(async move { user.chat_with("hello", json!({"max_tokens": 1900})).await });
    app.eventually("it runs", async |app| app.engine.status().totals.completion_tokens > 3).await;
    app.admin().delete(&format!("/admin/v1/api-keys/{id}")).await;
    assert_eq!(asked.join_next().await.unwrap().unwrap().status, 401);
    is_charged_what_was_sampled(&app).await;
    app.stop().await;
}
