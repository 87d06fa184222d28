//! The caller's own things: keys, standing, and which tier groups get.
pub(super) mod keys;
pub(super) mod me;
pub(super) mod tiers;
pub(super) mod tokens;

pub(crate) use keys::{create_key, get_key, issued_view, key_view, list_keys, revoke_key, take_new_key};
pub(crate) use me::me;
pub(crate) use tiers::{limit_views, lookup_tier};
pub(crate) use tokens::{create_token, jwks, revoke_tokens};
