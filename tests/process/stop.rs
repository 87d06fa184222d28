//! Stopping: what runs is finished, what is new is refused, the exit status is 0.

use std::time::Duration;

use futures::StreamExt;
use serde_json::json;

use super::server::{ServerProcess, failed_start};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_in_flight_finishes_after_sigterm_and_the_exit_status_is_0() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(folder.path(), &[]).await;
    let body = json!({
        "model": "demo", "stream": true, "max_tokens": 300, "ignore_eos": true,
        "messages": [{"role": "user", "content": "Tell me a story."}],
    });
    let reply = server.post("/v1/chat/completions", &body).send().await.unwrap();
    assert_eq!(reply.status(), 200);
    let mut stream = reply.bytes_stream();
    let mut text = String::from_utf8_lossy(&stream.next().await.unwrap().unwrap()).into_owned();
    server.signal("-TERM");
    while let Some(piece) = stream.next().await {
        text.push_str(&String::from_utf8_lossy(&piece.expect("the stream is not cut")));
    }
    assert!(text.ends_with("data: [DONE]\n\n"), "{text}");
    assert!(text.contains("\"finish_reason\":\"length\""), "{text}");
    assert!(server.ended().await.success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_server_on_the_same_data_is_refused_with_a_reason() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(folder.path(), &[]).await;
    let (status, output) = failed_start(folder.path(), &[]);
    assert!(!status.success());
    assert!(output.contains("in use by another process"), "{output}");
    assert_eq!(server.get("/readyz").send().await.unwrap().status(), 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_idle_server_stops_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let mut server = ServerProcess::start(folder.path(), &[]).await;
    server.signal("-TERM");
    let ended = tokio::time::timeout(Duration::from_secs(60), server.ended()).await.unwrap();
    assert!(ended.success());
    let output = server.rest_of_output().await;
    assert!(!output.contains("panicked"), "{output}");
}
