//! The two seams to storage: [`Records`] keeps what must survive, [`Counters`] counts what is used right now.
//!
//! Every implementation passes the contract suite in `tests/store_contract.rs`.

use std::sync::Arc;

use async_trait::async_trait;
use serde_json::Value;
use uuid::Uuid;

use super::audit::{AuditFilter, AuditRow, Author};
use super::calendar::Bounds;
use super::clock::Clock;
pub use super::commit::{Commit, Writing};
pub use super::key_search::{CursorValue, KeyCursor, KeyFilter, KeySort};
use super::limits::{Limit, Period, Resource, Scope, Window, Zone};
pub use super::notices::{Notice, NoticeOutcome};
use super::pricing::{Price, PriceList, PriceRecord};
pub use super::reconcile::{RollUpDifference, Sums};
pub use super::records::{Bill, Extent};
use super::records::{
    KeyId, KeyRecord, LedgerRecord, ModelRecord, RequestRecord, ReservationRecord, SigningKeyRecord, TierRecord, Usage,
    UserId, UserRecord,
};
pub use super::replay::RowRange;
pub use super::usage::{RefusalCount, UsageGroup, UsageQuery, UsageSource, UsageSum};

/// Why the store could not do what was asked.
#[derive(Debug, Clone, thiserror::Error)]
pub enum StoreError {
    /// Somebody else changed the policy since it was read; read again and decide again.
    #[error("the policy changed meanwhile: expected version {expected}, found {found}")]
    Changed {
        /// The version the caller decided on.
        expected: u64,
        /// The version found.
        found: u64,
    },
    /// Something with this identity is there already.
    #[error("cannot {operation}: it exists already")]
    Exists {
        /// What was tried.
        operation: &'static str,
    },
    /// The store cannot be used at the moment: disk full, locked, gone.
    #[error("cannot {operation}: {message}")]
    Unavailable {
        /// What was tried.
        operation: &'static str,
        /// What the store said.
        message: Arc<str>,
    },
    /// What was read makes no sense.
    #[error("the store holds a {what} that cannot be read: {message}")]
    Corrupt {
        /// Which kind of record.
        what: &'static str,
        /// Why not.
        message: Arc<str>,
    },
    /// The answer would have too many lines.
    #[error("the report would have more than {most} lines")]
    TooMany {
        /// How many there may be.
        most: usize,
    },
    /// Another process works in this data directory.
    #[error("data directory `{0}` is in use by another process")]
    InUse(Arc<str>),
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// Tiers, models and prices of one policy version, read together.
#[derive(Debug, Clone, Default)]
pub struct PolicyTables {
    /// Bumped by every change, in its own transaction.
    pub version: u64,
    /// All tiers, by name.
    pub tiers: Vec<TierRecord>,
    /// All models, by name.
    pub models: Vec<ModelRecord>,
    /// All versions of all prices.
    pub prices: Arc<PriceList>,
}

/// One step of a policy change; a list of them is applied in one transaction.
#[derive(Debug, Clone)]
pub enum Change {
    /// Creates or replaces a user together with all groups.
    PutUser(UserRecord),
    /// Forgets a user and their groups.
    DeleteUser(UserId),
    /// Creates or replaces a key.
    PutKey(KeyRecord),
    /// Revokes every live key of a user.
    RevokeKeysOf {
        /// Whose keys.
        user: UserId,
        /// When.
        at_us: i64,
    },
    /// Creates or replaces a tier.
    PutTier(TierRecord),
    /// Forgets a tier.
    DeleteTier(String),
    /// Creates or replaces a model.
    PutModel(ModelRecord),
    /// Forgets a model.
    DeleteModel(String),
    /// Makes a group known so that it can be picked from.
    PutGroup(String),
    /// Notes the effective configuration, secrets masked, in the audit log if it is another than at the last note.
    NoteConfig(Value),
    /// Adds a version of a price.
    AddPrice(PriceRecord),
    /// Creates or replaces a key that signs tokens.
    PutSigningKey(SigningKeyRecord),
    /// Forgets a key that signed tokens; those it signed are dead.
    DeleteSigningKey(String),
}

/// Changes that belong together, with who makes them and when.
#[derive(Debug, Clone)]
pub struct Edit {
    /// For the audit log.
    pub author: Author,
    /// Microseconds since the Unix epoch.
    pub at_us: i64,
    /// Applied in this order.
    pub changes: Vec<Change>,
}

/// Sums of the ledger by subject, for rebuilding calendar counters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SubjectSum {
    /// Whose.
    pub user: UserId,
    /// With which key.
    pub key: Option<KeyId>,
    /// In which tier.
    pub tier: String,
    /// For which model.
    pub model: String,
    /// Rows that were charged.
    pub requests: u64,
    /// Tokens charged.
    pub usage: Usage,
    /// Money charged.
    pub cost_nano_usd: u64,
}

/// One entry of the request journal.
#[derive(Debug, Clone)]
pub enum JournalEntry {
    /// A request was admitted.
    Open(ReservationRecord),
    /// It was granted more.
    Extend {
        /// Which.
        id: Uuid,
        /// Everything reserved so far.
        extents: Vec<Extent>,
    },
    /// It has used so much.
    Progress {
        /// Which.
        id: Uuid,
        /// In all.
        usage: Usage,
    },
    /// It is settled: the reservation goes, the ledger row comes. The store keeps trying until it is written.
    Close(LedgerRecord),
    /// So many requests were refused since the last time.
    Refused(Vec<RefusalCount>),
    /// A threshold was reached; kept if it is the first of its id.
    Notice(Notice),
    /// A notice was sent, or could not be.
    Told(NoticeOutcome),
}

/// Durable records. All writes of one process go through one writer that commits them in groups.
#[async_trait]
pub trait Records: Send + Sync + 'static {
    /// The version that every policy change bumps.
    async fn policy_version(&self) -> Result<u64, StoreError>;

    /// Tiers and models of one version.
    async fn policy(&self) -> Result<PolicyTables, StoreError>;

    /// A key with its user, revoked or not; of a user who was deleted the name is left, inactive.
    async fn key(&self, id: &KeyId) -> Result<Option<(KeyRecord, UserRecord)>, StoreError>;

    /// Keys in the order the filter asks for.
    async fn keys(&self, filter: &KeyFilter) -> Result<Vec<KeyRecord>, StoreError>;

    /// Keys of a user that are neither revoked nor expired.
    async fn live_keys(&self, user: UserId, now_us: i64) -> Result<u64, StoreError>;

    /// The administrator's bootstrap keys that are not revoked.
    async fn bootstrap_keys(&self) -> Result<Vec<KeyRecord>, StoreError>;

    /// A user by id.
    async fn user(&self, id: UserId) -> Result<Option<UserRecord>, StoreError>;

    /// A user by what the issuer calls them.
    async fn user_by_subject(&self, issuer: &str, subject: &str) -> Result<Option<UserRecord>, StoreError>;

    /// A user by the name people read.
    async fn user_by_name(&self, name: &str) -> Result<Option<UserRecord>, StoreError>;

    /// All users, by name, after a name, at most `limit`.
    async fn users(&self, after: Option<&str>, limit: u32) -> Result<Vec<UserRecord>, StoreError>;

    /// The keys that sign tokens, and those that did.
    async fn signing_keys(&self) -> Result<Vec<SigningKeyRecord>, StoreError>;

    /// Groups that users, tiers or administrators have named, sorted, after a name, at most `limit`.
    async fn groups(&self, after: Option<&str>, limit: u32) -> Result<Vec<String>, StoreError>;

    /// True when somebody has named that group.
    async fn is_group_known(&self, name: &str) -> Result<bool, StoreError>;

    /// Applies all changes in one transaction, each with its row in the audit log, and returns the new version.
    ///
    /// # Errors
    /// [`StoreError::Changed`] when the version is no longer `expected`; nothing is applied then.
    async fn change(&self, expected: u64, edit: Edit) -> Result<u64, StoreError>;

    /// Rows of the audit log, newest first.
    async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError>;

    /// At most `limit` rows of the audit log after the one of that number, oldest first.
    async fn audit_after(&self, sequence: i64, limit: u32) -> Result<Vec<AuditRow>, StoreError>;

    /// Queues a journal entry; entries of one caller are written in order.
    fn submit(&self, entry: JournalEntry) -> Commit;

    /// Requests admitted and never settled, as the last process left them.
    async fn open_reservations(&self) -> Result<Vec<ReservationRecord>, StoreError>;

    /// Ledger rows settled at or after `settled_from_us`.
    async fn ledger_since(&self, settled_from_us: i64) -> Result<Vec<LedgerRecord>, StoreError>;

    /// A page of ledger rows by admission and id.
    async fn ledger_between(&self, range: RowRange) -> Result<Vec<LedgerRecord>, StoreError>;

    /// Every limit that a key has, each once.
    async fn limits_of_keys(&self) -> Result<Vec<Limit>, StoreError>;

    /// Roll-ups of the days of `[from_us, to_us)` that are not the sum of their rows, the first hundred.
    async fn roll_up_differences(&self, from_us: i64, to_us: i64) -> Result<Vec<RollUpDifference>, StoreError>;

    /// Everything ever charged, as the roll-ups have it.
    async fn totals(&self) -> Result<Sums, StoreError>;

    /// Charged sums by subject of rows admitted in `[start_us, end_us)`.
    async fn charged_between(&self, start_us: i64, end_us: i64) -> Result<Vec<SubjectSum>, StoreError>;

    /// A usage report.
    ///
    /// # Errors
    /// [`StoreError::TooMany`] when it would have more lines than [`LINES_MAX`](super::usage::LINES_MAX).
    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageSum>, StoreError>;

    /// Notices whose next attempt is due, the oldest first.
    async fn due_notices(&self, now_us: i64, limit: u32) -> Result<Vec<Notice>, StoreError>;

    /// Notices, newest first, before that one.
    async fn notices(&self, before: Option<(i64, Uuid)>, limit: u32) -> Result<Vec<Notice>, StoreError>;

    /// One ledger row.
    async fn ledger_row(&self, id: Uuid) -> Result<Option<LedgerRecord>, StoreError>;

    /// Notes when keys were last used; bumps no version.
    async fn touch_keys(&self, used: Vec<(KeyId, i64)>) -> Result<(), StoreError>;

    /// Users with this group that are active.
    async fn active_members(&self, group: &str) -> Result<Vec<UserId>, StoreError>;

    /// Forgets ephemeral keys that ended before `ended_before_us`, those on which limits count, their own or a parent's,
    /// before `limited_before_us`, and says how many; bumps no version, since they opened nothing any more.
    async fn forget_ephemeral_keys(&self, ended_before_us: i64, limited_before_us: i64) -> Result<u64, StoreError>;

    /// Writes what is queued and stops writing.
    async fn close(&self);
}

/// Whose counter it is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// One user's.
    User(UserId),
    /// One key's.
    Key(KeyId),
    /// A tier's pool.
    Tier(Arc<str>),
}

/// The part of a window that tells counters apart; never the amount.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum WindowKind {
    /// Any interval of so many microseconds.
    Sliding(i64),
    /// Calendar periods.
    Calendar(Period, Zone),
    /// What is in flight.
    Now,
}

/// What one counter counts: editing an amount or moving a user between tiers keeps it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CounterKey {
    /// Whose.
    pub subject: Subject,
    /// Of what.
    pub resource: Resource,
    /// For which model; `None`: all.
    pub model: Option<Arc<str>>,
    /// In which kind of window.
    pub window: WindowKind,
}

impl CounterKey {
    /// The counter on which `limit` counts the requests of `request`; `None` when the limit does not concern it. A limit
    /// per key counts for `key`: the request's own, or one that it comes from.
    pub fn of(limit: &Limit, request: &RequestRecord, key: Option<&KeyId>) -> Option<Self> {
        if limit.model.as_deref().is_some_and(|model| model != request.model) {
            return None;
        }
        Self::for_subject(limit, request.user, key, &request.tier)
    }

    /// The counter of `limit` for this user, key and tier.
    pub fn for_subject(limit: &Limit, user: UserId, key: Option<&KeyId>, tier: &str) -> Option<Self> {
        let subject = match limit.scope {
            Scope::User => Subject::User(user),
            Scope::Key => Subject::Key(key?.clone()),
            Scope::Tier => Subject::Tier(tier.into()),
        };
        let window = match &limit.window {
            Window::Sliding(rate) => WindowKind::Sliding(rate.length_us()),
            Window::Calendar(period, zone) => WindowKind::Calendar(*period, zone.clone()),
            Window::Now => WindowKind::Now,
        };
        Some(Self { subject, resource: limit.resource, model: limit.model.clone(), window })
    }
}

/// One counter to charge, and up to where.
#[derive(Debug, Clone)]
pub struct Charge {
    /// Which counter.
    pub key: CounterKey,
    /// Refuse above it; `None`: count only.
    pub hard: Option<u64>,
    /// The calendar period now and next; the store's clock picks. `None` for windows.
    pub bounds: Option<Bounds>,
}

/// What an admission or an extension needs.
///
/// Completion tokens are elastic: as many as every limit has left, at most `completion_most`, at least `completion_least`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Need {
    /// Requests: 1 at admission, 0 for an extension.
    pub requests: u64,
    /// Prompt tokens of all prompts.
    pub prompt_tokens: u64,
    /// Sequences in flight.
    pub sequences: u64,
    /// Refuse below it.
    pub completion_least: u64,
    /// Do not grant more.
    pub completion_most: u64,
    /// What tokens cost, fixed at admission.
    pub price: Price,
}

impl Need {
    /// What a counter of `resource` is charged with so many completion tokens; money as the most they can cost.
    pub fn charged(&self, resource: Resource, completion_tokens: u64) -> u64 {
        match resource {
            Resource::Requests => self.requests,
            Resource::Tokens => self.prompt_tokens + completion_tokens,
            Resource::PromptTokens => self.prompt_tokens,
            Resource::CompletionTokens => completion_tokens,
            Resource::Concurrent => self.sequences,
            Resource::Cost => self.price.ceiling_nano_usd(self.prompt_tokens, completion_tokens),
        }
    }

    /// True when completion tokens count on `resource`.
    pub fn is_elastic(&self, resource: Resource) -> bool {
        match resource {
            Resource::Tokens | Resource::CompletionTokens => true,
            Resource::Cost => self.price.completion_pico_usd > 0,
            Resource::Requests | Resource::PromptTokens | Resource::Concurrent => false,
        }
    }

    /// How many completion tokens fit on an elastic counter of `resource` that has `left`.
    pub fn affordable_tokens(&self, resource: Resource, left: u64) -> u64 {
        match resource {
            Resource::Cost => self.price.affordable_tokens(left, self.prompt_tokens),
            _ => left.saturating_sub(self.charged(resource, 0)),
        }
    }

    /// The charge of a grant of so many completion tokens at `at_us`.
    pub fn extent(&self, at_us: i64, completion_tokens: u64) -> Extent {
        Extent {
            at_us,
            requests: self.requests,
            prompt_tokens: self.prompt_tokens,
            completion_tokens,
            cost_nano_usd: self.charged(Resource::Cost, completion_tokens),
        }
    }
}

/// When a refused charge would pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Retry {
    /// After exactly this many microseconds, if nothing else is charged meanwhile.
    After(i64),
    /// Nobody knows; asking again after this many microseconds is polite.
    Estimate(i64),
    /// It is more than the whole amount.
    Never,
}

impl Retry {
    /// The wait in microseconds; the longest there is for what never passes.
    pub fn wait_us(self) -> i64 {
        match self {
            Self::After(us) | Self::Estimate(us) => us,
            Self::Never => i64::MAX,
        }
    }
}

/// The state of one counter after an operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Settled usage that still counts.
    pub used: u64,
    /// Reserved and not settled.
    pub held: u64,
    /// Microseconds until everything counted now has left, if nothing is added.
    pub reset_after_us: i64,
}

/// One counter that refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusing {
    /// Index into the charges.
    pub charge: usize,
    /// What it would have been charged at least.
    pub requested: u64,
    /// When it would pass.
    pub retry: Retry,
}

/// The answer to a reservation or an extension: everything or nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// All counters were charged.
    Granted {
        /// When, on the steady clock.
        at_us: i64,
        /// How many completion tokens.
        completion_tokens: u64,
        /// Each charge's counter, afterwards.
        counts: Arc<[Count]>,
    },
    /// None was charged.
    Refused {
        /// Every counter that refused.
        refusing: Vec<Refusing>,
        /// Each charge's counter.
        counts: Arc<[Count]>,
    },
}

/// What counters have seen in all, whatever limits there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LimiterTotals {
    /// Kept by settled reservations.
    pub settled: Sums,
    /// Reserved by open ones.
    pub held: Sums,
    /// Open reservations.
    pub open: u64,
}

/// What was used before this process started, for one counter.
#[derive(Debug, Clone)]
pub struct Restored {
    /// Which counter.
    pub key: CounterKey,
    /// How much.
    pub used: u64,
    /// When: the charge's time for windows, any instant of the period for calendars.
    pub at_us: i64,
    /// The calendar period; `None` for windows.
    pub bounds: Option<Bounds>,
}

/// Why counters could not be reached.
#[derive(Debug, Clone, thiserror::Error)]
#[error("cannot {operation} on the counters: {message}")]
pub struct CounterError {
    /// What was tried.
    pub operation: &'static str,
    /// What went wrong.
    pub message: Arc<str>,
}

/// Hot counters with their own clock. Every operation is idempotent by (reservation, sequence number).
#[async_trait]
pub trait Counters: Send + Sync + 'static {
    /// Charges an admission on all counters or on none. Sequence number 0 of reservation `id`.
    async fn reserve(&self, id: Uuid, charges: &Arc<[Charge]>, need: Need) -> Result<Reserved, CounterError>;

    /// Charges one more block for an open reservation; calendar charges go to the period of the admission.
    async fn extend(&self, id: Uuid, sequence: u32, need: Need) -> Result<Reserved, CounterError>;

    /// Ends a reservation: the bill stays counted, latest charges are given back first, sequences are released.
    async fn settle(&self, id: Uuid, bill: Bill) -> Result<(), CounterError>;

    /// Looks without touching.
    async fn peek(&self, charges: &[Charge]) -> Result<Vec<Count>, CounterError>;

    /// Checks what [`Counters::reserve`] would say now, without charging.
    async fn probe(&self, charges: &[Charge], need: Need) -> Result<Reserved, CounterError>;

    /// Puts back what was used before, when counters are rebuilt at start.
    async fn restore(&self, rows: Vec<Restored>) -> Result<(), CounterError>;

    /// What was settled since these counters were made, and what open reservations hold.
    async fn totals(&self) -> Result<LimiterTotals, CounterError>;

    /// Empty counters that decide by the same rules, in this process's memory, by another clock: for replays.
    fn blank(&self, clock: Arc<dyn Clock>) -> Arc<dyn Counters>;
}
