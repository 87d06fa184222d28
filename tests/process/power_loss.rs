//! The power fails: only what was synced is left. `kill -9` does not show that, because the system still writes what a killed
//! process has written. Here the server runs on a disk that keeps a file as it was when it was last synced, and starts again from
//! that.

use std::path::{Path, PathBuf};
use std::process::Command;

use millgate::governance::Status;
use millgate::governance::ports::Records;
use millgate::store::{self, SqliteRecords};
use serde_json::{Value, json};
use uuid::Uuid;

use super::server::{ServerProcess, chat_body, serve_command};

/// Answers asked for one after the other, every second one as a stream.
const ANSWERS: u64 = 24;

/// Builds the disk; `None` where there is no C compiler for Linux.
fn disk(folder: &Path) -> Option<PathBuf> {
    let library = folder.join("only_synced.so");
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/process/disk/only_synced.c");
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O2", "-o"]).arg(&library).arg(source).output();
    if !cfg!(target_os = "linux") || built.is_err() {
        return None;
    }
    let built = built.expect("it ran");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    Some(library)
}

/// Asks for one answer and reads it to its end: its id, and the tokens it is told.
async fn ask(server: &ServerProcess, nth: u64) -> (Uuid, (u64, u64)) {
    let mut body = chat_body("Tell me about limits.", nth);
    let is_stream = nth % 2 == 1;
    if is_stream {
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
    }
    let reply = server.post("/v1/chat/completions", &body).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    let id = id_of(&reply);
    let text = reply.text().await.unwrap();
    let usage = if is_stream {
        assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
        let chunks =
            text.split("\n\n").filter_map(|event| serde_json::from_str::<Value>(event.strip_prefix("data: ")?).ok());
        chunks.map(|chunk| chunk["usage"].clone()).filter(Value::is_object).last().unwrap()
    } else {
        serde_json::from_str::<Value>(&text).unwrap()["usage"].clone()
    };
    let tokens = |field: &str| usage[field].as_u64().unwrap();
    (id, (tokens("prompt_tokens"), tokens("completion_tokens")))
}

fn id_of(reply: &reqwest::Response) -> Uuid {
    reply.headers()["x-millgate-request-id"].to_str().unwrap().parse().unwrap()
}

#[expect(clippy::print_stderr, reason = "a test that cannot run says so aloud")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn when_the_power_fails_every_completed_answer_and_every_begun_one_is_on_the_disk_and_so_is_a_new_key() {
    let folder = tempfile::tempdir().unwrap();
    let Some(library) = disk(folder.path()) else {
        eprintln!("NOT TESTED: there is no C compiler here, or no Linux, so there is no disk that forgets");
        return;
    };
    let (lost, kept) = (folder.path().join("lost"), folder.path().join("kept"));
    std::fs::create_dir(&lost).unwrap();
    std::fs::create_dir(&kept).unwrap();
    let mut command = serve_command(&lost, &[]);
    command.env("LD_PRELOAD", &library).env("DISK", &lost).env("KEPT", &kept);
    let mut server = ServerProcess::launch(command).await;
    let mut seen = Vec::new();
    for nth in 0..ANSWERS {
        seen.push(ask(&server, nth).await);
    }
    let key = server.post("/v1/api-keys", &json!({"name": "kept"})).send().await.unwrap();
    assert_eq!(key.status(), 201);
    let key: Value = key.json().await.unwrap();
    let story = json!({
        "model": "demo", "stream": true, "max_tokens": 400, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Tell me a story."}],
    });
    let mut begun = server.post("/v1/chat/completions", &story).send().await.unwrap();
    let begun_id = id_of(&begun);
    begun.chunk().await.unwrap().expect("content");
    server.signal("-KILL");
    assert!(!server.ended().await.success());

    let mut server = ServerProcess::start(&kept, &[]).await;
    let (status, answer) = server.chat_as(key["key"].as_str().unwrap(), 0).await;
    assert_eq!(status, 200, "a key that somebody was given is there: {answer}");
    server.signal("-TERM");
    assert!(server.ended().await.success());
    let records = SqliteRecords::open(&store::Config { data_dir: kept, ..store::Config::default() }).await.unwrap();
    for (id, usage) in seen {
        let row = records.ledger_row(id).await.unwrap().unwrap_or_else(|| panic!("no ledger row for {id}"));
        assert_eq!((row.usage.prompt_tokens, row.usage.completion_tokens), usage, "{id}");
        assert_eq!(row.status, Status::Completed, "{id}");
    }
    let row = records.ledger_row(begun_id).await.unwrap().expect("an answer whose content was seen is on the ledger");
    assert_eq!(row.status, Status::Recovered);
    records.close().await;
}
