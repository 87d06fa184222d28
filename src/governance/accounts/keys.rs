//! Making, listing and revoking API keys.

use std::collections::BTreeMap;
use std::time::Duration;

use super::commit::{ATTEMPTS, busy, check_free_text, check_text, require_admin};
use super::tokens::require_maker;
use crate::governance::clock::micros;
use crate::governance::config::Secret;
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::keys;
use crate::governance::limits::{Limit, Scope, check_limits};
use crate::governance::policy::Principal;
use crate::governance::ports::{Change, KeyFilter, StoreError};
use crate::governance::records::{KeyId, KeyRecord, LOCAL_ISSUER, UserId, UserRecord};

/// What a new key should be.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// What people read.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// How long it works; the configured default when absent.
    pub expires_in: Option<Duration>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Only these models; they need not exist yet.
    pub models: Option<Vec<String>>,
    /// Limits of this key alone; each counts per key.
    pub limits: Vec<Limit>,
}

/// Whether a key works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

/// A key as its owner and administrators see it: never the secret.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its id, as it stands in addresses.
    pub id: KeyId,
    /// What may be shown to tell keys apart.
    pub prefix: String,
    /// Whose it is.
    pub user: UserId,
    /// Their name.
    pub user_name: String,
    /// What people read.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Only these models.
    pub models: Option<Vec<String>>,
    /// Limits of its own.
    pub limits: Vec<Limit>,
    /// Whether it works.
    pub status: KeyStatus,
    /// Microseconds since the Unix epoch, like all times here.
    pub created_at_us: i64,
    /// When it stops working.
    pub expires_at_us: Option<i64>,
    /// When it was ended.
    pub revoked_at_us: Option<i64>,
    /// About when it was last used.
    pub last_used_at_us: Option<i64>,
}

/// A key that was just made.
#[derive(Debug)]
pub struct Issued {
    /// Everything that can be looked up later.
    pub key: Key,
    /// The key itself: shown this once.
    pub secret: Secret,
}

/// Some keys, newest first.
#[derive(Debug, Clone)]
pub struct KeyPage {
    /// The keys.
    pub keys: Vec<Key>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<KeyId>,
}

/// Keys on a page when nobody says how many.
const PAGE: u32 = 100;
const PAGE_MAX: u32 = 1000;

impl Governor {
    /// Makes a key for the caller; it is never stronger than the key they came with.
    ///
    /// # Errors
    /// `Invalid`, `Forbidden` for a key that would be stronger, `Conflict` for too many.
    pub async fn create_key(&self, actor: &Principal, new: NewKey) -> Result<Issued, ServiceError> {
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let user = self.0.records.user(actor.user).await?.ok_or(ServiceError::NotFound("user"))?;
            let parent = self.parent(actor).await?;
            let (record, secret) = self.new_key(&user, parent.as_ref(), &new).await?;
            if self.commit(actor.author(), &tables, vec![Change::PutKey(record.clone())]).await? {
                return Ok(self.issued(record, &user, secret));
            }
        }
        Err(busy())
    }

    /// Makes a key for a user, by an administrator.
    ///
    /// # Errors
    /// As [`Governor::create_key`]; `NotFound` for an unknown user.
    pub async fn create_key_for(&self, actor: &Principal, user: &str, new: NewKey) -> Result<Issued, ServiceError> {
        require_admin(actor)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let user = self.user_record(user).await?;
            // What an administrator makes for others is administration; for themselves it is a key made with a key.
            let parent = if user.id == actor.user { self.parent(actor).await? } else { None };
            let (record, secret) = self.new_key(&user, parent.as_ref(), &new).await?;
            if self.commit(actor.author(), &tables, vec![Change::PutKey(record.clone())]).await? {
                return Ok(self.issued(record, &user, secret));
            }
        }
        Err(busy())
    }

    /// The caller's keys.
    ///
    /// # Errors
    /// The store.
    pub async fn keys(
        &self,
        actor: &Principal,
        after: Option<KeyId>,
        limit: Option<u32>,
    ) -> Result<KeyPage, ServiceError> {
        self.page(Some(actor.user), after, limit).await
    }

    /// Everybody's keys, or one user's, for an administrator.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound` for an unknown user, the store.
    pub async fn all_keys(
        &self,
        actor: &Principal,
        user: Option<&str>,
        after: Option<KeyId>,
        limit: Option<u32>,
    ) -> Result<KeyPage, ServiceError> {
        require_admin(actor)?;
        let user = match user {
            Some(name) => Some(self.user_record(name).await?.id),
            None => None,
        };
        self.page(user, after, limit).await
    }

    /// One key, the caller's own or, for an administrator, anybody's.
    ///
    /// # Errors
    /// `NotFound`, also for another user's key.
    pub async fn key(&self, actor: &Principal, id: &KeyId) -> Result<Key, ServiceError> {
        let (record, user) = self.0.records.key(id).await?.ok_or(ServiceError::NotFound("API key"))?;
        if record.user != actor.user && !actor.is_admin {
            return Err(ServiceError::NotFound("API key"));
        }
        Ok(self.key_view(record, user.name))
    }

    /// Ends a key at once, the caller's own or, for an administrator, anybody's.
    ///
    /// # Errors
    /// `NotFound`, also for another user's key and for one that is revoked already.
    pub async fn revoke_key(&self, actor: &Principal, id: &KeyId) -> Result<Key, ServiceError> {
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let (mut record, user) = self.0.records.key(id).await?.ok_or(ServiceError::NotFound("API key"))?;
            let is_theirs = record.user == actor.user || actor.is_admin;
            if !is_theirs || record.revoked_at_us.is_some() {
                return Err(ServiceError::NotFound("API key"));
            }
            record.revoked_at_us = Some(self.0.clock.now_us());
            if self.commit(actor.author(), &tables, vec![Change::PutKey(record.clone())]).await? {
                return Ok(self.key_view(record, user.name));
            }
        }
        Err(busy())
    }

    async fn page(
        &self,
        user: Option<UserId>,
        after: Option<KeyId>,
        limit: Option<u32>,
    ) -> Result<KeyPage, ServiceError> {
        let wanted = limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
        // One more than wanted tells whether there is a next page.
        let mut records = self.0.records.keys(&KeyFilter { user, after, limit: wanted + 1 }).await?;
        let has_more = records.len() > wanted as usize;
        records.truncate(wanted as usize);
        let next = records.last().filter(|_| has_more).map(|key| key.id.clone());
        let mut names: BTreeMap<UserId, String> = BTreeMap::new();
        let mut keys = Vec::with_capacity(records.len());
        for record in records {
            let name = match names.get(&record.user) {
                Some(name) => name.clone(),
                None => {
                    self.0.records.user(record.user).await?.map_or_else(|| record.user.to_string(), |user| user.name)
                }
            };
            names.insert(record.user, name.clone());
            keys.push(self.key_view(record, name));
        }
        Ok(KeyPage { keys, next })
    }

    /// The key the caller came with, to make another credential with; it may have ended since then.
    pub(super) async fn parent(&self, actor: &Principal) -> Result<Option<KeyRecord>, ServiceError> {
        require_maker(actor)?;
        let Some(id) = &actor.key else { return Ok(None) };
        match self.0.records.key(id).await? {
            Some((key, user)) if user.active && key.is_live(self.0.clock.now_us()) => Ok(Some(key)),
            _ => Err(ServiceError::Forbidden("Access denied. The key in use is no longer valid.".into())),
        }
    }

    async fn new_key(
        &self,
        user: &UserRecord,
        parent: Option<&KeyRecord>,
        new: &NewKey,
    ) -> Result<(KeyRecord, Secret), ServiceError> {
        check_new(new)?;
        let now_us = self.0.clock.now_us();
        let (models, expires_at_us) = self.inherit(parent, new, now_us)?;
        let most = self.0.config.keys_max_per_user;
        if self.0.records.live_keys(user.id, now_us).await? >= most {
            return Err(ServiceError::Conflict(format!("a user may have at most {most} API keys: revoke one first")));
        }
        let fresh = keys::mint().map_err(|error| {
            ServiceError::Unavailable(StoreError::Unavailable {
                operation: "make a key",
                message: error.to_string().into(),
            })
        })?;
        let limits = new.limits.iter().cloned().map(|limit| Limit { scope: Scope::Key, ..limit }).collect::<Vec<_>>();
        check_limits(&limits).map_err(|error| ServiceError::invalid("limits", error))?;
        let record = KeyRecord {
            id: fresh.id,
            digest: fresh.digest,
            user: user.id,
            name: new.name.clone(),
            description: new.description.clone(),
            labels: new.labels.clone(),
            models,
            limits,
            parent: parent.map(|key| key.id.clone()),
            is_bootstrap: false,
            created_at_us: now_us,
            expires_at_us: Some(expires_at_us),
            revoked_at_us: None,
            last_used_at_us: None,
        };
        Ok((record, fresh.text))
    }

    /// A credential never makes a stronger one: models and life are cut to the parent's.
    fn inherit(
        &self,
        parent: Option<&KeyRecord>,
        new: &NewKey,
        now_us: i64,
    ) -> Result<(Option<Vec<String>>, i64), ServiceError> {
        let config = &self.0.config;
        let life = new.expires_in.unwrap_or(config.key_default_life);
        if life.is_zero() || life > config.key_longest_life {
            let days = config.key_longest_life.as_secs() / 86_400;
            return Err(ServiceError::invalid(
                "expires_in",
                format!("`expires_in` must be longer than 0 and at most {days}d"),
            ));
        }
        let ends_us = now_us.saturating_add(micros(life));
        let Some(parent) = parent else {
            return Ok((new.models.clone(), ends_us));
        };
        if !parent.limits.is_empty() {
            return Err(ServiceError::Forbidden(
                "Access denied. A key with limits of its own cannot make other keys.".into(),
            ));
        }
        let models = match (&parent.models, &new.models) {
            (None, wanted) => wanted.clone(),
            (Some(allowed), None) => Some(allowed.clone()),
            (Some(allowed), Some(wanted)) => {
                if let Some(beyond) = wanted.iter().find(|model| !allowed.contains(model)) {
                    let message = format!("Access denied. The key in use does not allow model `{beyond}`.");
                    return Err(ServiceError::Forbidden(message));
                }
                Some(wanted.clone())
            }
        };
        Ok((models, parent.expires_at_us.map_or(ends_us, |parent_ends_us| ends_us.min(parent_ends_us))))
    }

    fn issued(&self, record: KeyRecord, user: &UserRecord, secret: Secret) -> Issued {
        Issued { key: self.key_view(record, user.name.clone()), secret }
    }

    fn key_view(&self, record: KeyRecord, user_name: String) -> Key {
        let status = if record.revoked_at_us.is_some() {
            KeyStatus::Revoked
        } else if record.is_live(self.0.clock.now_us()) {
            KeyStatus::Active
        } else {
            KeyStatus::Expired
        };
        Key {
            prefix: keys::visible_prefix(&record.id),
            id: record.id,
            user: record.user,
            user_name,
            name: record.name,
            description: record.description,
            labels: record.labels,
            models: record.models,
            limits: record.limits,
            status,
            created_at_us: record.created_at_us,
            expires_at_us: record.expires_at_us,
            revoked_at_us: record.revoked_at_us,
            last_used_at_us: record.last_used_at_us,
        }
    }

    /// A user by name, or by id.
    pub(super) async fn user_record(&self, name: &str) -> Result<UserRecord, ServiceError> {
        let records = &self.0.records;
        if let Some(user) = records.user_by_subject(LOCAL_ISSUER, name).await? {
            return Ok(user);
        }
        if let Some(user) = records.user_by_name(name).await? {
            return Ok(user);
        }
        let by_id = match name.parse() {
            Ok(id) => records.user(UserId(id)).await?,
            Err(_) => None,
        };
        by_id.ok_or(ServiceError::NotFound("user"))
    }
}

fn check_new(new: &NewKey) -> Result<(), ServiceError> {
    check_text("name", &new.name, 100)?;
    check_free_text("description", new.description.as_deref().unwrap_or_default(), 1000)?;
    if new.labels.len() > 32 {
        return Err(ServiceError::invalid("labels", "`labels` must have at most 32 entries"));
    }
    for (label, value) in &new.labels {
        check_text("labels", label, 100)?;
        check_free_text("labels", value, 200)?;
    }
    let models = new.models.as_deref().unwrap_or_default();
    if models.len() > 1000 {
        return Err(ServiceError::invalid("models", "`models` must have at most 1000 entries"));
    }
    models.iter().try_for_each(|model| check_text("models", model, 253))
}
