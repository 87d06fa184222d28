//! Talks to a running server, and turns what it answers into errors a person can act on.

use std::time::Duration;

use anyhow::{Context as _, Result};
use futures::StreamExt as _;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::Value;

use crate::config::Environment;

use super::args::Remote;
use super::fail::Hinted;
use super::sse::EventReader;

const DEFAULT_URL: &str = "http://127.0.0.1:8080";

/// A server and the key to talk to it with.
#[derive(Clone)]
pub(super) struct Client {
    http: reqwest::Client,
    base: String,
    key: Option<String>,
}

impl Client {
    /// A client for the server the options name, else the environment, else the one on this machine.
    pub(super) fn new(remote: &Remote, environment: &Environment) -> Result<Self> {
        Self::with_idle_connections(remote, environment, usize::MAX)
    }

    /// One that makes a connection for every request: what a benchmark wants, so that a server which ends connections
    /// while another request is on its way fails none.
    pub(super) fn unpooled(remote: &Remote, environment: &Environment) -> Result<Self> {
        Self::with_idle_connections(remote, environment, 0)
    }

    fn with_idle_connections(remote: &Remote, environment: &Environment, most: usize) -> Result<Self> {
        // Fails only when a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .connect_timeout(Duration::from_secs(5))
            .tcp_nodelay(true)
            .pool_max_idle_per_host(most)
            .build()
            .context("cannot prepare an HTTP client")?;
        let base = remote.url.clone().or_else(|| environment.url.clone()).unwrap_or_else(|| DEFAULT_URL.into());
        let base = if base.contains("://") { base } else { format!("http://{base}") };
        let base = base.trim_end_matches('/').trim_end_matches("/v1").to_owned();
        let key = remote.key.clone().or_else(|| environment.api_key.clone());
        Ok(Self { http, base, key })
    }

    /// The server's address, without `/v1`.
    pub(super) fn base(&self) -> &str {
        &self.base
    }

    /// A GET that answers JSON.
    pub(super) async fn get(&self, path: &str) -> Result<Value> {
        self.json(Method::GET, path, None).await
    }

    /// A request that answers JSON.
    ///
    /// # Errors
    /// No server, a refusal in the server's words, or an answer that is not JSON.
    pub(super) async fn json(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Value> {
        let response = self.send(method, path, body).await?;
        response.json().await.with_context(|| format!("`{}{path}` did not answer JSON", self.base))
    }

    /// A GET that answers text.
    ///
    /// # Errors
    /// As [`Client::json`].
    pub(super) async fn text(&self, path: &str) -> Result<String> {
        let response = self.send(Method::GET, path, None).await?;
        response.text().await.context("the answer broke off")
    }

    /// A request whose answer has no body.
    ///
    /// # Errors
    /// As [`Client::json`].
    pub(super) async fn bare(&self, method: Method, path: &str) -> Result<()> {
        self.send(method, path, None).await.map(drop)
    }

    /// A streamed POST; `on_event` gets the data of each event until `[DONE]` and says whether to go on.
    ///
    /// # Errors
    /// As [`Client::json`]; also when an event carries an error or the stream breaks off before `[DONE]`.
    pub(super) async fn stream(
        &self,
        path: &str,
        body: &Value,
        mut on_event: impl FnMut(Value) -> Result<bool>,
    ) -> Result<()> {
        let response = self.send(Method::POST, path, Some(body)).await?;
        let mut bytes = response.bytes_stream();
        let mut reader = EventReader::default();
        while let Some(piece) = bytes.next().await {
            for data in reader.push(&piece.context("the answer broke off")?) {
                if data == "[DONE]" {
                    return Ok(());
                }
                let event: Value = serde_json::from_str(&data).context("the server sent an event that is not JSON")?;
                if let Some(error) = event.get("error") {
                    return Err(anyhow::anyhow!("{}", error_message(error).unwrap_or("the server reported an error")));
                }
                if !on_event(event)? {
                    return Ok(());
                }
            }
        }
        Err(anyhow::anyhow!("the answer ended before it was complete"))
    }

    /// All pages of a list of ours.
    pub(super) async fn list(&self, path: &str) -> Result<Vec<Value>> {
        let mut all = Vec::new();
        let mut cursor: Option<String> = None;
        loop {
            let separator = if path.contains('?') { '&' } else { '?' };
            let page = match &cursor {
                Some(cursor) => self.get(&format!("{path}{separator}cursor={cursor}")).await?,
                None => self.get(path).await?,
            };
            all.extend(page["data"].as_array().cloned().unwrap_or_default());
            cursor = page["next_cursor"].as_str().map(str::to_owned).filter(|next| Some(next) != cursor.as_ref());
            if cursor.is_none() || page["has_more"] != true {
                return Ok(all);
            }
        }
    }

    async fn send(&self, method: Method, path: &str, body: Option<&Value>) -> Result<Response> {
        let mut request: RequestBuilder = self.http.request(method, format!("{}{path}", self.base));
        if let Some(key) = &self.key {
            request = request.bearer_auth(key);
        }
        if let Some(body) = body {
            request = request.json(body);
        }
        let response = request.send().await.map_err(|error| self.unreachable(error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refused(response).await)
    }

    fn unreachable(&self, error: reqwest::Error) -> anyhow::Error {
        let hint = if error.is_builder() {
            "write the address like http://127.0.0.1:8080"
        } else {
            "start one with `millgate serve`, or name it with --url"
        };
        // The layers between say nothing that helps; the system's own words do.
        let cause = anyhow::Error::new(error.without_url()).root_cause().to_string();
        anyhow::anyhow!(cause).context(Hinted::context(format!("no server answers at {}", self.base), hint))
    }

    async fn refused(&self, response: Response) -> anyhow::Error {
        let status = response.status();
        let wait = response.headers().get("retry-after").and_then(|value| value.to_str().ok()).map(str::to_owned);
        let text = response.text().await.unwrap_or_default();
        let body: Value = serde_json::from_str(&text).unwrap_or_default();
        let message = error_message(&body["error"]).unwrap_or("the server refused without a reason");
        let message = format!("{message} ({})", status.as_u16());
        let hint = match (status, &self.key) {
            (StatusCode::UNAUTHORIZED, None) => {
                "give a key with --key or MILLGATE_API_KEY; the first start of the server printed one".into()
            }
            (StatusCode::UNAUTHORIZED, Some(_)) => {
                "the key is wrong, expired or revoked; `millgate key create --admin` on the stopped server makes a new one".into()
            }
            (StatusCode::FORBIDDEN, _) => "administration needs a key of a member of millgate-admins; models need a tier they are published to".into(),
            (StatusCode::NOT_FOUND, _) => match listing(&message) {
                Some(hint) => hint.into(),
                None => return anyhow::anyhow!(message),
            },
            (StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE, _) => match wait {
                Some(seconds) => format!("try again in {seconds} s"),
                None => "waiting does not help; an administrator can raise the limit".into(),
            },
            _ => return anyhow::anyhow!(message),
        };
        Hinted::error(message, hint)
    }
}

/// Where to look for what the server's `message` says is not there.
fn listing(message: &str) -> Option<&'static str> {
    const LISTS: [(&str, &str); 5] = [
        ("API key ", "`millgate key list` shows your keys; with --all an administrator sees everybody's"),
        ("Model ", "`millgate model list` shows what this key may use"),
        ("Signing key ", "`millgate token keys` shows the keys that sign tokens"),
        ("Tier ", "`millgate tier list` shows the tiers there are"),
        ("User ", "`millgate user list` shows the users there are"),
    ];
    LISTS.iter().find(|(thing, _)| message.starts_with(thing)).map(|(_, hint)| *hint)
}

fn error_message(error: &Value) -> Option<&str> {
    error["message"].as_str()
}

/// A path segment with everything but plain characters escaped.
pub(super) fn segment(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_asked_for_something_unknown_is_shown_the_list_of_such_things() {
        for (message, command) in [
            ("Tier not found (404)", "`millgate tier list`"),
            ("User not found (404)", "`millgate user list`"),
            ("API key not found (404)", "`millgate key list`"),
            ("Signing key not found (404)", "`millgate token keys`"),
            ("Model not found (404)", "`millgate model list`"),
        ] {
            assert!(listing(message).is_some_and(|hint| hint.starts_with(command)), "{message}");
        }
        assert_eq!(listing("Route not found (404)"), None);
    }

    #[test]
    fn a_path_segment_cannot_break_out() {
        assert_eq!(segment("a/b?c d"), "a%2Fb%3Fc%20d");
    }

    #[test]
    fn the_address_may_be_written_in_several_ways() {
        for url in ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/", "h:1"] {
            let remote = Remote { url: Some(url.into()), key: None };
            assert_eq!(Client::new(&remote, &Environment::default()).unwrap().base(), "http://h:1", "{url}");
        }
    }
}
