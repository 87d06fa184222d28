//! X18: a reservation cannot be gamed, and every scope of a limit counts what it says, no more and no less.

use std::time::Duration;

use millgate::governance::NewKey;
use serde_json::{Value, json};

use crate::support::{Actor, Reply, TestApp};

async fn used(user: &Actor) -> Vec<u64> {
    let me = user.get("/v1/me").await.json();
    let limits = me["limits"].as_array().expect("limits");
    limits.iter().map(|limit| limit["used"].as_u64().expect("a number")).collect()
}

#[tokio::test]
async fn x18_contradictory_maxima_are_refused_and_agreeing_ones_are_one() {
    let app = TestApp::new().tier("small", |tier| tier.limit("60 tokens / 1m")).start().await;
    let user = app.key("small").await;
    let conflict = user.chat_with("hello", json!({"max_tokens": 20, "max_completion_tokens": 738})).await;
    assert_eq!((conflict.status, conflict.param()), (400, json!("max_tokens")));
    let huge = user.complete(json!([65]), json!({"max_tokens": 738})).await;
    assert_eq!(huge.status, 429);
    assert_eq!(used(&user).await, [0], "neither cost anything");
}

#[tokio::test]
async fn x18_choices_and_prompts_are_reserved_each() {
    let app = TestApp::new().tier("small", |tier| tier.limit("60 tokens / 1m").limit("9 concurrent")).start().await;
    let user = app.key("small").await;
    let refused = user.complete(json!([65]), json!({"max_tokens": 20, "n": 3})).await;
    assert_eq!((refused.status, &refused.json()["error"]["detail"]["requested"]), (429, &json!(61)));
    let refused = user.complete(json!([[65], [65, 66]]), json!({"max_tokens": 20, "n": 2})).await;
    assert_eq!((refused.status, &refused.json()["error"]["detail"]["requested"]), (429, &json!(83)));
    let fitting = user.complete(json!([[65], [65, 66]]), json!({"max_tokens": 14, "n": 2, "ignore_eos": true})).await;
    assert_eq!((fitting.status, fitting.total_tokens()), (200, 59), "three prompt tokens and four times fourteen");
    assert_eq!(used(&user).await, [59, 0]);
    let wide = user.complete(json!([[65], [66]]), json!({"max_tokens": 1, "n": 5})).await;
    assert_eq!(wide.json()["error"]["detail"]["limit"], "small: 9 concurrent", "ten sequences");
}

#[tokio::test]
async fn x18_absent_and_huge_maxima_end_at_the_limit_and_not_a_token_later() {
    let app = TestApp::new()
        .tier("small", |tier| tier.limit("60 tokens / 1m"))
        .fake(|fake| fake.end_logit = f32::NEG_INFINITY)
        .start()
        .await;
    for n in [1, 3] {
        let user = app.key("small").await;
        let open = user.chat_with("hello", json!({"n": n})).await;
        assert_eq!((open.status, open.total_tokens()), (200, 60), "{}", open.body);
        assert_eq!(open.json()["choices"][0]["finish_reason"], "length");
        assert_eq!(used(&user).await, [60]);
    }
    let user = app.key("small").await;
    let huge = user.complete(json!([65]), json!({"max_tokens": u32::MAX})).await;
    assert_eq!((huge.status, huge.header("x-should-retry")), (429, "false"), "as much as the context: never fits");
    for wrong in [json!(0), json!(-1), json!(1u64 << 40), json!(1.5), json!("9")] {
        let reply = user.complete(json!([65]), json!({"max_tokens": wrong})).await;
        assert_eq!((reply.status, reply.param()), (400, json!("max_tokens")), "{wrong}");
    }
}

#[tokio::test]
async fn x18_stop_strings_hide_text_but_no_token() {
    let app = TestApp::new().tier("small", |tier| tier.limit("1000 tokens / 1m")).start().await;
    let user = app.key("small").await;
    let whole = user.complete(json!([65]), json!({"max_tokens": 40, "seed": 5, "ignore_eos": true})).await;
    let text = whole.text();
    let stop: String = text.chars().filter(char::is_ascii_lowercase).take(1).collect();
    let before = used(&user).await[0];
    let cut = user.complete(json!([65]), json!({"max_tokens": 40, "seed": 5, "ignore_eos": true, "stop": stop})).await;
    assert_eq!(cut.json()["choices"][0]["finish_reason"], "stop");
    assert!(!cut.text().contains(&stop));
    let tokens = cut.json()["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(tokens as usize > cut.text().len(), "the token that completed the stop string was made, too");
    assert_eq!(used(&user).await[0] - before, cut.total_tokens(), "charged is what `usage` says");
}

#[tokio::test]
async fn x18_limits_on_keys_pools_and_models_count_their_own_and_shadows_refuse_nobody() {
    let limits = |tier: crate::support::TierSpec| {
        ["30 tokens / 1m per key", "50 tokens / 1m per tier", "20 tokens / 1m on other", "1 tokens / 1m shadow"]
            .into_iter()
            .fold(tier, crate::support::TierSpec::limit)
    };
    let app = TestApp::new().tier("team", limits).start().await;
    let ten = async |actor: &Actor| actor.complete(json!([65]), json!({"max_tokens": 9, "ignore_eos": true})).await;
    let (ann, ben) = (app.key("team").await, app.key("team").await);
    let second = app.key_of("team-user-0", NewKey::default()).await;
    for _ in 0..3 {
        assert_eq!(ten(&ann).await.status, 200, "the shadow refuses nobody, the other model's limit is not hers");
    }
    let named = |reply: &Reply| reply.json()["error"]["detail"]["limit"].clone();
    let refused = ten(&ann).await;
    assert_eq!(
        (named(&refused), &refused.json()["error"]["detail"]["scope"]),
        ("team: 30 tokens / 1m per key".into(), &json!("key"))
    );
    assert_eq!(ten(&second).await.status, 200, "her other key has its own");
    assert_eq!(ten(&ben).await.status, 200);
    let refused = ten(&ben).await;
    assert_eq!(
        (named(&refused), &refused.json()["error"]["detail"]["scope"]),
        ("team: 50 tokens / 1m per tier".into(), &json!("tier"))
    );
    let me = ann.get("/v1/me").await.json();
    let shadow: &Value = me["limits"].as_array().unwrap().iter().find(|limit| limit["mode"] == "shadow").unwrap();
    assert_eq!(shadow["used"], 40, "it counts all the same, over both keys");
}

/// The answer does not end: it pauses until the window frees, and goes on.
#[tokio::test]
async fn x18_an_open_answer_pauses_when_more_comes_soon() {
    let app = TestApp::new()
        .tier("quick", |tier| tier.limit("100 tokens / 1s"))
        .fake(|fake| {
            fake.end_logit = f32::NEG_INFINITY;
            fake.context_window = 160;
        })
        .system_clock()
        .start()
        .await;
    let started = std::time::Instant::now();
    let reply = app.key("quick").await.chat("hello").await;
    assert_eq!((reply.status, reply.total_tokens()), (200, 160), "{}", reply.body);
    assert!(reply.json().get("millgate").is_none(), "the context ended it, no limit");
    assert!(started.elapsed() >= Duration::from_secs(1), "no second holds more than a hundred tokens");
}
