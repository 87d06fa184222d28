//! How the API server is asked: a seam, because governance itself speaks no HTTP.

use async_trait::async_trait;

use crate::governance::config::Secret;

/// Why the API server has not said anything about a token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{problem}")]
pub struct ReviewError {
    /// What went wrong; never the token.
    pub problem: String,
}

/// Asks the API server about tokens.
#[async_trait]
pub trait TokenReviews: Send + Sync + 'static {
    /// The body of its answer to this `TokenReview`, a JSON object that holds the token.
    ///
    /// # Errors
    /// [`ReviewError`] when there is no answer, or one that is no success.
    ///
    /// # Cancel
    /// Dropping the future gives the request up.
    async fn review(&self, request: &Secret) -> Result<Vec<u8>, ReviewError>;
}

/// Where no cluster is configured: there is nobody to ask.
#[derive(Debug)]
pub struct NoReviews;

#[async_trait]
impl TokenReviews for NoReviews {
    async fn review(&self, _request: &Secret) -> Result<Vec<u8>, ReviewError> {
        Err(ReviewError { problem: "this server asks no API server".into() })
    }
}
