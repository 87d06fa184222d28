//! Documents about API keys.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};

use super::models::AllWord;
use super::shared::{AnyModelName, KeyLimitInput, Limit, Moment};

/// What a new key should be.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKey {
    /// What people read. An ephemeral key needs none.
    #[schema(min_length = 1, max_length = 128, example = "notebook")]
    name: Option<String>,
    description: Option<String>,
    /// `30s`, `15m`, `4h`, `90d`; 90 days when absent, an hour for an ephemeral key.
    #[schema(pattern = "^[0-9]+[smhd]$", example = "1h")]
    expires_in: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    models: Option<KeyModels>,
    /// Limits of this key and the keys it makes together.
    limits: Option<Vec<KeyLimitInput>>,
    /// A key of at most an hour that lists leave out, forgotten some time after its end.
    ephemeral: Option<bool>,
}

/// A key for a user.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct NewKeyFor {
    /// Whose key it will be.
    #[schema(min_length = 1, example = "ann")]
    user: String,
    /// What people read. An ephemeral key needs none.
    #[schema(min_length = 1, max_length = 128, example = "notebook")]
    name: Option<String>,
    description: Option<String>,
    /// `30s`, `15m`, `4h`, `90d`; 90 days when absent, an hour for an ephemeral key.
    #[schema(pattern = "^[0-9]+[smhd]$", example = "1h")]
    expires_in: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    models: Option<KeyModels>,
    /// The owner cannot change these.
    limits: Option<Vec<KeyLimitInput>>,
    ephemeral: Option<bool>,
}

/// Fields of a key to change.
#[derive(ToSchema)]
pub(crate) struct KeyChange {
    #[schema(min_length = 1, max_length = 128)]
    name: Option<String>,
    /// Empty takes it away.
    description: Option<String>,
    /// Take the place of all labels.
    labels: Option<BTreeMap<String, String>>,
    models: Option<KeyModels>,
    /// Take the place of all limits of the key.
    limits: Option<Vec<KeyLimitInput>>,
}

/// Only these models, also ones that do not exist yet; `"all"`: whatever the tier gives.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum KeyModels {
    All(AllWord),
    Some(Vec<AnyModelName>),
}

/// How a key gets its new secret.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rotation {
    /// How long the old secret works: a day when absent, at most 30; `0s`: no longer.
    #[schema(pattern = "^[0-9]+[smhd]$", example = "10m")]
    grace: Option<String>,
}

/// Which keys to revoke: all that meet every condition, of which there must be one.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevokeMany {
    /// Those with this label: `team=web`, or `team` for any value.
    #[schema(example = "run=7")]
    label: Option<String>,
    /// Those made before: RFC 3339 or seconds since the Unix epoch.
    created_before: Option<Moment>,
    /// Those of this user; of anybody but oneself for administrators only.
    user: Option<String>,
    /// Tell which and change nothing.
    #[schema(example = true)]
    dry_run: Option<bool>,
}

/// The keys that were revoked, or would be.
#[derive(ToSchema)]
pub(crate) struct BulkRevocation {
    #[schema(inline)]
    object: BulkWord,
    dry_run: bool,
    count: u64,
    /// More keys fit than one request takes: ask again.
    has_more: bool,
    data: Vec<Key>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BulkWord {
    BulkRevocation,
}

/// Which keys a list shows, and in which order.
#[derive(IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct KeyQuery {
    /// `active`, `expired`, `revoked`, or several with commas.
    #[param(pattern = "^(active|expired|revoked)(,(active|expired|revoked))*$")]
    status: Option<String>,
    /// Only with this in the name.
    name: Option<String>,
    /// Only with this label: `team=web`, or `team` for any value. May be repeated.
    label: Option<String>,
    /// Only made then or later: RFC 3339 or seconds since the Unix epoch.
    created_after: Option<Moment>,
    /// Only made earlier.
    created_before: Option<Moment>,
    /// Ephemeral keys, too.
    include_ephemeral: Option<bool>,
    /// `created_at` when absent.
    sort: Option<KeySort>,
    /// Largest first when absent, by name smallest first.
    order: Option<SortOrder>,
    /// Entries a page.
    #[param(minimum = 1, maximum = 1000)]
    limit: Option<u32>,
    /// `next_cursor` of the page before, in the same order.
    #[param(min_length = 1)]
    cursor: Option<String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KeySort {
    CreatedAt,
    ExpiresAt,
    LastUsedAt,
    Name,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SortOrder {
    Asc,
    Desc,
}

/// A key without its secret.
#[derive(ToSchema)]
pub(crate) struct Key {
    #[schema(inline)]
    object: KeyWord,
    id: String,
    name: String,
    /// What may be shown to tell keys apart.
    prefix: String,
    #[schema(inline)]
    status: KeyStatus,
    /// Whose it is.
    user: String,
    #[schema(required)]
    description: Option<String>,
    labels: BTreeMap<String, String>,
    /// Only these; `null`: all that the tier may use.
    #[schema(required)]
    models: Option<Vec<String>>,
    limits: Vec<Limit>,
    limits_set_by: LimitsSetBy,
    /// The key that made it.
    #[schema(required)]
    parent: Option<String>,
    ephemeral: bool,
    #[schema(format = DateTime)]
    created_at: String,
    #[schema(required, format = DateTime)]
    expires_at: Option<String>,
    #[schema(required, format = DateTime)]
    revoked_at: Option<String>,
    #[schema(required, format = DateTime)]
    last_used_at: Option<String>,
    /// Until when the secret before the last rotation works; `null`: it does not.
    #[schema(required, format = DateTime)]
    previous_secret_until: Option<String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeyWord {
    ApiKey,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum KeyStatus {
    Active,
    Expired,
    Revoked,
}

/// Who set models and limits of a key: what an administrator set the owner cannot change.
#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum LimitsSetBy {
    Owner,
    Administrator,
}

/// A key just made or rotated, with its secret, which is shown here and never again.
#[derive(ToSchema)]
pub(crate) struct IssuedKey {
    #[serde(flatten)]
    metadata: Key,
    /// The secret.
    key: String,
}
