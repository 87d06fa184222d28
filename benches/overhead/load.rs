//! The client: so many connections that each ask again as soon as their answer is complete.

use std::time::{Duration, Instant};

use axum::body::Body;
use futures::future::join_all;
use http_body_util::BodyExt;
use hyper::Request;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::net::TcpStream;
use tokio_util::task::TaskTracker;

use super::processor::server_time;

/// A server to measure.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) name: String,
    /// Without a path: `http://127.0.0.1:8080`.
    pub(crate) url: String,
    pub(crate) key: String,
    pub(crate) model: String,
}

/// How it is asked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    pub(crate) seconds: Duration,
    pub(crate) tokens: u32,
    pub(crate) is_streamed: bool,
    /// Whether it runs on threads of its own.
    pub(crate) is_apart: bool,
}

/// What one round took, from the first byte sent to the last byte received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) per_second: f64,
    /// Processor time of the server a request, where the client has threads of its own.
    pub(crate) server_us: Option<f64>,
}

impl Load {
    /// Keeps `streams` requests in flight and times each.
    pub(crate) async fn run(&self, target: &Target, streams: usize) -> Timing {
        let tasks = TaskTracker::new();
        let mut connections = Vec::with_capacity(streams);
        for _ in 0..streams {
            connections.push(connect(target, &tasks).await);
        }
        let before = server_time();
        let start = Instant::now();
        let until = start + self.seconds;
        let clients = connections.into_iter().map(|connection| tasks.spawn(self.client(connection, target, until)));
        let mut times: Vec<f64> = Vec::new();
        for client in join_all(clients).await {
            times.extend(client.expect("a client ends without a panic"));
        }
        let spent = start.elapsed().as_secs_f64();
        let took = server_time().zip(before).map(|(after, before)| after.saturating_sub(before));
        times.sort_by(f64::total_cmp);
        let server_us = took.filter(|_| self.is_apart).map(|took| took.as_secs_f64() * 1e6 / times.len() as f64);
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        Timing { p50_ms: at(0.5), p99_ms: at(0.99), per_second: times.len() as f64 / spent, server_us }
    }

    /// Asks until the time is over; milliseconds of each exchange.
    fn client(
        &self,
        mut connection: SendRequest<Body>,
        target: &Target,
        until: Instant,
    ) -> impl Future<Output = Vec<f64>> + Send + 'static {
        let body = json!({
            "model": target.model, "messages": [{"role": "user", "content": "hi"}], "stream": self.is_streamed,
            "max_tokens": self.tokens, "temperature": 0,
        })
        .to_string();
        let (authorization, is_streamed) = (format!("Bearer {}", target.key), self.is_streamed);
        async move {
            let mut times = Vec::new();
            loop {
                let sent = Instant::now();
                if sent >= until {
                    return times;
                }
                let request = Request::post("/v1/chat/completions")
                    .header("host", "localhost")
                    .header("content-type", "application/json")
                    .header("authorization", &authorization)
                    .body(Body::from(body.clone()))
                    .expect("a well-formed request");
                exchange(&mut connection, request, is_streamed).await;
                times.push(sent.elapsed().as_secs_f64() * 1e3);
            }
        }
    }
}

/// One request and its whole answer; anything but a complete one ends the benchmark: it would flatter the figures.
async fn exchange(connection: &mut SendRequest<Body>, request: Request<Body>, is_streamed: bool) {
    connection.ready().await.expect("the server keeps the connection");
    let answer = connection.send_request(request).await.expect("an answer");
    let status = answer.status();
    let body = answer.into_body().collect().await.expect("a whole answer").to_bytes();
    let is_complete = !is_streamed || body.trim_ascii_end().ends_with(b"data: [DONE]");
    assert!(status == 200 && is_complete, "{status}: {}", String::from_utf8_lossy(&body));
}

async fn connect(target: &Target, tasks: &TaskTracker) -> SendRequest<Body> {
    let address = target.url.trim_start_matches("http://").trim_end_matches('/');
    let stream = TcpStream::connect(address).await.expect("the server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    let (sender, connection) = handshake(TokioIo::new(stream)).await.expect("HTTP/1.1");
    tasks.spawn(connection);
    sender
}
