//! What the durable store keeps: users, keys, tiers, models, open reservations and ledger rows, as plain values.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::attribution::Attribution;
use super::limits::Limit;

/// A user's stable internal id; names are for display.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct UserId(pub Uuid);

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The public part of an API key, by which it is looked up.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct KeyId(pub Arc<str>);

impl KeyId {
    /// As it stands in the key and in addresses.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::borrow::Borrow<str> for KeyId {
    fn borrow(&self) -> &str {
        &self.0
    }
}

impl From<&str> for KeyId {
    fn from(text: &str) -> Self {
        Self(text.into())
    }
}

impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Where a membership comes from; whoever gave it may take it away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum MembershipSource {
    /// An administrator of this server.
    Local,
    /// A claim of an identity provider.
    Federated,
}

impl MembershipSource {
    /// The word stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::Federated => "federated",
        }
    }
}

/// One group of one user.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Membership {
    /// The group's name.
    pub group: String,
    /// Who says so.
    pub source: MembershipSource,
}

/// The issuer of users that administrators make here.
pub const LOCAL_ISSUER: &str = "local";

/// A person or a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserRecord {
    /// The id that everything else refers to.
    pub id: UserId,
    /// Who vouches for the subject; [`LOCAL_ISSUER`] for users made here.
    pub issuer: String,
    /// The issuer's name for the user; unique within the issuer.
    pub subject: String,
    /// What people read.
    pub name: String,
    /// False: every credential of theirs is refused.
    pub active: bool,
    /// Microseconds since the Unix epoch.
    pub created_at_us: i64,
    /// Groups with their source, sorted.
    pub groups: Vec<Membership>,
    /// Short-lived tokens made at an earlier epoch are dead.
    pub token_epoch: u64,
    /// When the identity provider last said what the federated groups are; `None` for users without one.
    pub groups_at_us: Option<i64>,
}

impl UserRecord {
    /// Somebody who was deleted, as lists of their keys show them: no name of a user has a space.
    pub fn former(id: UserId, name: &str) -> Self {
        Self {
            id,
            issuer: String::new(),
            subject: String::new(),
            name: format!("{name} (deleted)"),
            active: false,
            created_at_us: 0,
            groups: Vec::new(),
            token_epoch: 0,
            groups_at_us: None,
        }
    }
}

/// The secret half of a signing key; it shows itself nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct SigningSeed([u8; 32]);

impl SigningSeed {
    /// Wraps a seed.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The seed itself: for signing and for the store, nothing else.
    pub fn reveal(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Debug for SigningSeed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

/// A key that signs short-lived tokens, or did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SigningKeyRecord {
    /// The thumbprint of its public half.
    pub id: String,
    /// What verifies (Ed25519).
    pub public: [u8; 32],
    /// What signs; gone once the key is retired.
    pub seed: Option<SigningSeed>,
    /// Microseconds since the Unix epoch.
    pub created_at_us: i64,
    /// When it stopped signing.
    pub retired_at_us: Option<i64>,
}

/// Who set the models and limits of a key; what an administrator set its owner cannot change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SetBy {
    /// The key's owner.
    Owner,
    /// An administrator.
    Administrator,
}

impl SetBy {
    /// The word stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Owner => "owner",
            Self::Administrator => "administrator",
        }
    }
}

/// Whether a key works.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyStatus {
    /// It does.
    Active,
    /// Not any more: its time is over.
    Expired,
    /// Not any more: somebody ended it.
    Revoked,
}

impl KeyStatus {
    /// The word used in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Expired => "expired",
            Self::Revoked => "revoked",
        }
    }
}

/// The secret that a rotation replaced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PreviousSecret {
    /// SHA-256 of the whole key as it was.
    pub digest: [u8; 32],
    /// First instant at which it no longer works.
    pub until_us: i64,
}

/// An API key as it is stored: never the secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyRecord {
    /// The look-up part.
    pub id: KeyId,
    /// SHA-256 of the whole key.
    pub digest: [u8; 32],
    /// What opened it before the last rotation, while the grace lasts.
    pub previous: Option<PreviousSecret>,
    /// Whose it is.
    pub user: UserId,
    /// What people read.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Free labels for searching and usage reports.
    pub labels: BTreeMap<String, String>,
    /// Only these models; `None`: whatever the tier gives.
    pub models: Option<Vec<String>>,
    /// Limits of this key alone, on top of the tier's.
    pub limits: Vec<Limit>,
    /// Who set `models` and `limits`.
    pub terms_by: SetBy,
    /// The key that made this one; its models and limits hold for this one, too.
    pub parent: Option<KeyId>,
    /// True for a key of short life that lists leave out and that is forgotten some time after its end.
    pub is_ephemeral: bool,
    /// True for the administrator's first key.
    pub is_bootstrap: bool,
    /// Microseconds since the Unix epoch.
    pub created_at_us: i64,
    /// First instant at which it no longer works; `None`: never.
    pub expires_at_us: Option<i64>,
    /// When it was revoked.
    pub revoked_at_us: Option<i64>,
    /// About when it was last used; written late.
    pub last_used_at_us: Option<i64>,
}

impl KeyRecord {
    /// Neither revoked nor expired.
    pub fn is_live(&self, now_us: i64) -> bool {
        self.status(now_us) == KeyStatus::Active
    }

    /// Whether it works at `now_us`.
    pub fn status(&self, now_us: i64) -> KeyStatus {
        if self.revoked_at_us.is_some() {
            KeyStatus::Revoked
        } else if self.expires_at_us.is_some_and(|end| end <= now_us) {
            KeyStatus::Expired
        } else {
            KeyStatus::Active
        }
    }
}

/// Who declared a tier; a declaration may delete only what it declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TierOrigin {
    /// The defaults, the API or the command line.
    Local,
    /// A tiers file of ours.
    File,
    /// A `tier-to-group-mapping` ConfigMap.
    ConfigMap,
}

impl TierOrigin {
    /// The word stored.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::File => "file",
            Self::ConfigMap => "configmap",
        }
    }
}

/// A tier: which groups, how important, how much.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TierRecord {
    /// Immutable resource name.
    pub name: String,
    /// What people read.
    pub display_name: String,
    /// What it is for.
    pub description: String,
    /// The highest level among a user's groups wins.
    pub level: u32,
    /// Whose members are in it.
    pub groups: Vec<String>,
    /// Empty: unlimited.
    pub limits: Vec<Limit>,
    /// Share of the scheduler relative to other tiers.
    pub weight: u32,
    /// Who declared it.
    pub origin: TierOrigin,
    /// Order of declaration; breaks ties of declared tiers.
    pub position: i64,
}

/// To whom a model is published.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Published {
    /// Every tier.
    All,
    /// These tiers; an empty list is nobody.
    Tiers(Vec<String>),
}

impl Published {
    /// True when members of `tier` may use the model.
    pub fn includes(&self, tier: &str) -> bool {
        match self {
            Self::All => true,
            Self::Tiers(names) => names.iter().any(|name| name == tier),
        }
    }
}

/// A model as governance knows it: a name, and who may use it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelRecord {
    /// The name requests use.
    pub name: String,
    /// What people read.
    pub display_name: String,
    /// Where it is loaded from.
    pub source: String,
    /// Who may use it.
    pub published: Published,
    /// Everything else the server wants to remember about it, JSON; governance does not look inside.
    pub settings: String,
    /// Microseconds since the Unix epoch.
    pub created_at_us: i64,
}

/// Tokens of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Prompt tokens really prefilled, cached ones included.
    pub prompt_tokens: u64,
    /// The part of them that came from the prefix cache.
    pub cached_tokens: u64,
    /// Tokens appended to sequences.
    pub completion_tokens: u64,
}

impl Usage {
    /// Prompt and completion together.
    pub fn total_tokens(&self) -> u64 {
        self.prompt_tokens.saturating_add(self.completion_tokens)
    }
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// The model finished.
    Completed,
    /// The client left or cancelled.
    Aborted,
    /// We reported an error; nothing is charged.
    Failed,
    /// A limit ended it cleanly.
    LimitReached,
    /// The process died; charged what the journal shows.
    Recovered,
}

impl Status {
    /// The word stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Completed => "completed",
            Self::Aborted => "aborted",
            Self::Failed => "failed",
            Self::LimitReached => "limit_reached",
            Self::Recovered => "recovered",
        }
    }

    /// False for an answer that was an error.
    pub fn is_charged(self) -> bool {
        self != Self::Failed
    }
}

impl FromStr for Status {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Completed, Self::Aborted, Self::Failed, Self::LimitReached, Self::Recovered]
            .into_iter()
            .find(|status| status.as_str() == text)
            .ok_or(())
    }
}

/// One charge in time: an admission, or one more block of completion tokens.
///
/// # Units
/// `at_us`: the limiter's steady clock; `requests`, tokens, nano-dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Extent {
    /// When it was charged.
    pub at_us: i64,
    /// Requests charged, 1 at admission.
    #[serde(default)]
    pub requests: u64,
    /// Prompt tokens charged.
    #[serde(default)]
    pub prompt_tokens: u64,
    /// Completion tokens charged.
    #[serde(default)]
    pub completion_tokens: u64,
    /// Money charged: reserved as the most it can cost, kept as what it did.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub cost_nano_usd: u64,
}

impl Extent {
    /// True when nothing is left of it.
    pub fn is_empty(&self) -> bool {
        self.requests == 0 && self.prompt_tokens == 0 && self.completion_tokens == 0 && self.cost_nano_usd == 0
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde calls it with a reference")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

/// What a request is charged when it is settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bill {
    /// 1, or 0 for a failed answer.
    pub requests: u64,
    /// Tokens.
    pub usage: Usage,
    /// Money.
    pub cost_nano_usd: u64,
}

/// Who asked for what; shared by a reservation and its ledger row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestRecord {
    /// Our own id (UUIDv7).
    pub id: Uuid,
    /// The client's id, a label only.
    pub client_request_id: Option<String>,
    /// Whose request.
    pub user: UserId,
    /// Their name at that time.
    pub user_name: String,
    /// With which key.
    pub key: Option<KeyId>,
    /// In which tier.
    pub tier: String,
    /// For which model.
    pub model: String,
    /// Through which endpoint.
    pub endpoint: String,
    /// When it was admitted, wall clock.
    pub admitted_at_us: i64,
    /// The price that was in force then; `None`: the model had none.
    pub price_version: Option<u64>,
    /// The user's groups and the key's labels at that time.
    pub attribution: Arc<Attribution>,
}

/// A request that is admitted and not settled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservationRecord {
    /// Who and what.
    pub request: Arc<RequestRecord>,
    /// What is reserved, by charge time.
    pub extents: Vec<Extent>,
    /// What was last journalled as used.
    pub progress: Usage,
}

/// One row of the ledger.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LedgerRecord {
    /// Who and what.
    pub request: Arc<RequestRecord>,
    /// What the answer used.
    pub usage: Usage,
    /// What it cost; rounded once, and never worked out again.
    pub cost_nano_usd: u64,
    /// How it ended.
    pub status: Status,
    /// When it was settled, wall clock.
    pub settled_at_us: i64,
    /// What was charged, by charge time; sums to the usage and the cost for charged rows, to nothing for failed ones.
    pub charged: Vec<Extent>,
}

impl From<Usage> for Bill {
    /// An answer of a model without a price.
    fn from(usage: Usage) -> Self {
        Self { requests: 1, usage, cost_nano_usd: 0 }
    }
}

impl LedgerRecord {
    /// What it charges on the counters.
    pub fn bill(&self) -> Bill {
        let requests = u64::from(self.status.is_charged());
        Bill { requests, usage: self.usage, cost_nano_usd: self.cost_nano_usd }
    }
}

/// Cuts `reserved` down to the bill: the earliest charges are spent first, so what is given back is the latest.
///
/// The result has one entry for each of `reserved`, in order.
pub fn spend<'a>(reserved: impl IntoIterator<Item = &'a Extent>, bill: Bill) -> impl Iterator<Item = Extent> {
    let mut left = bill;
    reserved.into_iter().map(move |extent| {
        let kept = Extent {
            at_us: extent.at_us,
            requests: extent.requests.min(left.requests),
            prompt_tokens: extent.prompt_tokens.min(left.usage.prompt_tokens),
            completion_tokens: extent.completion_tokens.min(left.usage.completion_tokens),
            cost_nano_usd: extent.cost_nano_usd.min(left.cost_nano_usd),
        };
        left.requests -= kept.requests;
        left.usage.prompt_tokens -= kept.prompt_tokens;
        left.usage.completion_tokens -= kept.completion_tokens;
        left.cost_nano_usd -= kept.cost_nano_usd;
        kept
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_comes_from_the_latest_charges() {
        let reserved = [
            Extent { at_us: 1, requests: 1, prompt_tokens: 10, completion_tokens: 256, cost_nano_usd: 50 },
            Extent { at_us: 2, completion_tokens: 256, cost_nano_usd: 40, ..Extent::default() },
            Extent { at_us: 3, completion_tokens: 256, cost_nano_usd: 40, ..Extent::default() },
        ];
        let usage = Usage { prompt_tokens: 10, cached_tokens: 4, completion_tokens: 300 };
        let spent: Vec<_> = spend(&reserved, Bill { requests: 1, usage, cost_nano_usd: 55 }).collect();
        let kept: Vec<_> = spent.iter().map(|extent| (extent.completion_tokens, extent.cost_nano_usd)).collect();
        assert_eq!(kept, [(256, 50), (44, 5), (0, 0)]);
        assert_eq!(spent[0].requests, 1);
    }

    #[test]
    fn an_answer_that_failed_keeps_nothing() {
        let reserved = [Extent { at_us: 1, requests: 1, prompt_tokens: 10, completion_tokens: 5, cost_nano_usd: 7 }];
        assert!(spend(&reserved, Bill::default()).all(|kept| kept.is_empty()));
    }

    #[test]
    fn journals_written_before_there_was_money_are_read() {
        let old: Extent = serde_json::from_str(r#"{"at_us":1,"requests":1,"prompt_tokens":2,"completion_tokens":3}"#)
            .expect("an old extent");
        assert_eq!((old.completion_tokens, old.cost_nano_usd), (3, 0));
        assert!(!serde_json::to_string(&old).expect("JSON").contains("cost"), "free requests store nothing more");
    }
}
