//! Tokens of identity providers: which are believed, and what they say about a user.

mod claims;
mod config;
mod documents;
mod jwks;
mod provider;

pub(super) use config::is_safe_address;
pub use config::{OidcIssuer, TokenAlgorithm};
pub use documents::{DocumentError, Documents, NoDocuments};
pub(super) use provider::{Provider, ProviderTask};
