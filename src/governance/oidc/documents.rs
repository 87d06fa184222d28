//! How a provider's documents are fetched: a seam, because governance itself speaks no HTTP.

use async_trait::async_trait;

/// Why a document could not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot fetch `{url}`: {problem}")]
pub struct DocumentError {
    /// Where it should have been.
    pub url: String,
    /// What went wrong.
    pub problem: String,
}

/// Fetches small documents, within bounds of time and size, following no redirects.
#[async_trait]
pub trait Documents: Send + Sync + 'static {
    /// The body of a successful answer to a GET.
    ///
    /// # Errors
    /// [`DocumentError`] when there is no answer in time, it is no success, or it is too large.
    async fn get(&self, url: &str) -> Result<Vec<u8>, DocumentError>;
}

/// Where no provider is configured: there is nothing to fetch.
#[derive(Debug)]
pub struct NoDocuments;

#[async_trait]
impl Documents for NoDocuments {
    async fn get(&self, url: &str) -> Result<Vec<u8>, DocumentError> {
        Err(DocumentError { url: url.to_owned(), problem: "this server fetches no documents".into() })
    }
}
