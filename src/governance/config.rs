//! What an operator can set about identity and limits.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::kubernetes::KubernetesCluster;
use super::limits::Limit;
use super::oidc::OidcIssuer;
use super::tiers;

/// A secret that never shows itself in logs or errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a secret.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The secret itself; for hashing and for the one moment it is shown.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// Settings of `governance`.
#[derive(Debug, Clone)]
pub struct Config {
    /// The administrator's bootstrap key: a well-formed `sk-mg_` key, or any secret of 24 characters or more.
    ///
    /// Default: none; the first start then makes one and returns it once.
    pub admin_key: Option<Secret>,
    /// How long a key lives when its maker does not say. Default: 90 days.
    pub key_default_life: Duration,
    /// The longest life a key may be given. Default: 365 days.
    pub key_longest_life: Duration,
    /// Keys of one user that are neither revoked nor expired. Default: 50, enough for people, too few for mischief.
    pub keys_max_per_user: u64,
    /// Failed credentials a source may present in a minute before it is told to wait. Default: 120.
    pub failed_credentials_per_minute: u32,
    /// How often the policy version is read from the store, for changes made by others. Default: 250 ms.
    pub policy_poll: Duration,
    /// How long cached identities are good when the store cannot be read. Default: 60 s.
    pub stale_max: Duration,
    /// How often "last used" of keys is written. Default: 60 s, so that no request costs a write.
    pub last_used_every: Duration,
    /// Completion tokens a sequence reserves at a time when the request names no maximum. Default: 256.
    pub block_tokens: u64,
    /// New tokens after which a request's progress is journalled. Default: 32; with the one in flight at most 64 behind.
    pub journal_every_tokens: u64,
    /// Whose service accounts' namespaces, `{instance}-tier-{name}`, belong to the tiers. Default: `maas-default-gateway`.
    pub instance: Arc<str>,
    /// How long a short-lived token lives when its maker does not say. Default: 4 h.
    pub token_default_life: Duration,
    /// The longest life a short-lived token may be given; never above 24 h. Default: 24 h.
    pub token_longest_life: Duration,
    /// How long one key signs tokens before the next takes over. Default: 30 days.
    pub signing_key_life: Duration,
    /// How long the word of an identity provider about a user's groups counts. Default: 7 days.
    pub groups_max_age: Duration,
    /// Identity providers whose tokens are believed. Default: none.
    pub oidc: Vec<OidcIssuer>,
    /// The cluster whose tokens are believed. Default: none.
    pub kubernetes: Option<KubernetesCluster>,
    /// Limits of a tier that a ConfigMap brings for the first time. Default: those of the tier `free`.
    pub new_tier_limits: Vec<Limit>,
    /// Percents of a quota whose reaching is told, sorted. Default: 50, 80, 95.
    pub notice_thresholds: Vec<u8>,
    /// True when somebody is sent notices; they are then kept until they are delivered.
    pub has_notice_receiver: bool,
}

impl Default for Config {
    fn default() -> Self {
        const DAY: u64 = 86_400;
        Self {
            admin_key: None,
            key_default_life: Duration::from_secs(90 * DAY),
            key_longest_life: Duration::from_secs(365 * DAY),
            keys_max_per_user: 50,
            failed_credentials_per_minute: 120,
            policy_poll: Duration::from_millis(250),
            stale_max: Duration::from_secs(60),
            last_used_every: Duration::from_secs(60),
            block_tokens: 256,
            journal_every_tokens: 32,
            instance: tiers::INSTANCE.into(),
            token_default_life: Duration::from_secs(4 * 3600),
            token_longest_life: Duration::from_secs(DAY),
            signing_key_life: Duration::from_secs(30 * DAY),
            groups_max_age: Duration::from_secs(7 * DAY),
            oidc: Vec::new(),
            kubernetes: None,
            new_tier_limits: tiers::free_limits(),
            notice_thresholds: vec![50, 80, 95],
            has_notice_receiver: false,
        }
    }
}
