//! X8: a store that cannot be written fails closed: a clear 503, nothing served uncounted, nothing hanging.

use std::time::Duration;

use serde_json::json;

use crate::support::TestApp;

#[tokio::test]
async fn x8_while_the_store_cannot_be_written_nothing_is_served_and_afterwards_all_is_well() {
    let app = TestApp::new()
        .tier("daily", |tier| tier.tokens_per_day(1000))
        .store(|store| store.busy_timeout = Duration::ZERO)
        .start()
        .await;
    let user = app.key("daily").await;
    let ask = || user.complete(json!([65]), json!({"max_tokens": 5, "ignore_eos": true}));
    assert_eq!(ask().await.status, 200);

    let url = format!("sqlite://{}", app.data_dir().join("millgate.db").display());
    let intruder = sqlx::SqlitePool::connect(&url).await.unwrap();
    let mut lock = intruder.acquire().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut *lock).await.unwrap();
    for _ in 0..3 {
        let refused = tokio::time::timeout(Duration::from_secs(5), ask()).await.expect("it does not hang");
        assert_eq!(refused.status, 503, "{}", refused.body);
        assert_eq!(refused.json()["error"]["type"], "unavailable_error");
        assert!(!refused.header("retry-after").is_empty() && refused.json().get("choices").is_none());
    }
    let stream = user.chat_stream("hello", json!({"max_tokens": 5})).await;
    assert!(
        !stream.text().await.unwrap().contains("\"content\":\""),
        "no content leaves before its reservation is kept"
    );
    sqlx::query("ROLLBACK").execute(&mut *lock).await.unwrap();

    app.eventually("the store is written again", async |_| ask().await.status == 200).await;
    app.governor.drain().await;
    let answered: u64 = app.ledger().await.iter().map(|row| row.usage.total_tokens()).sum();
    let used = user.get("/v1/me").await.json()["limits"][0]["used"].as_u64().unwrap();
    assert_eq!(used, answered, "limiter and ledger agree: what failed cost nothing");
    app.stop().await;
}
