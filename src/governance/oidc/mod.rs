//! Tokens of identity providers: which are believed, what they say about a user, and the user they stand for here.

mod claims;
mod config;
mod documents;
mod jwks;
mod login;
mod provider;

pub use config::{OidcIssuer, TokenAlgorithm};
pub use documents::{DocumentError, Documents, NoDocuments};
pub(super) use login::log_in;
pub(super) use provider::{Provider, Verdict};
