//! The client of both: `millgate bench`, and one bare request for the time of a first token.

use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde_json::{Value, json};

use super::rows::Work;

/// What `millgate bench --json` tells; times in milliseconds.
#[derive(Debug, Deserialize)]
pub(crate) struct Report {
    requests: u64,
    failed: u64,
    first_failure: Option<String>,
    prompt_tokens: u64,
    cached_tokens: u64,
    completion_tokens: u64,
    output_tokens_per_s: f64,
    ttft_ms: Percentiles,
    latency_ms: Percentiles,
}

#[derive(Debug, Deserialize)]
struct Percentiles {
    p50: f64,
    p95: f64,
    mean: f64,
}

impl Report {
    /// Output tokens a second of all streams, their prefill included.
    pub(crate) fn output_rate(&self) -> f64 {
        self.output_tokens_per_s
    }

    /// Tokens a second of one stream after its first.
    pub(crate) fn decode_rate(&self) -> f64 {
        let each = self.completion_tokens as f64 / self.requests as f64;
        (each - 1.0) * 1000.0 / (self.latency_ms.mean - self.ttft_ms.mean)
    }

    /// Prompt tokens a second of one stream, up to its first output token.
    pub(crate) fn prompt_rate(&self) -> f64 {
        (self.prompt_tokens - self.cached_tokens) as f64 / self.requests as f64 * 1000.0 / self.ttft_ms.p50
    }

    /// The slowest twentieth's time to the first token.
    pub(crate) fn ttft_p95(&self) -> f64 {
        self.ttft_ms.p95
    }
}

/// Puts a row's work on the server at `url`.
///
/// # Errors
/// The client fails, or one of its requests did.
pub(crate) fn bench(url: &str, key: &str, work: &Work) -> Result<Report> {
    let output = Command::new(env!("CARGO_BIN_EXE_millgate"))
        .args(["bench", "--json", "--seed", "7", "--model", "m"])
        .args(["--clients", &work.clients.to_string(), "--requests", &work.requests.to_string()])
        .args(["--prompt-tokens", &work.prompt_tokens.to_string()])
        .args(["--output-tokens", &work.output_tokens.to_string()])
        .args(["--same-prefix", &work.same_prefix.to_string()])
        .envs([("MILLGATE_URL", url), ("MILLGATE_API_KEY", key)])
        .stderr(Stdio::inherit())
        .output()
        .context("start millgate bench")?;
    ensure!(output.status.success(), "millgate bench: {}", output.status);
    let report: Report = serde_json::from_slice(&output.stdout).context("read the report of millgate bench")?;
    let failure = report.first_failure.as_deref().unwrap_or_default();
    ensure!(report.failed == 0, "{} requests failed, the first: {failure}", report.failed);
    let wanted = (work.requests * work.output_tokens) as u64;
    ensure!(report.completion_tokens == wanted, "{} tokens came out in place of {wanted}", report.completion_tokens);
    Ok(report)
}

/// Whether the server answers a chat request with text; asks again until `patience` is over.
///
/// # Errors
/// It never did.
pub(crate) async fn first_token(client: &reqwest::Client, url: &str, key: &str, patience: Duration) -> Result<()> {
    let body = json!({
        "model": "m", "messages": [{"role": "user", "content": "Hello there"}],
        "stream": true, "max_tokens": 4, "temperature": 0.0, "ignore_eos": true,
    })
    .to_string();
    let asking = async {
        loop {
            let request = client.post(format!("{url}/v1/chat/completions")).bearer_auth(key).body(body.clone());
            match request.header("content-type", "application/json").send().await {
                Ok(response) if response.status().is_success() => return has_text(response).await,
                _ => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        }
    };
    tokio::time::timeout(patience, asking).await.context("no answer in time")?
}

async fn has_text(mut response: reqwest::Response) -> Result<()> {
    let mut text = String::new();
    while let Some(chunk) = response.chunk().await.context("read the answer")? {
        text += &String::from_utf8_lossy(&chunk);
        let mut events = text.lines().filter_map(|line| line.strip_prefix("data: "));
        let is_text = |event: &Value| event["choices"][0]["delta"]["content"].as_str().is_some_and(|t| !t.is_empty());
        if events.any(|event| serde_json::from_str(event).is_ok_and(|event| is_text(&event))) {
            return Ok(());
        }
    }
    anyhow::bail!("the answer ended without text: {text}")
}
