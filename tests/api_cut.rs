//! Clients that close the connection after a random number of bytes: what the model sampled is what is charged.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::net::SocketAddr;
use std::time::Duration;

use futures::{StreamExt, stream};
use millgate::governance::Status;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::{TestApp, chat_body};

const CLIENTS: u64 = 1000;
const AT_ONCE: usize = 25;

/// Sends a request and reads that many bytes of the answer; then the client is gone. Part of them leave in the middle of
/// their own request.
async fn cut(address: SocketAddr, key: &str, nth: u64) {
    let draw = |salt: u64, below: u64| ((nth * 7919 + salt).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 33) % below;
    let is_stream = !nth.is_multiple_of(3);
    let body =
        chat_body(&"x".repeat(1 + (nth % 50) as usize), json!({"max_tokens": 40, "stream": is_stream, "seed": nth}));
    let body = body.to_string();
    let request = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: t\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut connection = TcpStream::connect(address).await.unwrap();
    let is_cut_in_request = nth % 20 == 7;
    let sent = if is_cut_in_request { draw(1, request.len() as u64) as usize } else { request.len() };
    connection.write_all(&request.as_bytes()[..sent]).await.unwrap();
    let (most, mut read) = (if is_stream { draw(2, 12_000) } else { draw(2, 600) } as usize, 0);
    let mut buffer = [0; 512];
    while read < most && !is_cut_in_request {
        let piece = buffer.len().min(most - read);
        // A whole answer to a client that waits for more than there is ends with the server's patience; one second is ours.
        match tokio::time::timeout(Duration::from_secs(1), connection.read(&mut buffer[..piece])).await {
            Ok(Ok(count @ 1..)) => read += count,
            _ => break,
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_clients_that_close_at_a_random_byte_are_charged_what_was_sampled() {
    let app = TestApp::new()
        .tier("wide", |tier| tier.limit("100000000 tokens / 1h"))
        .fake(|fake| {
            fake.end_logit = f32::NEG_INFINITY;
            fake.step_delay = Duration::from_micros(300);
        })
        .start()
        .await;
    let user = app.key("wide").await;
    let key = user.key.clone().unwrap();
    stream::iter(0..CLIENTS).for_each_concurrent(AT_ONCE, |nth| cut(app.address, &key, nth)).await;
    app.eventually("every request has ended", async |app| app.engine.status().open_requests == 0).await;
    app.eventually("every request is settled", async |app| {
        let sampled = app.engine.status().totals.completion_tokens;
        app.ledger().await.iter().map(|row| row.usage.completion_tokens).sum::<u64>() == sampled
    })
    .await;
    let rows = app.ledger().await;
    let totals = app.engine.status().totals;
    let sum = |of: fn(&millgate::governance::Usage) -> u64| rows.iter().map(|row| of(&row.usage)).sum::<u64>();
    assert_eq!(sum(|usage| usage.completion_tokens), totals.completion_tokens);
    assert_eq!(sum(|usage| usage.prompt_tokens), totals.prompt_tokens);
    let aborted = rows.iter().filter(|row| row.status == Status::Aborted).count();
    let completed = rows.iter().filter(|row| row.status == Status::Completed).count();
    assert!(
        aborted >= 200 && completed >= 50 && aborted + completed == rows.len(),
        "{aborted} aborted, {completed} completed"
    );
    let charged: u64 =
        rows.iter().flat_map(|row| &row.charged).map(|extent| extent.prompt_tokens + extent.completion_tokens).sum();
    assert_eq!(charged, totals.prompt_tokens + totals.completion_tokens, "each row is charged what it used");
    let remaining = user.get("/v1/me").await.json()["limits"][0]["remaining"].as_u64().unwrap();
    assert_eq!(100_000_000 - remaining, charged, "and the limit counts the same");
}
