//! A disk that is really full: new work is refused with 503 and a time to return, nothing is served uncounted, and the
//! server goes on by itself when there is room again.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use millgate::governance::Status;
use millgate::governance::ports::Records;
use millgate::store::{self, SqliteRecords};
use serde_json::{Value, json};
use uuid::Uuid;

use super::server::{ServerProcess, chat_body, serve_command};

/// Size of the disk: enough for a start.
const DISK: &str = "size=4m";

/// `millgate serve` in a mount namespace of its own, where the data directory is a small file system in memory. `None`
/// where the system allows no such namespace.
fn on_a_small_disk(data_dir: &Path) -> Option<Command> {
    let mount = format!("mount -t tmpfs -o {DISK} tmpfs '{}'", data_dir.display());
    let is_allowed =
        Command::new("unshare").args(["-rm", "sh", "-c", &mount]).output().is_ok_and(|tried| tried.status.success());
    is_allowed.then(|| {
        let serve = serve_command(data_dir, &[]);
        let mut command = Command::new("unshare");
        command
            .args(["-rm", "sh", "-c", &format!("{mount} && exec \"$0\" \"$@\"")])
            .arg(serve.get_program())
            .args(serve.get_args());
        for (name, value) in serve.get_envs() {
            match value {
                Some(value) => command.env(name, value),
                None => command.env_remove(name),
            };
        }
        command
    })
}

/// Writes until not one byte more fits.
fn fill(path: &Path) {
    let mut ballast = File::create(path).unwrap();
    for size in [64 << 10, 4 << 10, 1] {
        while ballast.write_all(&vec![0; size]).is_ok() {}
    }
}

async fn ask(server: &ServerProcess, seed: u64) -> (u16, Option<String>, Value, Uuid) {
    let reply = server.post("/v1/chat/completions", &chat_body("Tell me about limits.", seed)).send().await.unwrap();
    let header = |name: &str| reply.headers().get(name).map(|value| value.to_str().unwrap().to_owned());
    let (status, retry_after) = (reply.status().as_u16(), header("retry-after"));
    let id = header("x-millgate-request-id").map(|id| id.parse().unwrap()).unwrap_or_default();
    (status, retry_after, reply.json().await.unwrap(), id)
}

#[expect(clippy::print_stderr, reason = "a test that cannot run says so aloud")]
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_disk_is_503_with_retry_after_nothing_is_served_uncounted_and_work_goes_on_when_there_is_room() {
    let folder = tempfile::tempdir().unwrap();
    let Some(command) = on_a_small_disk(folder.path()) else {
        eprintln!("NOT TESTED: this system allows no mount namespace, so there is no disk to fill");
        return;
    };
    let server = ServerProcess::launch(command).await;
    let inside = PathBuf::from(format!("/proc/{}/root{}", server.id(), folder.path().display()));
    let mut seen: BTreeMap<Uuid, (u64, u64)> = BTreeMap::new();
    let mut note = |body: &Value, id: Uuid| {
        let tokens = |field: &str| body["usage"][field].as_u64().unwrap();
        seen.insert(id, (tokens("prompt_tokens"), tokens("completion_tokens")));
    };
    let (status, _, body, id) = ask(&server, 0).await;
    assert_eq!(status, 200, "{body}");
    note(&body, id);
    // This one is under way when the disk fills up: what it is sent is counted, but it is not told that all is well.
    let story = json!({
        "model": "demo", "stream": true, "max_tokens": 400, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Tell me a story."}],
    });
    let mut under_way = server.post("/v1/chat/completions", &story).send().await.unwrap();
    let under_way_id: Uuid = under_way.headers()["x-millgate-request-id"].to_str().unwrap().parse().unwrap();
    let mut told = String::from_utf8_lossy(&under_way.chunk().await.unwrap().unwrap()).into_owned();
    fill(&inside.join("ballast"));
    while let Some(piece) = under_way.chunk().await.unwrap() {
        told.push_str(&String::from_utf8_lossy(&piece));
    }
    let is_told_all_is_well = told.contains("\"finish_reason\":\"length\"");
    assert!(told.contains("\"error\"") && !is_told_all_is_well, "{told}");
    // The database may still have room inside its own files; what is answered until that is used up counts as well.
    let mut refused = 0;
    for seed in 1..2000 {
        let (status, retry_after, body, id) = ask(&server, seed).await;
        if status == 200 {
            assert_eq!(refused, 0, "it neither wrote nor refused");
            note(&body, id);
            continue;
        }
        assert_eq!(status, 503, "{body}");
        assert!(retry_after.is_some_and(|seconds| seconds.parse::<u64>().unwrap() >= 1), "{body}");
        refused += 1;
        if refused == 20 {
            break;
        }
    }
    assert_eq!(refused, 20, "a full disk was never noticed");
    let stream =
        json!({"model": "demo", "stream": true, "max_tokens": 24, "messages": [{"role": "user", "content": "Hello"}]});
    let reply = server.post("/v1/chat/completions", &stream).send().await.unwrap();
    assert_eq!(reply.status(), 503, "not one token of a stream is sent before its reservation is written");
    assert_eq!(server.get("/readyz").send().await.unwrap().status(), 200, "reading needs no room");

    fs::remove_file(inside.join("ballast")).unwrap();
    let mut seed = 10_000;
    let (body, id) = loop {
        let (status, _, body, id) = ask(&server, seed).await;
        if status == 200 {
            break (body, id);
        }
        seed += 1;
        assert!(seed < 10_200, "there is room again, and still {body}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    note(&body, id);
    assert_ledger(&inside, &seen, under_way_id).await;
}

/// Compares the ledger, as a crash now would leave it, with the answers seen: each is there once with its usage, and no
/// other request is charged anything.
async fn assert_ledger(inside: &Path, seen: &BTreeMap<Uuid, (u64, u64)>, under_way: Uuid) {
    let image = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(inside).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, image.path().join(path.file_name().unwrap())).unwrap();
    }
    let config = store::Config { data_dir: image.path().into(), ..store::Config::default() };
    let records = SqliteRecords::open(&config).await.unwrap();
    let rows = records.ledger_since(0).await.unwrap();
    let row = rows.iter().find(|row| row.request.id == under_way).expect("a row that could not be written is not lost");
    assert_eq!(row.usage.completion_tokens, 400, "what was sent is charged");
    let completed: BTreeMap<Uuid, (u64, u64)> = rows
        .iter()
        .filter(|row| row.status == Status::Completed && row.request.id != under_way)
        .map(|row| (row.request.id, (row.usage.prompt_tokens, row.usage.completion_tokens)))
        .collect();
    assert_eq!(&completed, seen);
    for row in rows.iter().filter(|row| row.status != Status::Completed) {
        let charged: u64 = row.charged.iter().map(|extent| extent.prompt_tokens + extent.completion_tokens).sum();
        assert_eq!((row.status, charged), (Status::Failed, 0), "a refused request costs nothing: {row:?}");
    }
    records.close().await;
}
