//! `kill -9` under load, again and again on one data directory: what a client saw completed is on the ledger, once;
//! nothing else is made up; sums equal rows; a limit holds over all lives of the server together.
//!
//! Three kills in an ordinary run. `MILLGATE_CRASH_CYCLES=50` kills as often as it says.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use futures::future::join_all;
use millgate::governance::Status;
use millgate::governance::ports::{Records, UsageQuery};
use millgate::governance::records::LedgerRecord;
use millgate::store::{self, SqliteRecords};
use serde_json::{Value, json};
use uuid::Uuid;

use super::server::{ADMIN_KEY, ServerProcess, chat_body};

/// Clients of the administrator, whom no limit stops here.
const FREE_CLIENTS: u64 = 8;
/// Clients of one user with a limit.
const BOUND_CLIENTS: u64 = 4;
/// What that user may use in a day: soon used up, so that the limit refuses in most lives.
const BOUND_TOKENS: u64 = 4000;

/// Usage of every answer seen completed, by the server's request id.
type Seen = BTreeMap<Uuid, (u64, u64)>;

#[expect(clippy::disallowed_methods, reason = "it says how long the test runs, nothing of the program's own")]
fn cycles() -> u64 {
    std::env::var("MILLGATE_CRASH_CYCLES").map_or(3, |text| text.parse().expect("a number of cycles"))
}

#[expect(clippy::print_stderr, reason = "the figures of a long run")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_answer_seen_completed_before_kill_9_is_on_the_ledger_once_and_limits_hold_over_all_lives() {
    let folder = tempfile::tempdir().unwrap();
    let bound_key = found(folder.path()).await;
    let (mut seen, mut seen_of_bound, mut asked) = (Seen::new(), 0, 0);
    for cycle in 0..cycles() {
        let mut server = ServerProcess::start(folder.path(), &[]).await;
        // Before any new work: everything that was seen still counts, and no more than the limit ever does.
        let counted = used_of(&server, &bound_key).await;
        assert!((seen_of_bound..=BOUND_TOKENS).contains(&counted), "{counted} counted, {seen_of_bound} seen");
        let count = Arc::new(AtomicU64::new(0));
        let client = |nth: u64| {
            let key = if nth < FREE_CLIENTS { ADMIN_KEY } else { bound_key.as_str() };
            ask_until_the_server_dies(&server, key, (cycle * 100 + nth) * 10_000, count.clone())
        };
        let load = join_all((0..FREE_CLIENTS + BOUND_CLIENTS).map(client));
        let killer = async {
            // Each life ends elsewhere: in the first answers, in the middle of a group, between two commits.
            while count.load(Ordering::Relaxed) < FREE_CLIENTS + cycle * 7 % 40 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(Duration::from_micros(cycle * 1777 % 20_000)).await;
            server.signal("-KILL");
        };
        let (answers, ()) = tokio::join!(load, killer);
        for (nth, answers) in (0..).zip(answers) {
            let tokens: u64 = answers.values().map(|(prompt, completion)| prompt + completion).sum();
            seen_of_bound += if nth < FREE_CLIENTS { 0 } else { tokens };
            seen.extend(answers);
        }
        asked += count.load(Ordering::Relaxed);
        assert!(!server.ended().await.success());
    }
    assert!(!seen.is_empty(), "the load completed something before the kills");

    // A start recovers what the last kill left open; a second one must find nothing more to recover.
    let mut counted = 0;
    for _ in 0..2 {
        let mut server = ServerProcess::start(folder.path(), &[]).await;
        counted = used_of(&server, &bound_key).await;
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
    let rows = records.ledger_since(0).await.unwrap();
    let of_bound = tokens_of(rows.iter().filter(|row| &*row.request.user_name == "bound"));
    assert!(of_bound <= BOUND_TOKENS, "{of_bound} tokens of at most {BOUND_TOKENS} are on the ledger");
    assert_eq!(counted, of_bound, "the limit counts what is on the ledger");
    assert_sums_match_rows(&records, &rows, &seen, asked).await;
    let recovered = rows.iter().filter(|row| row.status == Status::Recovered).count();
    eprintln!(
        "{} kills: {asked} asked, {} seen completed, {recovered} recovered, {of_bound} of {BOUND_TOKENS} tokens of the bound user",
        cycles(),
        seen.len()
    );
    records.close().await;
}

/// Makes the user with a limit and returns the key.
async fn found(folder: &Path) -> String {
    let mut server = ServerProcess::start(folder, &[]).await;
    let limits = json!([{"resource": "tokens", "amount": BOUND_TOKENS, "window": "24h"}]);
    let make = async |path: &str, body: Value| {
        let reply = server.post(path, &body).send().await.unwrap();
        let (status, body) = (reply.status(), reply.json::<Value>().await.unwrap());
        assert_eq!(status, 201, "{path}: {body}");
        body
    };
    make("/admin/v1/tiers", json!({"name": "bound", "level": 50, "groups": ["bound"], "limits": limits})).await;
    make("/admin/v1/users", json!({"name": "bound", "groups": ["bound"]})).await;
    let key = make("/admin/v1/api-keys", json!({"user": "bound", "name": "crash"})).await;
    server.signal("-TERM");
    assert!(server.ended().await.success());
    key["key"].as_str().unwrap().to_owned()
}

/// Tokens that the limit of a key's owner counts as used.
async fn used_of(server: &ServerProcess, key: &str) -> u64 {
    let me: Value = server.as_key(server.get("/v1/me"), key).send().await.unwrap().json().await.unwrap();
    BOUND_TOKENS - me["limits"][0]["remaining"].as_u64().unwrap_or_else(|| panic!("{me}"))
}

fn tokens_of<'a>(rows: impl Iterator<Item = &'a LedgerRecord>) -> u64 {
    rows.map(|row| row.usage.prompt_tokens + row.usage.completion_tokens).sum()
}

/// Rows beyond those seen can only be requests that were in flight; the roll-up adds up all rows and each row once.
async fn assert_sums_match_rows(records: &dyn Records, rows: &[LedgerRecord], seen: &Seen, asked: u64) {
    assert!(rows.len() >= seen.len() && rows.len() as u64 <= asked, "{} rows, {asked} asked", rows.len());
    let query = UsageQuery { start_us: 0, end_us: i64::MAX, ..UsageQuery::default() };
    let sums = records.usage(&query).await.unwrap();
    assert_eq!(sums.iter().map(|sum| sum.requests).sum::<u64>(), rows.len() as u64);
    let summed = sums.iter().map(|sum| sum.usage.prompt_tokens + sum.usage.completion_tokens).sum::<u64>();
    assert_eq!(summed, tokens_of(rows.iter()));
}

async fn ask_until_the_server_dies(server: &ServerProcess, key: &str, seed: u64, asked: Arc<AtomicU64>) -> Seen {
    let mut seen = Seen::new();
    for nth in 0.. {
        let body = chat_body("Tell me about limits.", seed + nth);
        asked.fetch_add(1, Ordering::Relaxed);
        let post = server.as_key(server.post("/v1/chat/completions", &body), key);
        let Ok(reply) = post.send().await else { break };
        if reply.status() == 429 {
            // Its limit is used up; it keeps asking, as clients do.
            tokio::time::sleep(Duration::from_millis(5)).await;
            continue;
        }
        assert_eq!(reply.status(), 200);
        let id = reply.headers()["x-millgate-request-id"].to_str().unwrap().parse().unwrap();
        let Ok(answer) = reply.json::<Value>().await else { break };
        let tokens = |field: &str| answer["usage"][field].as_u64().unwrap();
        seen.insert(id, (tokens("prompt_tokens"), tokens("completion_tokens")));
    }
    seen
}
