//! Usage as clients see it and as it is reported: U1, X4, X9, X10.

use millgate::governance::Status;
use serde_json::{Value, json};

use crate::support::{Actor, MODEL, Reply, TestApp};

/// The tokens of an answer, streamed or not, from its `usage`.
fn usage_of(reply: &Reply) -> (u64, u64, u64) {
    assert_eq!(reply.status, 200, "{}", reply.body);
    let usage = if reply.body.starts_with("data:") {
        let events = reply.events();
        let chunks = events.iter().filter_map(|event| serde_json::from_str::<Value>(event).ok());
        chunks.map(|chunk| chunk["usage"].clone()).find(Value::is_object).expect("a chunk with usage")
    } else {
        reply.json()["usage"].clone()
    };
    let tokens = |value: &Value| value.as_u64().expect("a count");
    let cached = tokens(&usage["prompt_tokens_details"]["cached_tokens"]);
    (tokens(&usage["prompt_tokens"]), cached, tokens(&usage["completion_tokens"]))
}

const WITH_USAGE: &str = "include_usage";

async fn every_way(actor: &Actor, seed: u64) -> Vec<Reply> {
    let plain = json!({"max_tokens": 9, "seed": seed});
    let streamed = json!({"max_tokens": 9, "seed": seed, "stream": true, "stream_options": {WITH_USAGE: true}});
    vec![
        actor.chat_with("What is a mill?", plain.clone()).await,
        actor.chat_with("What is a gate?", streamed.clone()).await,
        actor.complete(json!([65, 66, 67]), plain).await,
        actor.complete(json!("Once upon a time"), streamed).await,
    ]
}

#[tokio::test]
async fn u1_a_stream_without_include_usage_is_counted_all_the_same() {
    let app = TestApp::new().tier("metered", |tier| tier.limit("1000 tokens / 1h")).start().await;
    let user = app.key("metered").await;
    let reply = Reply::read(user.chat_stream("hello", json!({"max_tokens": 12, "ignore_eos": true})).await).await;
    assert!(!reply.body.contains("\"usage\":{"), "nobody asked for it");
    let row = app.ledger().await.remove(0);
    assert_eq!((row.status, row.usage.completion_tokens), (Status::Completed, 12));
    let used = user.get("/v1/me").await.json()["limits"][0]["used"].as_u64();
    assert_eq!(used, Some(row.usage.total_tokens()), "limits count it");
    let usage = user.get("/v1/usage").await.json()["data"][0].clone();
    assert_eq!((usage["completion_tokens"].as_u64(), usage["requests"].as_u64()), (Some(12), Some(1)));
}

#[tokio::test]
async fn x4_every_endpoint_streamed_or_not_is_counted_with_the_numbers_in_its_usage() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    for reply in every_way(&user, 1).await {
        let seen = usage_of(&reply);
        let id: uuid::Uuid = reply.header("x-millgate-request-id").parse().expect("our id");
        let rows = app.ledger().await;
        let row = rows.iter().find(|row| row.request.id == id).expect("on the ledger before the answer ends");
        assert_eq!((row.usage.prompt_tokens, row.usage.cached_tokens, row.usage.completion_tokens), seen);
    }
}

/// Five kinds of limits at once, of which one is nearly spent.
async fn refused_by(tight: &str) -> Value {
    let roomy =
        ["100 requests / 1m", "100000 tokens / 1m", "1000000 tokens / day", "9000000 tokens / month", "50 usd / month"];
    let kind = |text: &str| {
        let mut words = text.split(' ').skip(1);
        (words.next().map(str::to_owned), words.nth(1).map(str::to_owned))
    };
    let app = TestApp::new()
        .tier("five", |tier| {
            let limits = roomy.iter().map(|text| if kind(text) == kind(tight) { tight } else { text });
            limits.fold(tier, |tier, text| tier.limit(text))
        })
        .start()
        .await;
    let price = json!({"model": MODEL, "prompt": "1000000", "completion": "1000000"});
    assert_eq!(app.admin().put("/admin/v1/prices", &json!({"prices": [price]})).await.status, 200);
    let user = app.key("five").await;
    let ask = async || user.complete(json!([65, 66]), json!({"max_tokens": 8, "ignore_eos": true})).await;
    assert_eq!(ask().await.status, 200, "{tight}");
    let refused = ask().await;
    assert_eq!(refused.status, 429, "{tight}: {}", refused.body);
    let me = user.get("/v1/me").await.json();
    let used: Vec<&Value> = me["limits"].as_array().expect("limits").iter().map(|limit| &limit["used"]).collect();
    assert_eq!(used, [&json!(1), &json!(10), &json!(10), &json!(10), &json!("0.00001")], "{tight}: nothing was taken");
    refused.json()["error"].clone()
}

#[tokio::test]
async fn x9_of_five_limits_at_once_the_one_that_refuses_is_named() {
    for (tight, kind) in [
        ("1 requests / 1m", "rate_limit_error"),
        ("15 tokens / 1m", "quota_error"),
        ("15 tokens / day", "quota_error"),
        ("15 tokens / month", "quota_error"),
        ("0.000015 usd / month", "quota_error"),
    ] {
        let error = refused_by(tight).await;
        assert_eq!((&error["type"], &error["detail"]["limit"]), (&json!(kind), &json!(format!("five: {tight}"))));
    }
}

#[tokio::test]
async fn x10_the_usage_api_adds_up_to_what_all_clients_saw() {
    let app = TestApp::new().start().await;
    let price = json!({"model": "*", "prompt": "150000", "cached": "75000", "completion": "600123"});
    assert_eq!(app.admin().put("/admin/v1/prices", &json!({"prices": [price]})).await.status, 200);
    let mut seen = (0, 0, 0);
    let mut cost = 0u128;
    let mut by_user = Vec::new();
    for (name, groups) in [("ann", &["premium-users"][..]), ("ben", &[]), ("cid", &[])] {
        let user = app.user(name, groups).await;
        let mut own = (0, 0, 0);
        for reply in every_way(&user, 3).await.into_iter().chain(every_way(&user, 4).await) {
            let (prompt, cached, completion) = usage_of(&reply);
            own = (own.0 + prompt, own.1 + cached, own.2 + completion);
            let pico =
                150_000 * u128::from(prompt - cached) + 75_000 * u128::from(cached) + 600_123 * u128::from(completion);
            // None of these lies exactly in the middle: 600123 is odd only where the remainder is not 500.
            assert_ne!(pico % 1000, 500);
            cost += (pico + 500) / 1000;
        }
        let mine = user.get("/v1/usage?start=0").await.json()["data"][0].clone();
        assert_eq!((mine["requests"].as_u64(), mine["prompt_tokens"].as_u64()), (Some(8), Some(own.0)));
        by_user.push((name, own));
        seen = (seen.0 + own.0, seen.1 + own.1, seen.2 + own.2);
    }
    let admin = app.admin();
    let total = admin.get("/admin/v1/usage?start=0").await.json()["data"][0].clone();
    let figure = |line: &Value, field: &str| line[field].as_u64().expect("a count");
    let tokens = |line: &Value| {
        (figure(line, "prompt_tokens"), figure(line, "cached_tokens"), figure(line, "completion_tokens"))
    };
    assert_eq!((tokens(&total), figure(&total, "requests")), (seen, 24));
    let nano = total["cost"].as_str().and_then(millgate::governance::pricing::parse_usd);
    assert_eq!(nano.map(u128::from), Some(cost), "every row rounded once, then added");
    let lines = admin.get("/admin/v1/usage?start=0&group_by=user").await.json();
    for (line, (name, own)) in lines["data"].as_array().expect("lines").iter().zip(&by_user) {
        assert_eq!((line["user"].as_str(), tokens(line)), (Some(*name), *own));
    }
    for group in ["key", "tier", "model", "group"] {
        let lines = admin.get(&format!("/admin/v1/usage?start=1700000000&bucket=1d&group_by={group}")).await.json();
        let sum: u64 = lines["data"].as_array().expect("lines").iter().map(|line| figure(line, "requests")).sum();
        assert_eq!(sum, 24, "by {group}");
    }
    let csv = admin.get("/admin/v1/usage?start=0&group_by=user,tier&format=csv").await.body;
    let mut reader = csv::Reader::from_reader(csv.as_bytes());
    let records: Vec<csv::StringRecord> = reader.records().collect::<Result<_, _>>().expect("CSV");
    let completion: u64 = records.iter().map(|record| record[8].parse::<u64>().expect("a count")).sum();
    assert_eq!((records.len(), &records[0][3], completion), (3, "premium", seen.2));
}
