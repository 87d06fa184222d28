//! L1 to L5, X5: limits are reached, named, told apart by user, shown in headers, and end.

use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::support::{Actor, Reply, TestApp};

/// One prompt token and exactly `completion` more.
async fn exactly(actor: &Actor, completion: u64) -> Reply {
    actor.complete(json!([65]), json!({"max_tokens": completion, "ignore_eos": true})).await
}

#[tokio::test]
async fn l1_ten_tokens_a_minute_are_soon_spent_and_the_refusal_says_so() {
    let app = TestApp::new().tier("tiny", |tier| tier.limit("10 tokens / 1m")).start().await;
    let user = app.key("tiny").await;
    let mut replies = Vec::new();
    for _ in 0..15 {
        replies.push(exactly(&user, 1).await);
    }
    let (answered, refused): (Vec<_>, Vec<_>) = replies.iter().partition(|reply| reply.status == 200);
    assert_eq!((answered.len(), refused.len()), (5, 10), "two tokens each, ten tokens in all");
    for reply in refused {
        assert_eq!(reply.status, 429);
        assert!(reply.message().to_lowercase().contains("quota"), "{}", reply.message());
    }
}

#[tokio::test]
async fn l2_models_are_listed_when_everything_is_spent() {
    let app = TestApp::new().tier("tiny", |tier| tier.limit("2 tokens / 1m").limit("1 requests / 1m")).start().await;
    let user = app.key("tiny").await;
    assert_eq!((exactly(&user, 1).await.status, exactly(&user, 1).await.status), (200, 429));
    for path in ["/v1/models", "/v1/models/fake", "/llm/fake/v1/models", "/v1/me"] {
        assert_eq!(user.get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn l3_one_users_limit_is_not_anothers() {
    let app = TestApp::new()
        .tier("three", |tier| tier.limit("3 tokens / 1m"))
        .tier("hundred", |tier| tier.limit("100 tokens / 1m"))
        .start()
        .await;
    let (a, b, c) = (app.key("three").await, app.key("hundred").await, app.key("three").await);
    assert_eq!((exactly(&a, 2).await.status, exactly(&a, 2).await.status), (200, 429));
    for _ in 0..10 {
        assert_eq!(exactly(&b, 2).await.status, 200, "another tier");
    }
    assert_eq!(exactly(&c, 2).await.status, 200, "another user of the same tier");
}

#[tokio::test]
async fn l4_of_sixteen_quick_requests_against_a_hundred_tokens_some_are_refused() {
    let app = TestApp::new().tier("small", |tier| tier.limit("100 tokens / 1m")).start().await;
    let user = app.key("small").await;
    let replies = join_all((0..16).map(|_| exactly(&user, 9))).await;
    let answered = replies.iter().filter(|reply| reply.status == 200).count();
    let refused = replies.iter().filter(|reply| reply.status == 429).count();
    assert_eq!((answered, refused), (10, 6), "ten tokens each: exactly ten fit");
}

#[tokio::test]
async fn l5_when_the_window_has_passed_requests_pass_again() {
    let app = TestApp::new().tier("small", |tier| tier.limit("1 requests / 1m")).start().await;
    let user = app.key("small").await;
    for _ in 0..3 {
        assert_eq!((exactly(&user, 1).await.status, exactly(&user, 1).await.status), (200, 429));
        app.advance(Duration::from_secs(61));
    }
}

const ON_EVERY_ANSWER: [&str; 5] =
    ["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit-policy", "ratelimit"];

#[tokio::test]
async fn x5_limits_show_in_headers_and_retry_after_really_works() {
    let kinds: [(&str, &str, &str); 6] = [
        ("3 requests / 1m", "rate_limit_error", "requests"),
        ("30 tokens / 1m", "quota_error", "tokens"),
        ("3 prompt_tokens / 1m", "quota_error", "tokens"),
        ("27 completion_tokens / 90s", "quota_error", "tokens"),
        ("30 tokens / day Europe/Paris", "quota_error", "tokens"),
        ("3 requests / week", "rate_limit_error", "requests"),
    ];
    for (limit, error_type, family) in kinds {
        let app = TestApp::new().tier("small", |tier| tier.limit(limit)).start().await;
        let user = app.key("small").await;
        for _ in 0..3 {
            let reply = exactly(&user, 9).await;
            assert_eq!(reply.status, 200, "{limit}");
            assert_headers(&reply, limit, family);
            app.advance(Duration::from_millis(700));
        }
        let refused = exactly(&user, 9).await;
        assert_eq!(refused.status, 429, "{limit}");
        assert_headers(&refused, limit, family);
        assert_eq!(refused.header("x-ratelimit-remaining"), "0", "{limit}");
        let error = &refused.json()["error"];
        assert_eq!((&error["type"], &error["code"], &error["param"]), (&json!(error_type), &json!(429), &Value::Null));
        assert_eq!(error["detail"]["limit"], format!("small: {limit}"), "the refusal names the limit");
        let wait = refused.retry_after().expect("a refusal says when to return");
        assert_eq!(refused.header("retry-after"), wait.as_millis().div_ceil(1000).to_string(), "{limit}");
        app.advance(wait - Duration::from_millis(1));
        assert_eq!(exactly(&user, 9).await.status, 429, "{limit}: a millisecond early is too early");
        app.advance(Duration::from_millis(1));
        assert_eq!(exactly(&user, 9).await.status, 200, "{limit}: waiting exactly so long works");
    }
}

fn assert_headers(reply: &Reply, limit: &str, family: &str) {
    let of_family = ["limit", "remaining", "reset"].map(|what| format!("x-ratelimit-{what}-{family}"));
    for name in ON_EVERY_ANSWER.into_iter().chain(of_family.iter().map(String::as_str)) {
        assert!(!reply.header(name).is_empty(), "{limit}: {} without `{name}`", reply.status);
    }
    let is_refusal = reply.status == 429;
    for name in ["retry-after", "retry-after-ms"] {
        assert_eq!(!reply.header(name).is_empty(), is_refusal, "{limit}: `{name}` on {}", reply.status);
    }
}

#[tokio::test]
async fn x5_what_can_never_fit_is_refused_at_once_and_without_a_time_to_return() {
    for limit in ["9 tokens / 1m", "8 completion_tokens / 1h", "9 tokens / day"] {
        let app = TestApp::new().tier("small", |tier| tier.limit(limit)).start().await;
        let refused = exactly(&app.key("small").await, 9).await;
        assert_eq!((refused.status, refused.header("x-should-retry")), (429, "false"), "{limit}");
        assert_eq!((refused.header("retry-after"), refused.header("retry-after-ms")), ("", ""), "{limit}");
        assert_eq!(refused.json()["error"]["detail"]["limit"], format!("small: {limit}"));
    }
    let app = TestApp::new().tier("narrow", |tier| tier.limit("2 concurrent")).start().await;
    let wide = app.key("narrow").await.complete(json!([65]), json!({"max_tokens": 1, "n": 3})).await;
    assert_eq!((wide.status, wide.header("x-should-retry"), wide.header("retry-after")), (429, "false", ""));
}

#[tokio::test]
async fn x5_of_several_limits_that_refuse_the_one_with_the_longest_wait_is_named() {
    let app = TestApp::new()
        .tier("small", |tier| tier.limit("1 requests / 1m").limit("1 requests / 2m").limit("10 tokens / 5m"))
        .start()
        .await;
    let user = app.key("small").await;
    assert_eq!(exactly(&user, 9).await.status, 200);
    let refused = exactly(&user, 9).await;
    assert_eq!(refused.json()["error"]["detail"]["limit"], "small: 10 tokens / 5m");
    assert_eq!(refused.header("x-ratelimit-limit"), "10", "the headers show the limit that refused");
    app.advance(refused.retry_after().unwrap());
    assert_eq!(exactly(&user, 9).await.status, 200);
}

/// Answers of several choices may need more than one context window: the early refusal must not speak for them.
#[tokio::test]
async fn x5_the_wait_is_true_for_a_request_of_many_choices_too() {
    let app = TestApp::new()
        .tier("small", |tier| tier.limit("2 requests / 1m").limit("1000 tokens / 10m"))
        .fake(|fake| fake.context_window = 128)
        .start()
        .await;
    let user = app.key("small").await;
    let four = || user.complete(json!([65]), json!({"max_tokens": 100, "n": 4, "ignore_eos": true}));
    assert_eq!((four().await.status, four().await.status), (200, 200));
    let refused = four().await;
    let wait = refused.retry_after().unwrap();
    assert_eq!(refused.json()["error"]["detail"]["limit"], "small: 1000 tokens / 10m", "{}", refused.body);
    app.advance(wait);
    assert_eq!(four().await.status, 200, "waiting exactly {wait:?} works");
}
