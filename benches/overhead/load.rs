//! The client: so many connections that each ask again as soon as their answer is complete.
//!
//! It shares the machine with the server, so it does little: one thread, the bytes of the request made once, a write and a
//! read an exchange, and no more understanding of the answer than it takes to refuse all but a whole one.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::Builder;
use tokio::task::JoinSet;

use super::answer;
use super::processor::{Spent, spent};

/// Room for an answer; a longer one makes more.
const ANSWER_BYTES: usize = 16 << 10;

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
}

/// What one round took, from the first byte sent to the last byte received.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Timing {
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) per_second: f64,
    /// Processor time a request: of this process's other threads and of the client's own.
    pub(crate) server_us: f64,
    pub(crate) client_us: f64,
}

impl Load {
    /// Keeps `streams` requests in flight and times each. Call it on the first thread of the process.
    pub(crate) fn run(&self, target: &Target, streams: usize) -> Timing {
        let runtime = Builder::new_current_thread().enable_io().build().expect("a runtime");
        runtime.block_on(self.drive(target, streams))
    }

    async fn drive(&self, target: &Target, streams: usize) -> Timing {
        let request: Arc<[u8]> = self.request(target).into();
        let mut connections = Vec::with_capacity(streams);
        for _ in 0..streams {
            connections.push(connect(target).await);
        }
        let before = spent();
        let start = Instant::now();
        let until = start + self.seconds;
        let mut clients = JoinSet::new();
        for connection in connections {
            clients.spawn(ask(connection, Arc::clone(&request), self.is_streamed, until));
        }
        let mut times: Vec<f64> = clients.join_all().await.concat();
        let took = start.elapsed().as_secs_f64();
        let Spent { server, client } = spent().since(before);
        times.sort_by(f64::total_cmp);
        let count = times.len() as f64;
        let at = |share: f64| times[((times.len() - 1) as f64 * share) as usize];
        Timing {
            p50_ms: at(0.5),
            p99_ms: at(0.99),
            per_second: count / took,
            server_us: server.as_secs_f64() * 1e6 / count,
            client_us: client.as_secs_f64() * 1e6 / count,
        }
    }

    /// The bytes of a request, the same every time.
    fn request(&self, target: &Target) -> Vec<u8> {
        let body = json!({
            "model": target.model, "messages": [{"role": "user", "content": "hi"}], "stream": self.is_streamed,
            "max_tokens": self.tokens, "temperature": 0,
        })
        .to_string();
        format!(
            "POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
             authorization: Bearer {}\r\ncontent-length: {}\r\n\r\n{body}",
            target.key,
            body.len()
        )
        .into_bytes()
    }
}

/// Asks until the time is over; milliseconds of each exchange.
async fn ask(mut connection: TcpStream, request: Arc<[u8]>, is_streamed: bool, until: Instant) -> Vec<f64> {
    let (mut times, mut bytes, mut body) = (Vec::new(), Vec::with_capacity(ANSWER_BYTES), Vec::new());
    loop {
        let sent = Instant::now();
        if sent >= until {
            return times;
        }
        connection.write_all(&request).await.expect("the server keeps the connection");
        bytes.clear();
        let whole = loop {
            let count = connection.read_buf(&mut bytes).await.expect("the server keeps the connection");
            assert!(count > 0, "the server closed in the middle of an answer");
            if let Some(whole) = answer::read(&bytes, &mut body) {
                break whole;
            }
        };
        // Anything but a complete answer ends the benchmark: it would flatter the figures.
        let is_complete = whole.status == 200 && (!is_streamed || whole.is_done);
        assert!(is_complete, "{}: {}", whole.status, String::from_utf8_lossy(&body));
        times.push(sent.elapsed().as_secs_f64() * 1e3);
    }
}

async fn connect(target: &Target) -> TcpStream {
    let address = target.url.trim_start_matches("http://").trim_end_matches('/');
    let stream = TcpStream::connect(address).await.expect("the server listens");
    stream.set_nodelay(true).expect("a TCP socket");
    stream
}
