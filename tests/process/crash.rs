//! `kill -9` under load: what a client saw completed is on the ledger, once, and nothing else is made up.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use millgate::governance::Status;
use millgate::governance::ports::{Records, UsageQuery};
use millgate::store::{self, SqliteRecords};
use serde_json::Value;
use uuid::Uuid;

use super::server::{ServerProcess, chat_body};

const CLIENTS: u64 = 12;

/// Usage of every answer seen completed, by the server's request id.
type Seen = BTreeMap<Uuid, (u64, u64)>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_seen_completed_before_kill_9_is_on_the_ledger_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(folder.path(), &[]).await;
    let asked = Arc::new(AtomicU64::new(0));
    let load = join_all((0..CLIENTS).map(|client| ask_until_the_server_dies(&server, client, asked.clone())));
    let killer = async {
        while asked.load(Ordering::Relaxed) < 3 * CLIENTS {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        server.signal("-KILL");
    };
    let (seen, ()) = tokio::join!(load, killer);
    let seen: Seen = seen.into_iter().flatten().collect();
    assert!(!seen.is_empty(), "the load completed something before the kill");
    assert!(!server.ended().await.success());

    // A start recovers what the kill left open; a second one must find nothing more to recover.
    for _ in 0..2 {
        let mut server = ServerProcess::start(folder.path(), &[]).await;
        server.signal("-TERM");
        assert!(server.ended().await.success());
    }
    let config = store::Config { data_dir: folder.path().into(), ..store::Config::default() };
    let records = SqliteRecords::open(&config).await.unwrap();
    assert!(records.open_reservations().await.unwrap().is_empty());
    for (id, usage) in &seen {
        let row = records.ledger_row(*id).await.unwrap().unwrap_or_else(|| panic!("no ledger row for {id}"));
        assert_eq!((row.usage.prompt_tokens, row.usage.completion_tokens), *usage, "{id}");
        assert_eq!(row.status, Status::Completed, "{id}");
    }
    assert_sums_match_rows(&records, &seen, asked.load(Ordering::Relaxed)).await;
    records.close().await;
}

/// Rows beyond those seen can only be requests that were in flight; the roll-up adds up all rows and each row once.
async fn assert_sums_match_rows(records: &dyn Records, seen: &Seen, asked: u64) {
    let rows = records.ledger_since(0).await.unwrap();
    assert!(rows.len() >= seen.len() && rows.len() as u64 <= asked + CLIENTS, "{} rows, {asked} asked", rows.len());
    let query = UsageQuery { start_us: 0, end_us: i64::MAX, ..UsageQuery::default() };
    let sums = records.usage(&query).await.unwrap();
    let tokens: u64 = rows.iter().map(|row| row.usage.prompt_tokens + row.usage.completion_tokens).sum();
    assert_eq!(sums.iter().map(|sum| sum.requests).sum::<u64>(), rows.len() as u64);
    let summed = sums.iter().map(|sum| sum.usage.prompt_tokens + sum.usage.completion_tokens).sum::<u64>();
    assert_eq!(summed, tokens);
}

async fn ask_until_the_server_dies(
    server: &ServerProcess,
    client: u64,
    asked: Arc<AtomicU64>,
) -> Vec<(Uuid, (u64, u64))> {
    let mut seen = Vec::new();
    for nth in 0.. {
        let body = chat_body("Tell me about limits.", client * 1000 + nth);
        asked.fetch_add(1, Ordering::Relaxed);
        let Ok(reply) = server.post("/v1/chat/completions", &body).send().await else { break };
        assert_eq!(reply.status(), 200);
        let id = reply.headers()["x-millgate-request-id"].to_str().unwrap().parse().unwrap();
        let Ok(answer) = reply.json::<Value>().await else { break };
        let tokens = |field: &str| answer["usage"][field].as_u64().unwrap();
        seen.push((id, (tokens("prompt_tokens"), tokens("completion_tokens"))));
    }
    seen
}
