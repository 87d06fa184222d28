//! Limits over HTTP: exact under load, truthful about when to return, visible in headers.

use std::time::Duration;

use futures::future::join_all;
use insta::assert_snapshot;
use millgate::governance::Status;
use millgate::governance::records::LedgerRecord;
use serde_json::json;

use crate::support::{Actor, Reply, TestApp};

const MINUTE: Duration = Duration::from_secs(60);

/// Ten tokens at most: a prompt of two and up to eight more.
async fn ten_tokens(actor: &Actor, seed: u64) -> Reply {
    actor.complete(json!([65, 66]), json!({"max_tokens": 8, "seed": seed})).await
}

/// No interval of a minute holds more than `amount` tokens, by charge time.
fn assert_no_minute_over(rows: &[LedgerRecord], amount: u64) {
    let charges: Vec<(i64, u64)> = rows
        .iter()
        .flat_map(|row| &row.charged)
        .map(|extent| (extent.at_us, extent.prompt_tokens + extent.completion_tokens))
        .collect();
    for (start, _) in &charges {
        let within = charges.iter().filter(|(at, _)| (*start..start + 60_000_000).contains(at));
        let sum: u64 = within.map(|(_, tokens)| tokens).sum();
        assert!(sum <= amount, "{sum} tokens in the minute from {start}");
    }
}

#[tokio::test]
async fn sixty_four_parallel_requests_never_charge_more_than_the_limit_in_any_minute() {
    let app = TestApp::new().tier("tiny", |tier| tier.limit("100 tokens / 1m")).start().await;
    let user = app.key("tiny").await;
    let mut answered = 0;
    for round in 0..8 {
        let replies = join_all((0..64).map(|seed| ten_tokens(&user, round * 64 + seed))).await;
        for reply in &replies {
            assert!(matches!(reply.status, 200 | 429), "{}", reply.body);
        }
        let sum: u64 = replies.iter().filter(|reply| reply.status == 200).map(Reply::total_tokens).sum();
        answered += sum;
        app.advance(Duration::from_secs(17));
    }
    assert!(answered > 100, "capacity comes back: {answered} tokens in two minutes");
    let rows = app.ledger().await;
    let charged: u64 = rows.iter().map(|row| row.usage.total_tokens()).sum();
    assert_eq!(charged, answered, "the ledger holds exactly what the answers said");
    assert!(rows.iter().all(|row| row.status == Status::Completed));
    assert_no_minute_over(&rows, 100);
    app.stop().await;
}

#[tokio::test]
async fn a_refused_request_passes_exactly_after_retry_after() {
    let app = TestApp::new().tier("tiny", |tier| tier.limit("100 tokens / 1m")).start().await;
    let user = app.key("tiny").await;
    let mut seed = 0;
    let refused = loop {
        let reply = ten_tokens(&user, seed).await;
        if reply.status == 429 {
            break reply;
        }
        app.advance(Duration::from_millis(1500));
        seed += 1;
        assert!(seed < 100, "the limit never refused");
    };
    let wait = refused.retry_after().unwrap();
    assert_eq!(refused.header("retry-after"), wait.as_millis().div_ceil(1000).to_string());
    assert!(wait > Duration::ZERO && wait <= MINUTE + Duration::from_secs(1), "{wait:?}");
    app.advance(wait - Duration::from_millis(1));
    assert_eq!(ten_tokens(&user, seed).await.status, 429, "a millisecond early is too early");
    app.advance(Duration::from_millis(1));
    assert_eq!(ten_tokens(&user, seed).await.status, 200);
}

#[tokio::test]
async fn retry_after_is_exact_when_less_comes_back_first_than_the_request_needs() {
    let app =
        TestApp::new().tier("tiny", |tier| tier.limit("100 tokens / 1m").limit("26 requests / 10m")).start().await;
    let user = app.key("tiny").await;
    for _ in 0..25 {
        let four = user.complete(json!([65]), json!({"max_tokens": 3, "ignore_eos": true})).await;
        assert_eq!((four.status, four.total_tokens()), (200, 4));
        app.advance(Duration::from_millis(1500));
    }
    let refused = ten_tokens(&user, 0).await;
    assert_eq!((refused.status, &refused.json()["error"]["detail"]["requested"]), (429, &json!(10)));
    let wait = refused.retry_after().unwrap();
    app.advance(wait - Duration::from_millis(1));
    assert_eq!(ten_tokens(&user, 0).await.status, 429, "a millisecond early is too early");
    app.advance(Duration::from_millis(1));
    assert_eq!(ten_tokens(&user, 0).await.status, 200);
}

#[tokio::test]
async fn retry_after_is_exact_when_requests_and_tokens_run_out_together() {
    let app =
        TestApp::new().tier("tiny", |tier| tier.limit("100 tokens / 1m").limit("10 requests / 15s")).start().await;
    let user = app.key("tiny").await;
    for seed in 0..10 {
        assert_eq!(
            user.complete(json!([65]), json!({"max_tokens": 9, "ignore_eos": true})).await.status,
            200,
            "{seed}"
        );
        app.advance(Duration::from_millis(100));
    }
    let refused = ten_tokens(&user, 0).await;
    assert_eq!(refused.status, 429);
    app.advance(refused.retry_after().unwrap());
    assert_eq!(ten_tokens(&user, 0).await.status, 200, "the longest wait of all limits that refused");
}

#[tokio::test]
async fn a_refusal_by_a_request_limit_says_everything() {
    let app = TestApp::new().tier("slow", |tier| tier.limit("2 requests / 2m")).start().await;
    let user = app.key("slow").await;
    let admitted = ten_tokens(&user, 0).await;
    assert_snapshot!(limit_headers(&admitted), @r#"
    ratelimit: "requests-120";r=1;t=122
    ratelimit-policy: "requests-120";q=2;w=120
    x-ratelimit-limit: 2
    x-ratelimit-limit-requests: 2
    x-ratelimit-remaining: 1
    x-ratelimit-remaining-requests: 1
    x-ratelimit-reset: 1700000122
    x-ratelimit-reset-requests: 2m2s
    "#);
    ten_tokens(&user, 1).await;
    let refused = ten_tokens(&user, 2).await;
    assert_snapshot!(refused.status_and_body(), @r#"429 {"error":{"message":"Rate limit exceeded. You have exceeded the maximum number of requests per 2 minutes for your tier.","type":"rate_limit_error","code":429,"param":null,"detail":{"limit":"slow: 2 requests / 2m","reason":"requests_exceeded","requested":1,"retry_after_ms":122000,"scope":"user","used":2}}}"#);
    assert_snapshot!(limit_headers(&refused), @r#"
    ratelimit: "requests-120";r=0;t=122
    ratelimit-policy: "requests-120";q=2;w=120
    retry-after: 122
    retry-after-ms: 122000
    x-ratelimit-limit: 2
    x-ratelimit-limit-requests: 2
    x-ratelimit-remaining: 0
    x-ratelimit-remaining-requests: 0
    x-ratelimit-reset: 1700000122
    x-ratelimit-reset-requests: 2m2s
    "#);
    assert_eq!(user.get("/v1/models").await.status, 200, "looking around works when limits are spent");
    let me = user.get("/v1/me").await.json();
    assert_eq!((me["tier"].as_str(), me["limits"][0]["remaining"].as_u64()), (Some("slow"), Some(0)));
}

#[tokio::test]
async fn a_refusal_by_a_token_limit_is_a_quota_error() {
    let app = TestApp::new().tier("tiny", |tier| tier.limit("12 tokens / 1h")).start().await;
    let user = app.key("tiny").await;
    assert_eq!(user.complete(json!([65, 66]), json!({"max_tokens": 8, "ignore_eos": true})).await.status, 200);
    let refused = ten_tokens(&user, 1).await;
    assert_snapshot!(refused.status_and_body(), @r#"429 {"error":{"message":"Token quota exceeded. You have consumed the maximum number of tokens allowed per hour for your tier.","type":"quota_error","code":429,"param":null,"detail":{"limit":"tiny: 12 tokens / 1h","reason":"tokens_exceeded","requested":10,"retry_after_ms":3640000,"scope":"user","used":10}}}"#);
    assert_eq!(refused.header("x-should-retry"), "false", "nobody's client should sleep for an hour");
}

#[tokio::test]
async fn what_can_never_fit_is_refused_without_a_time_to_return() {
    let app = TestApp::new().tier("tiny", |tier| tier.limit("100 tokens / 1m")).start().await;
    let refused = app.key("tiny").await.complete(json!([65]), json!({"max_tokens": 100})).await;
    assert_eq!(refused.status, 429);
    assert_eq!((refused.header("retry-after"), refused.header("x-should-retry")), ("", "false"));
    assert!(refused.message().ends_with("it can never fit."), "{}", refused.message());
    assert_eq!(refused.json()["error"]["detail"]["requested"], 101);
}

#[tokio::test]
async fn concurrency_counts_sequences_and_is_given_back() {
    let app = TestApp::new()
        .tier("narrow", |tier| tier.limit("2 concurrent"))
        .fake(|fake| {
            fake.end_logit = f32::NEG_INFINITY;
            fake.step_delay = Duration::from_millis(5);
        })
        .start()
        .await;
    let user = app.key("narrow").await;
    let stream = user.chat_stream("hello", json!({"n": 2, "max_tokens": 500})).await;
    let refused = ten_tokens(&user, 0).await;
    assert_eq!((refused.status, refused.header("retry-after")), (429, "1"));
    assert_eq!(refused.json()["error"]["detail"]["estimate"], true);
    assert!(refused.message().contains("concurrent requests"));
    drop(stream);
    app.eventually("the two places are free again", async |_| ten_tokens(&user, 1).await.status == 200).await;
}

#[tokio::test]
async fn an_open_ended_answer_is_ended_cleanly_by_its_limit() {
    let app = TestApp::new()
        .tier("tiny", |tier| tier.limit("300 tokens / 1m"))
        .fake(|fake| fake.end_logit = f32::NEG_INFINITY)
        .start()
        .await;
    // Twenty times, because the notice of an empty allowance and the last grant may cross each other on the way.
    for _ in 0..20 {
        assert_ends_at_the_limit(&app.key("tiny").await).await;
    }
    assert!(app.ledger().await.iter().all(|row| row.status == Status::LimitReached));
}

async fn assert_ends_at_the_limit(user: &Actor) {
    let stream = user.chat_stream("hello", json!({"stream_options": {"include_usage": true}})).await;
    let reply = Reply::read(stream).await;
    let events = reply.events();
    assert_eq!(events.last(), Some(&"[DONE]"));
    let json =
        |event: &str| -> serde_json::Value { serde_json::from_str(event).expect("every event but the last is JSON") };
    let usage = json(events[events.len() - 2]);
    assert_eq!(usage["usage"]["total_tokens"], 300, "every token of the limit was used, and none more");
    let end = json(events[events.len() - 3]);
    assert_eq!(end["choices"][0]["finish_reason"], "length");
    assert_eq!(end["millgate"]["detail"]["limit"], "tiny: 300 tokens / 1m");
}

#[tokio::test]
async fn an_answer_with_max_tokens_is_never_cut_by_a_limit() {
    let app = TestApp::new()
        .tier("tiny", |tier| tier.limit("300 tokens / 1m"))
        .fake(|fake| fake.end_logit = f32::NEG_INFINITY)
        .start()
        .await;
    let user = app.key("tiny").await;
    let (long, refused) = tokio::join!(user.complete(json!([65]), json!({"max_tokens": 290})), async {
        tokio::time::sleep(Duration::from_millis(1)).await;
        user.complete(json!([65]), json!({"max_tokens": 290})).await
    });
    let mut statuses = [long.status, refused.status];
    statuses.sort_unstable();
    assert_eq!(statuses, [200, 429]);
    let whole = if long.status == 200 { long } else { refused };
    assert_eq!(whole.json()["usage"]["completion_tokens"], 290);
}

#[tokio::test]
async fn an_aborted_request_is_charged_what_was_generated_and_the_rest_is_given_back() {
    let app = TestApp::new()
        .tier("daily", |tier| tier.tokens_per_day(1000))
        .fake(|fake| {
            fake.end_logit = f32::NEG_INFINITY;
            fake.step_delay = Duration::from_millis(2);
        })
        .start()
        .await;
    let user = app.key("daily").await;
    let mut stream = user.chat_stream("hello", json!({"max_tokens": 900})).await;
    stream.chunk().await.unwrap();
    drop(stream);
    app.eventually("the request is settled", async |app| app.ledger().await.len() == 1).await;
    let row = app.ledger().await.remove(0);
    assert_eq!(row.status, Status::Aborted);
    let remaining = user.get("/v1/me").await.json()["limits"][0]["remaining"].as_u64().unwrap();
    assert_eq!(remaining, 1000 - row.usage.total_tokens());
    assert!(row.usage.completion_tokens < 900);
}

/// The headers about limits, one a line.
fn limit_headers(reply: &Reply) -> String {
    let names = reply.headers.keys().map(|name| name.as_str());
    let mut names: Vec<&str> = names.filter(|name| name.contains("ratelimit") || name.contains("retry")).collect();
    names.sort_unstable();
    names.iter().map(|name| format!("{name}: {}\n", reply.header(name))).collect()
}

#[tokio::test]
async fn the_header_and_the_account_name_the_same_second_at_which_a_calendar_period_ends() {
    let app = TestApp::new().system_clock().tier("monthly", |tier| tier.limit("100 requests / month")).start().await;
    let user = app.key("monthly").await;
    let told: i64 = ten_tokens(&user, 1).await.header("x-ratelimit-reset").parse().unwrap();
    assert_eq!(user.get("/v1/me").await.json()["limits"][0]["reset"], json!(told));
    assert_eq!(told % 86_400, 0, "a month of UTC ends at midnight");
}
