//! Reconciliation: nothing differs after a storm of requests and while some are in flight, and what somebody altered is named.

use std::time::Duration;

use serde_json::{Value, json};
use sqlx::Connection as _;
use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection};

use crate::cli::printed;
use crate::support::{Actor, MODEL, TestApp};

const ALL: &str = "/admin/v1/reconciliation?start=0";

async fn report(app: &TestApp) -> Value {
    let reply = app.admin().get(ALL).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    reply.json()
}

/// Chats in every shape: whole, streamed with and without usage, many choices, cut by a limit, refused.
async fn storm(user: &Actor) {
    let shapes = [
        json!({"max_tokens": 5}),
        json!({"max_tokens": 7, "n": 3}),
        json!({"max_tokens": 4, "stream": true, "stream_options": {"include_usage": true}}),
        json!({"max_tokens": 4, "stream": true}),
        json!({"max_tokens": 0}),
        json!({}),
    ];
    let asks = (0..24).map(|number| {
        let shape = shapes[number % shapes.len()].clone();
        async move { user.chat_with(&format!("tell me number {number}"), shape).await.status }
    });
    futures::future::join_all(asks).await;
}

async fn execute(app: &TestApp, statement: &str) {
    let options = SqliteConnectOptions::new().filename(app.data_dir().join("millgate.db"));
    let mut database = SqliteConnection::connect_with(&options).await.expect("the database opens");
    let done = sqlx::query(sqlx::AssertSqlSafe(statement.to_owned())).execute(&mut database).await.expect("it is SQL");
    assert!(done.rows_affected() > 0, "{statement} changed nothing");
}

#[tokio::test]
async fn after_a_storm_engines_ledger_limiter_and_what_clients_were_told_agree() {
    let app =
        TestApp::new().tier("busy", |tier| tier.limit("400 tokens / 1m").limit("1000 requests / day")).start().await;
    let price = json!({"prices": [{"model": MODEL, "prompt": "1000001", "cached": "3", "completion": "2000003"}]});
    assert_eq!(app.admin().put("/admin/v1/prices", &price).await.status, 200);
    let user = app.key("busy").await;
    for _ in 0..3 {
        storm(&user).await;
        let found = report(&app).await;
        assert_eq!(found["is_equal"], true, "{found:#}");
        app.advance(Duration::from_secs(61));
    }
    app.eventually("nothing is open", async |app| report(app).await["since_start"]["open_requests"] == 0).await;
    let found = report(&app).await;
    assert_eq!(found["is_equal"], true, "{found:#}");
    let rows = app.ledger().await;
    assert_eq!(found["disk"]["rows"], rows.len());
    let tokens: u64 = rows.iter().map(|row| row.usage.completion_tokens).sum();
    let comparisons = found["since_start"]["comparisons"].as_array().unwrap();
    assert_eq!(comparisons.len(), 4);
    for one in comparisons.iter().filter(|one| one["between"] != "told") {
        assert_eq!(one["found"]["completion_tokens"], tokens, "{one}");
    }
    let told = comparisons.iter().find(|one| one["between"] == "told").unwrap();
    assert!(told["found"]["requests"].as_u64().unwrap() > 0, "some were told: {told}");
    let metrics = app.anonymous().get("/metrics").await.body;
    for between in ["limiter", "disk", "engine", "told"] {
        let line = format!("millgate_reconciliation_difference_tokens{{between=\"{between}\"}} 0");
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
}

#[tokio::test]
async fn requests_in_flight_are_told_and_change_nothing() {
    let endless = TestApp::new().fake(|fake| {
        fake.end_logit = f32::NEG_INFINITY;
        fake.step_delay = Duration::from_millis(5);
    });
    let app = endless.start().await;
    let user = app.user("ann", &[]).await;
    let mut streams = Vec::new();
    for _ in 0..3 {
        let mut stream = user.chat_stream("hello", json!({"max_tokens": 1500})).await;
        stream.chunk().await.expect("it streams");
        streams.push(stream);
    }
    let found = report(&app).await;
    assert_eq!(found["is_equal"], true, "{found:#}");
    assert_eq!(found["since_start"]["open_requests"], 3, "{found:#}");
    assert!(found["since_start"]["in_flight"]["completion_tokens"].as_u64().unwrap() > 0, "{found:#}");
    drop(streams);
    app.eventually("nothing is open", async |app| report(app).await["since_start"]["open_requests"] == 0).await;
    let found = report(&app).await;
    assert_eq!(found["is_equal"], true, "{found:#}");
}

#[tokio::test]
async fn what_somebody_altered_on_the_disk_is_named() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    for text in ["one", "two", "three"] {
        assert_eq!(user.chat_with(text, json!({"max_tokens": 3})).await.status, 200);
    }
    assert_eq!(report(&app).await["is_equal"], true);
    let altered = app.ledger().await[1].request.id.to_string();
    execute(&app, &format!("UPDATE ledger SET completion_tokens = completion_tokens + 5 WHERE id = '{altered}'")).await;
    let found = report(&app).await;
    assert_eq!((&found["is_equal"], &found["disk"]["contradictions"]), (&json!(false), &json!(1)), "{found:#}");
    assert_eq!(found["disk"]["rows_that_differ"][0]["request_id"], altered);
    let roll_ups = found["disk"]["roll_ups_that_differ"].as_array().unwrap();
    let lengths: Vec<_> =
        roll_ups.iter().map(|one| (one["bucket"].as_str().unwrap(), &one["completion_tokens"])).collect();
    assert_eq!(lengths, [("1m", &json!(-5)), ("1h", &json!(-5)), ("1d", &json!(-5))]);
    assert!(roll_ups[0]["subject"].as_str().unwrap().starts_with("ann in `free`"), "{}", roll_ups[0]);
    let data_dir = app.data_dir().to_str().expect("a plain path").to_owned();
    let offline = tokio::task::spawn_blocking(move || printed(&["reconcile", "--from", "0", "--data-dir", &data_dir]));
    let complaint = offline.await.expect("no panic").expect_err("it differs");
    assert!(complaint.contains("figures that must be the same differ"), "{complaint}");
    execute(&app, &format!("UPDATE ledger SET completion_tokens = completion_tokens - 5 WHERE id = '{altered}'")).await;
    assert_eq!(report(&app).await["is_equal"], true);
    execute(&app, "UPDATE usage_rollups SET prompt_tokens = prompt_tokens + 9 WHERE bucket = '1d'").await;
    let found = report(&app).await;
    let disk =
        found["since_start"]["comparisons"].as_array().unwrap().iter().find(|one| one["between"] == "disk").unwrap();
    assert_eq!((&disk["is_equal"], &disk["difference_tokens"]), (&json!(false), &json!(9)), "{disk}");
}
