//! X1, X2, X13, X20: one huge request, many at once, a burst at the window's edge, generous maxima.

use std::time::Duration;

use futures::future::join_all;
use serde_json::json;

use crate::support::{Reply, TestApp};

#[tokio::test]
async fn x1_one_huge_request_cannot_overspend_and_what_it_did_not_use_comes_back() {
    let app = TestApp::new().tier("daily", |tier| tier.tokens_per_day(100)).start().await;
    let user = app.key("daily").await;
    let huge = user.complete(json!([65]), json!({"max_tokens": 2000})).await;
    assert_eq!((huge.status, &huge.json()["error"]["detail"]["reason"]), (429, &json!("tokens_exceeded")));
    let fitting = user.complete(json!([65]), json!({"max_tokens": 99, "seed": 3})).await;
    assert_eq!(fitting.status, 200);
    let me = user.get("/v1/me").await.json();
    let (used, held) = (&me["limits"][0]["used"], &me["limits"][0]["held"]);
    assert_eq!(
        (used, held),
        (&json!(fitting.total_tokens()), &json!(0)),
        "charged is what was used, and nothing is held"
    );
}

#[tokio::test]
async fn x2_sixty_four_at_once_near_the_limit_stay_within_it() {
    let app = TestApp::new().tier("daily", |tier| tier.tokens_per_day(200)).start().await;
    let user = app.key("daily").await;
    let ask = |seed: u64| user.complete(json!([65, 66, 67]), json!({"max_tokens": 20 + seed % 30, "seed": seed}));
    let replies = join_all((0..64).map(ask)).await;
    let answered: u64 = replies.iter().filter(|reply| reply.status == 200).map(Reply::total_tokens).sum();
    assert!(replies.iter().all(|reply| matches!(reply.status, 200 | 429)));
    assert!(answered > 0 && answered <= 200, "{answered} of 200");
    let charged: u64 = app.ledger().await.iter().map(|row| row.usage.total_tokens()).sum();
    assert_eq!(charged, answered);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn x2_fifty_requests_of_five_tokens_share_a_hundred_exactly() {
    let app = TestApp::new().tier("daily", |tier| tier.tokens_per_day(100)).start().await;
    let user = app.key("daily").await;
    let five = || user.complete(json!([65]), json!({"max_tokens": 4, "ignore_eos": true}));
    let replies = join_all((0..50).map(|_| five())).await;
    let answered = replies.iter().filter(|reply| reply.status == 200).count();
    assert_eq!((answered, replies.iter().filter(|reply| reply.status == 429).count()), (20, 30));
    app.stop().await;
}

#[tokio::test]
async fn x13_a_burst_over_the_edge_of_a_minute_gets_no_second_helping() {
    let app = TestApp::new().tier("small", |tier| tier.limit("100 tokens / 1m")).start().await;
    let user = app.key("small").await;
    let ten = || user.complete(json!([65]), json!({"max_tokens": 9, "ignore_eos": true}));
    // 59.5 seconds after a full minute of the clock, then every quarter of a second over its edge.
    app.advance(Duration::from_millis(40_000 + 59_500));
    let mut answered = 0;
    for _ in 0..80 {
        answered += u64::from(ten().await.status == 200) * 10;
        app.advance(Duration::from_millis(250));
    }
    assert_eq!(answered, 100, "in twenty seconds, whatever the clock says");
}

#[tokio::test]
async fn x20_a_generous_maximum_starves_nobody_once_the_answer_is_there() {
    let app = TestApp::new().tier("small", |tier| tier.limit("1000 tokens / 1m")).start().await;
    let user = app.key("small").await;
    let mut used = 0;
    for seed in 0..5 {
        let reply = user.complete(json!([65]), json!({"max_tokens": 500, "seed": seed})).await;
        assert_eq!(reply.status, 200, "{}", reply.body);
        used += reply.total_tokens();
    }
    assert!(used < 1000, "short answers, each with a maximum of 500: {used}");
    let me = user.get("/v1/me").await.json();
    assert_eq!((&me["limits"][0]["used"], &me["limits"][0]["held"]), (&json!(used), &json!(0)));
}
