//! Finding, showing and revoking API keys.

use std::collections::BTreeMap;

use super::commit::{ATTEMPTS, busy, require_admin};
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::keys;
use crate::governance::limits::Limit;
use crate::governance::policy::Principal;
use crate::governance::ports::{Change, KeyCursor, KeyFilter, KeySort};
use crate::governance::records::{KeyId, KeyRecord, KeyStatus, LOCAL_ISSUER, SetBy, UserId, UserRecord};

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
    /// Who set models and limits.
    pub terms_by: SetBy,
    /// The key that made it.
    pub parent: Option<KeyId>,
    /// Whether it is one of short life.
    pub is_ephemeral: bool,
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
    /// Until when the secret before the last rotation works; `None`: it does not.
    pub previous_until_us: Option<i64>,
}

/// Some keys of a search.
#[derive(Debug, Clone)]
pub struct KeyPage {
    /// The keys.
    pub keys: Vec<Key>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<String>,
}

/// Which keys are looked for; what is empty or absent lets everything pass.
#[derive(Debug, Clone, Default)]
pub struct KeySearch {
    /// Only with one of these statuses.
    pub statuses: Vec<KeyStatus>,
    /// Only with this in the name, capital or small.
    pub name_contains: Option<String>,
    /// Only with each of these labels, of that value if one is named.
    pub labels: Vec<(String, Option<String>)>,
    /// Only made at or after this moment.
    pub created_from_us: Option<i64>,
    /// Only made before this moment.
    pub created_before_us: Option<i64>,
    /// Ephemeral ones, too.
    pub with_ephemeral: bool,
    /// In which order; newest first unless said otherwise.
    pub sort: KeySort,
    /// Smallest first.
    pub is_ascending: bool,
    /// Where the page before ended.
    pub cursor: Option<String>,
    /// How many on a page (100).
    pub limit: Option<u32>,
}

/// Keys on a page when nobody says how many.
const PAGE: u32 = 100;
const PAGE_MAX: u32 = 1000;

/// Whose rules a change follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standpoint {
    /// The owner's: everybody else's keys do not exist.
    Owner,
    /// An administrator's.
    Administrator,
}

impl Governor {
    /// The caller's keys.
    ///
    /// # Errors
    /// `Invalid` for a cursor of another order; the store.
    pub async fn keys(&self, actor: &Principal, search: &KeySearch) -> Result<KeyPage, ServiceError> {
        self.page(Some(actor.user), search).await
    }

    /// Everybody's keys, or one user's, for an administrator.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound` for an unknown user, `Invalid`, the store.
    pub async fn all_keys(
        &self,
        actor: &Principal,
        user: Option<&str>,
        search: &KeySearch,
    ) -> Result<KeyPage, ServiceError> {
        require_admin(actor)?;
        let user = match user {
            Some(name) => Some(self.user_record(name).await?.id),
            None => None,
        };
        self.page(user, search).await
    }

    /// One of the caller's keys.
    ///
    /// # Errors
    /// `NotFound`, also for another user's key.
    pub async fn key(&self, actor: &Principal, id: &KeyId) -> Result<Key, ServiceError> {
        let (record, user) = self.key_record(actor, id, Standpoint::Owner).await?;
        Ok(self.key_view(record, user.name))
    }

    /// Anybody's key, for an administrator.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn any_key(&self, actor: &Principal, id: &KeyId) -> Result<Key, ServiceError> {
        let (record, user) = self.key_record(actor, id, Standpoint::Administrator).await?;
        Ok(self.key_view(record, user.name))
    }

    /// Ends one of the caller's keys at once. Keys that it made stay.
    ///
    /// # Errors
    /// `NotFound`, also for another user's key and for one that is revoked already.
    pub async fn revoke_key(&self, actor: &Principal, id: &KeyId) -> Result<Key, ServiceError> {
        self.revoke(actor, id, Standpoint::Owner).await
    }

    /// Ends anybody's key at once, by an administrator.
    ///
    /// # Errors
    /// `Forbidden`; `NotFound`, also for one that is revoked already.
    pub async fn revoke_any_key(&self, actor: &Principal, id: &KeyId) -> Result<Key, ServiceError> {
        self.revoke(actor, id, Standpoint::Administrator).await
    }

    async fn revoke(&self, actor: &Principal, id: &KeyId, standpoint: Standpoint) -> Result<Key, ServiceError> {
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let (mut record, user) = self.key_record(actor, id, standpoint).await?;
            if record.revoked_at_us.is_some() {
                return Err(ServiceError::NotFound("API key"));
            }
            record.revoked_at_us = Some(self.0.clock.now_us());
            if self.commit(actor.author(), &tables, vec![Change::PutKey(record.clone())]).await? {
                return Ok(self.key_view(record, user.name));
            }
        }
        Err(busy())
    }

    /// A key that the caller may see from that standpoint.
    pub(super) async fn key_record(
        &self,
        actor: &Principal,
        id: &KeyId,
        standpoint: Standpoint,
    ) -> Result<(KeyRecord, UserRecord), ServiceError> {
        if standpoint == Standpoint::Administrator {
            require_admin(actor)?;
        }
        let found = self.0.records.key(id).await?;
        found
            .filter(|(key, _)| standpoint == Standpoint::Administrator || key.user == actor.user)
            .ok_or(ServiceError::NotFound("API key"))
    }

    async fn page(&self, user: Option<UserId>, search: &KeySearch) -> Result<KeyPage, ServiceError> {
        let wanted = search.limit.unwrap_or(PAGE).clamp(1, PAGE_MAX);
        // One more than wanted tells whether there is a next page.
        let filter = KeyFilter { user, limit: wanted + 1, ..self.filter(search)? };
        let mut records = self.0.records.keys(&filter).await?;
        let has_more = records.len() > wanted as usize;
        records.truncate(wanted as usize);
        let next = records.last().filter(|_| has_more).map(|key| KeyCursor::at(key, search.sort).to_text());
        Ok(KeyPage { keys: self.views(records).await?, next })
    }

    fn filter(&self, search: &KeySearch) -> Result<KeyFilter, ServiceError> {
        let cursor = |text: &String| {
            let message = "`cursor` is not one that a list in this order gave";
            KeyCursor::parse(text, search.sort).ok_or_else(|| ServiceError::invalid("cursor", message))
        };
        Ok(KeyFilter {
            user: None,
            statuses: search.statuses.clone(),
            name_contains: search.name_contains.clone().filter(|part| !part.is_empty()),
            labels: search.labels.clone(),
            created_from_us: search.created_from_us,
            created_before_us: search.created_before_us,
            with_ephemeral: search.with_ephemeral,
            sort: search.sort,
            is_ascending: search.is_ascending,
            after: search.cursor.as_ref().map(cursor).transpose()?,
            now_us: self.0.clock.now_us(),
            limit: 0,
        })
    }

    /// Keys with the names of their owners.
    pub(super) async fn views(&self, records: Vec<KeyRecord>) -> Result<Vec<Key>, ServiceError> {
        let mut names: BTreeMap<UserId, String> = BTreeMap::new();
        let mut keys = Vec::with_capacity(records.len());
        for record in records {
            let name = match names.get(&record.user) {
                Some(name) => name.clone(),
                None => match self.0.records.key(&record.id).await? {
                    Some((_, user)) => user.name,
                    None => record.user.to_string(),
                },
            };
            names.insert(record.user, name.clone());
            keys.push(self.key_view(record, name));
        }
        Ok(keys)
    }

    pub(super) fn key_view(&self, record: KeyRecord, user_name: String) -> Key {
        let now_us = self.0.clock.now_us();
        Key {
            prefix: keys::visible_prefix(&record.id),
            status: record.status(now_us),
            id: record.id,
            user: record.user,
            user_name,
            name: record.name,
            description: record.description,
            labels: record.labels,
            models: record.models,
            limits: record.limits,
            terms_by: record.terms_by,
            parent: record.parent,
            is_ephemeral: record.is_ephemeral,
            created_at_us: record.created_at_us,
            expires_at_us: record.expires_at_us,
            revoked_at_us: record.revoked_at_us,
            last_used_at_us: record.last_used_at_us,
            previous_until_us: record.previous.map(|previous| previous.until_us).filter(|until_us| now_us < *until_us),
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
