//! The server's life seen from outside: probes, draining, clients that leave, a full queue, browsers.

use std::sync::Arc;
use std::time::Duration;

use millgate::engine::fake::Gate;
use millgate::governance::Status;
use serde_json::json;

use crate::support::{Reply, TestApp};

fn endless(app: crate::support::Builder) -> crate::support::Builder {
    app.fake(|fake| {
        fake.end_logit = f32::NEG_INFINITY;
        fake.step_delay = Duration::from_millis(5);
    })
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_stops_generation_and_is_charged_what_was_sampled() {
    let app = endless(TestApp::new()).start().await;
    let user = app.user("ann", &[]).await;
    let mut stream = user.chat_stream("hello", json!({"max_tokens": 1500})).await;
    for _ in 0..3 {
        stream.chunk().await.unwrap();
    }
    drop(stream);
    app.eventually("the engine has stopped", async |app| app.engine.status().open_requests == 0).await;
    app.eventually("the request is settled", async |app| app.ledger().await.len() == 1).await;
    let totals = app.engine.status().totals;
    assert_eq!((totals.running, totals.blocks.owned), (0, 0), "nothing runs and every block is free");
    let row = app.ledger().await.remove(0);
    assert_eq!(row.status, Status::Aborted);
    assert_eq!(row.usage.completion_tokens, totals.completion_tokens, "charged is what was sampled");
    assert_eq!(row.charged.iter().map(|extent| extent.completion_tokens).sum::<u64>(), totals.completion_tokens);
    assert!(row.usage.completion_tokens < 1000, "it did not run to the end: {}", row.usage.completion_tokens);
    app.stop().await;
}

#[tokio::test]
async fn a_client_that_leaves_a_whole_answer_stops_it_too() {
    let app = endless(TestApp::new()).start().await;
    let user = app.user("ann", &[]).await;
    let asked = user.chat_with("hello", json!({"max_tokens": 1500}));
    assert!(tokio::time::timeout(Duration::from_millis(200), asked).await.is_err());
    app.eventually("the request is settled", async |app| app.ledger().await.len() == 1).await;
    assert_eq!(app.ledger().await[0].status, Status::Aborted);
}

#[tokio::test]
async fn draining_refuses_new_work_and_lets_streams_finish() {
    let app = endless(TestApp::new()).start().await;
    let user = app.user("ann", &[]).await;
    assert_eq!(app.anonymous().get("/readyz").await.status, 200);
    let mut stream = user.chat_stream("hello", json!({"max_tokens": 60})).await;
    stream.chunk().await.unwrap();
    app.lifecycle.start_draining();
    let probe = app.anonymous().get("/readyz").await;
    assert_eq!((probe.status, app.anonymous().get("/livez").await.status), (503, 200));
    let refused = user.chat("hello").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "5"));
    assert_eq!(refused.json()["error"]["type"], "unavailable_error");
    let rest = Reply::read(stream).await;
    assert!(rest.body.ends_with("data: [DONE]\n\n"), "{}", rest.body);
    app.stop().await;
}

#[tokio::test]
async fn a_full_queue_is_503_with_retry_after_and_costs_nothing() {
    let app = endless(TestApp::new())
        .engine(|engine| {
            engine.max_running = Some(1);
            engine.max_queue_requests = 1;
        })
        .start()
        .await;
    let user = app.user("ann", &["premium-users"]).await;
    let mut running = user.chat_stream("one", json!({"max_tokens": 1000})).await;
    running.chunk().await.unwrap();
    let waiting = user.chat_with("two", json!({"max_tokens": 1000}));
    tokio::pin!(waiting);
    assert!(tokio::time::timeout(Duration::from_millis(200), waiting.as_mut()).await.is_err());
    let refused = user.chat_with("three", json!({"max_tokens": 10})).await;
    assert_eq!((refused.status, refused.json()["error"]["type"].as_str()), (503, Some("overloaded_error")));
    let figures = app.anonymous().get("/metrics").await.body;
    let line = r#"vllm:admission_rejections_total{engine="0",model_name="fake",reason="max_num_queued_reqs"} 1"#;
    assert!(figures.lines().any(|found| found == line), "{figures}");
    assert!(refused.retry_after().is_some());
    let row = app.ledger().await.remove(0);
    assert_eq!((row.status, row.usage.total_tokens()), (Status::Failed, 0));
}

#[tokio::test]
async fn an_answer_that_takes_too_long_is_an_error_that_need_not_be_tried_again_and_what_was_made_is_charged() {
    let app = endless(TestApp::new()).api(|api| api.generation_timeout = Duration::from_millis(100)).start().await;
    let user = app.user("ann", &[]).await;
    let late = user.chat_with("hello", json!({"max_tokens": 1500})).await;
    assert_eq!((late.status, late.json()["error"]["type"].as_str()), (503, Some("unavailable_error")));
    assert_eq!((late.header("retry-after"), late.header("x-should-retry")), ("5", "false"));
    let stream = Reply::read(user.chat_stream("hello", json!({"max_tokens": 1500})).await).await;
    assert!(stream.body.contains("\"content\"") && stream.body.contains("took longer than"), "{}", stream.body);
    let charged: u64 = app.ledger().await.iter().map(|row| row.usage.completion_tokens).sum();
    assert_eq!(
        charged,
        app.engine.status().totals.completion_tokens,
        "asking for more than there is time for is not free"
    );
    assert!(app.ledger().await.iter().all(|row| row.status == Status::Aborted));
}

#[tokio::test]
async fn metrics_are_readable_without_a_credential_and_name_no_user() {
    let app = TestApp::new().start().await;
    let user = app.user("a-very-special-name", &[]).await;
    user.chat_with("a very special prompt", json!({"max_tokens": 4, "ignore_eos": true})).await;
    let page = app.anonymous().get("/metrics").await.body;
    assert!(page.contains("vllm:generation_tokens_total{engine=\"0\",model_name=\"fake\"} 4"), "{page}");
    for name in ["vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc"] {
        assert!(page.lines().any(|line| line == format!("{name} 0")), "{name} in {page}");
    }
    assert!(page.contains("millgate_http_responses_total{route=\"/v1/chat/completions\",status=\"200\"} 1"), "{page}");
    assert!(!page.contains("very-special") && !page.contains("special prompt"));
}

#[tokio::test]
async fn figures_are_read_while_the_engine_is_in_the_middle_of_a_step() {
    let gate = Arc::new(Gate::default());
    let app = endless(TestApp::new()).fake(|fake| fake.gate = Some(gate.clone())).start().await;
    let user = app.user("ann", &[]).await;
    let scrapes = async {
        // The second step begins, and stands still.
        gate.allow(1);
        app.eventually("the first step is over", async |app| app.engine.status().totals.completion_tokens == 1).await;
        for _ in 0..20 {
            let page = app.anonymous().get("/metrics").await.body;
            assert!(page.contains("\nvllm:num_requests_running 1\n"), "{page}");
        }
        gate.allow(1000);
    };
    let (answer, ()) = tokio::join!(user.chat_with("hello", json!({"max_tokens": 5})), scrapes);
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn browsers_of_configured_origins_get_a_preflight_without_a_credential() {
    let app = TestApp::new().api(|api| api.cors_origins = vec!["https://chat.example.com".into()]).start().await;
    let preflight = |origin: &'static str| {
        app.anonymous()
            .request("OPTIONS", "/v1/chat/completions")
            .header("origin", origin)
            .header("access-control-request-method", "POST")
            .header("access-control-request-headers", "authorization,content-type")
            .send()
    };
    let allowed = Reply::read(preflight("https://chat.example.com").await.unwrap()).await;
    assert_eq!(allowed.status, 204);
    assert_eq!(allowed.header("access-control-allow-origin"), "https://chat.example.com");
    assert_eq!(allowed.header("access-control-allow-headers"), "authorization,content-type");
    assert!(allowed.header("access-control-allow-methods").contains("POST"));
    let other = Reply::read(preflight("https://evil.example.com").await.unwrap()).await;
    assert_eq!((other.status, other.header("access-control-allow-origin")), (405, ""));
    let request = app.anonymous().request("GET", "/v1/models").header("origin", "https://chat.example.com");
    let refused = Reply::read(request.send().await.unwrap()).await;
    assert_eq!((refused.status, refused.header("access-control-allow-origin")), (401, "https://chat.example.com"));
}

#[tokio::test]
async fn while_an_operations_listener_exists_the_main_one_shows_no_metrics() {
    let app = TestApp::new().api(|api| api.has_ops_listener = true).start().await;
    assert_eq!(app.anonymous().get("/metrics").await.status, 404);
    assert_eq!(app.anonymous().get("/livez").await.status, 200);
}
