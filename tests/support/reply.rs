//! An answer of the test server, with the questions tests ask of it.

use std::time::Duration;

use reqwest::Response;
use reqwest::header::HeaderMap;
use serde_json::Value;

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: String,
}

impl Reply {
    /// Reads an answer to its end.
    pub(crate) async fn read(response: Response) -> Self {
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Self { status, headers, body: response.text().await.unwrap() }
    }

    /// The body as JSON.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.body))
    }

    /// A header as text; empty when it is not there.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", |value| value.to_str().unwrap())
    }

    /// The message of an error.
    pub(crate) fn message(&self) -> String {
        self.json()["error"]["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The field an error blames.
    pub(crate) fn param(&self) -> Value {
        self.json()["error"]["param"].clone()
    }

    /// `Retry-After`, to the millisecond.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        self.headers.get("retry-after-ms")?.to_str().ok()?.parse().ok().map(Duration::from_millis)
    }

    /// Status and body in one text, with ids taken out.
    pub(crate) fn status_and_body(&self) -> String {
        format!("{} {}", self.status, without_ids(&self.body))
    }

    /// The data of each server-sent event.
    pub(crate) fn events(&self) -> Vec<&str> {
        self.body.split_terminator("\n\n").map(|event| event.strip_prefix("data: ").unwrap()).collect()
    }

    /// The text of the first choice.
    pub(crate) fn text(&self) -> String {
        let choice = &self.json()["choices"][0];
        choice["message"]["content"].as_str().or(choice["text"].as_str()).unwrap().to_owned()
    }

    /// `usage.total_tokens`.
    pub(crate) fn total_tokens(&self) -> u64 {
        self.json()["usage"]["total_tokens"].as_u64().unwrap()
    }
}

/// A body whose generated ids are replaced by stars.
pub(crate) fn without_ids(body: &str) -> String {
    let mut shown = String::new();
    let mut rest = body;
    while let Some(at) = ["chatcmpl-", "\"cmpl-"].iter().filter_map(|mark| Some(rest.find(mark)? + mark.len())).min() {
        shown.push_str(&rest[..at]);
        shown.push('*');
        rest = rest[at..].trim_start_matches(|letter: char| letter.is_ascii_hexdigit());
    }
    shown.push_str(rest);
    shown
}
