//! Fetches the documents of identity providers over HTTP, within bounds.

use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;
use futures::StreamExt as _;

use crate::governance::{DocumentError, Documents};

/// A discovery document or a JWKS has a few KiB.
const BYTES_MAX: usize = 256 << 10;
/// Connecting, asking and reading together: a request with a token waits for it.
const TIME_MAX: Duration = Duration::from_secs(5);

/// The one HTTP client for documents: no redirects, no proxy, no cookies.
#[derive(Debug, Clone)]
pub struct HttpDocuments(reqwest::Client);

impl HttpDocuments {
    /// A client that fetches nothing yet.
    ///
    /// # Errors
    /// The system's certificates cannot be read.
    pub fn new() -> anyhow::Result<Self> {
        // Fails only when a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            .timeout(TIME_MAX)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("millgate/", env!("CARGO_PKG_VERSION")))
            .build();
        client.map(Self).context("cannot prepare an HTTP client for identity providers")
    }
}

#[async_trait]
impl Documents for HttpDocuments {
    async fn get(&self, url: &str) -> Result<Vec<u8>, DocumentError> {
        let failed = |problem: String| DocumentError { url: url.to_owned(), problem };
        let request = self.0.get(url).header("accept", "application/json");
        let answer = request.send().await.map_err(|error| failed(cause(error)))?;
        if !answer.status().is_success() {
            return Err(failed(format!("it answers {}", answer.status())));
        }
        let mut body = Vec::new();
        let mut pieces = answer.bytes_stream();
        while let Some(piece) = pieces.next().await {
            body.extend_from_slice(&piece.map_err(|error| failed(cause(error)))?);
            if body.len() > BYTES_MAX {
                return Err(failed(format!("it is larger than {BYTES_MAX} bytes")));
            }
        }
        Ok(body)
    }
}

/// The system's own words; the layers between say nothing that helps.
fn cause(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return format!("no answer within {} s", TIME_MAX.as_secs());
    }
    anyhow::Error::new(error.without_url()).root_cause().to_string()
}
