//! Every way governance says no.

use std::sync::Arc;
use std::time::Duration;

use super::limits::{Mode, Resource, Scope};
use super::ports::{CounterError, StoreError};

/// Why a credential opens nothing.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AuthFailure {
    /// Malformed, unknown, expired or revoked; which of them is nobody's business.
    #[error("the credential is not valid")]
    Invalid,
    /// Too many failures from this source; a valid credential would have passed.
    #[error("too many failed credentials from this source")]
    Throttled {
        /// When to try again.
        retry_after: Duration,
    },
    /// Nobody can tell at the moment.
    #[error("credentials cannot be checked at the moment")]
    Unavailable,
}

/// Where one limit stands.
#[derive(Debug, Clone, PartialEq)]
pub struct LimitStanding {
    /// The limit in words: `free: 5 requests / 2m`.
    pub limit: Arc<str>,
    /// What it counts.
    pub resource: Resource,
    /// Its window in words: `1m`, `day Europe/Paris`, `now`.
    pub window: Arc<str>,
    /// Who shares it.
    pub scope: Scope,
    /// What happens above it.
    pub mode: Mode,
    /// For which model alone.
    pub model: Option<Arc<str>>,
    /// True for quotas, whose thresholds are noticed: calendar periods, and money in any window.
    pub is_quota: bool,
    /// How much passes.
    pub amount: u64,
    /// Settled usage that counts.
    pub used: u64,
    /// Reserved and not settled.
    pub held: u64,
    /// What is left now.
    pub remaining: u64,
    /// Until everything counted now has left.
    pub reset_after: Duration,
    /// The same as a moment: microseconds since the Unix epoch.
    pub reset_at_us: i64,
}

impl LimitStanding {
    /// The highest of `thresholds`, in percent of the amount, that what is used has reached; quotas only.
    pub fn notice(&self, thresholds: &[u8]) -> Option<u8> {
        let used = u128::from(self.used) * 100;
        let is_reached = |percent: &u8| used >= u128::from(self.amount) * u128::from(*percent);
        thresholds.iter().copied().filter(is_reached).max().filter(|_| self.is_quota)
    }

    /// True for a soft limit that is exceeded.
    pub fn is_over_soft(&self) -> bool {
        self.mode == Mode::Soft && self.used + self.held > self.amount
    }
}

/// A limit said no.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("limit `{limit}` has {used} used and was asked for {requested}")]
pub struct Denied {
    /// For machines: `requests_exceeded`, `tokens_exceeded`, ...
    pub reason: &'static str,
    /// The limit that refused, in words.
    pub limit: Arc<str>,
    /// What it counts.
    pub resource: Resource,
    /// Its window in words.
    pub window: Arc<str>,
    /// Who shares it.
    pub scope: Scope,
    /// What is used and held.
    pub used: u64,
    /// What was asked for, at least.
    pub requested: u64,
    /// Waiting exactly so long works if nothing else is admitted meanwhile; the longest of all limits that refused.
    /// `None`: it can never fit.
    pub retry_after: Option<Duration>,
    /// True when the wait is a guess (concurrency).
    pub is_estimate: bool,
    /// Where every limit stands that applies.
    pub standing: Vec<LimitStanding>,
}

/// Why a request is not admitted.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Refusal {
    /// A limit refused.
    #[error(transparent)]
    Denied(Box<Denied>),
    /// The model does not exist for the caller's tier, or the key does not allow it.
    #[error("the tier may not use this model")]
    ModelForbidden,
    /// No tier holds any group of the caller.
    #[error("no tier matches the groups of the user")]
    NoTier,
    /// Limits or ledger cannot be reached: nothing is served uncounted.
    #[error("limits cannot be checked at the moment")]
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
}

/// Why a change or a look-up of keys, users, tiers or models did not work.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ServiceError {
    /// There is no such thing, or not for this caller.
    #[error("{0} not found")]
    NotFound(&'static str),
    /// It clashes with what is there.
    #[error("{0}")]
    Conflict(String),
    /// A value is wrong.
    #[error("{message}")]
    Invalid {
        /// Which field.
        param: &'static str,
        /// What is wrong with it.
        message: String,
    },
    /// The caller may not do this.
    #[error("{0}")]
    Forbidden(String),
    /// The caller has changed too much lately.
    #[error("too many changes to keys and tokens")]
    TooManyChanges {
        /// When the next one is taken.
        retry_after: Duration,
    },
    /// The store cannot be used at the moment.
    #[error("the store cannot be used at the moment")]
    Unavailable(#[source] StoreError),
}

impl ServiceError {
    /// A wrong value of one field.
    pub fn invalid(param: &'static str, message: impl ToString) -> Self {
        Self::Invalid { param, message: message.to_string() }
    }
}

impl From<StoreError> for ServiceError {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Exists { operation } => Self::Conflict(format!("cannot {operation}: it exists already")),
            StoreError::TooMany { .. } => {
                Self::invalid("group_by", format!("{error}: ask for a shorter time, longer buckets or fewer groups"))
            }
            other => Self::Unavailable(other),
        }
    }
}

/// Why standings cannot be told.
pub type StandingError = CounterError;

/// Why governance cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store failed.
    #[error("cannot read the policy at start")]
    Store(#[from] StoreError),
    /// The counters failed.
    #[error("cannot rebuild the counters at start")]
    Counters(#[from] CounterError),
    /// The configured bootstrap key is too weak.
    #[error(
        "the admin key must be a well-formed `sk-mg_` key or a secret of at least 24 visible ASCII characters that is not shaped like a token"
    )]
    WeakAdminKey,
    /// A configured bootstrap key is somebody's key already.
    #[error("the admin key is in use as another user's key")]
    AdminKeyTaken,
    /// The operating system gives no random numbers.
    #[error("no random numbers from the operating system: {0}")]
    Random(String),
}
