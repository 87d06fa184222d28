//! Fetches the documents of identity providers over HTTP, within bounds.

use std::time::Duration;

use anyhow::Context as _;
use async_trait::async_trait;

use super::answer;
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
        let answer = request.send().await.map_err(|error| failed(answer::cause(error)))?;
        if !answer.status().is_success() {
            return Err(failed(format!("it answers {}", answer.status())));
        }
        answer::body(answer, BYTES_MAX).await.map_err(failed)
    }
}
