//! The caller's own things: keys, standing, and which tier groups get.
pub(super) mod key_changes;
mod key_fields;
pub(super) mod keys;
pub(super) mod me;
pub(super) mod tiers;
pub(super) mod tokens;

pub(crate) use key_changes::{bulk_revoke, patch_key, rotate_key};
pub(crate) use key_fields::{
    bulk_view, issued_view, key_view, take_grace, take_key_patch, take_key_search, take_new_key, take_revoke_many,
};
pub(crate) use keys::{create_key, get_key, list_keys, revoke_key};
pub(crate) use me::me;
pub(crate) use tiers::{limit_views, lookup_tier};
pub(crate) use tokens::{create_token, jwks, revoke_tokens};
