//! Changing an API key that is there: its name, its labels, its terms, its secret.

use std::collections::BTreeMap;
use std::time::Duration;

use super::commit::{ATTEMPTS, busy, check_free_text};
use super::keys::{Key, Standpoint};
use super::new_keys::{Issued, check_key_name, check_labels, check_models, fresh, in_words, key_limits};
use crate::governance::clock::micros;
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::identity::lineage;
use crate::governance::keys::{self, BOOTSTRAP_ID};
use crate::governance::limits::Limit;
use crate::governance::policy::Principal;
use crate::governance::ports::Change;
use crate::governance::records::{KeyId, KeyRecord, KeyStatus, PreviousSecret, SetBy};

/// What to change about a key; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct KeyPatch {
    /// What people read.
    pub name: Option<String>,
    /// Free text; empty takes it away.
    pub description: Option<String>,
    /// All labels from now on.
    pub labels: Option<BTreeMap<String, String>>,
    /// Only these models from now on; `Some(None)`: whatever the tier gives.
    pub models: Option<Option<Vec<String>>>,
    /// All limits from now on.
    pub limits: Option<Vec<Limit>>,
}

/// How long the old secret works after a rotation when nobody says.
const GRACE: Duration = Duration::from_secs(86_400);
/// The longest it may.
const LONGEST_GRACE: Duration = Duration::from_secs(30 * 86_400);

impl Governor {
    /// Changes one of the caller's keys; effective on the next request.
    ///
    /// # Errors
    /// `NotFound`, `Invalid`, `TooManyChanges`; `Forbidden` for models and limits that an administrator set, or with a key that has some itself.
    pub async fn update_key(&self, actor: &Principal, id: &KeyId, patch: &KeyPatch) -> Result<Key, ServiceError> {
        self.note_own_change(actor)?;
        self.update(actor, id, patch, Standpoint::Owner).await
    }

    /// Changes anybody's key, by an administrator; models and limits set here the owner cannot change.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Invalid`.
    pub async fn update_any_key(&self, actor: &Principal, id: &KeyId, patch: &KeyPatch) -> Result<Key, ServiceError> {
        self.update(actor, id, patch, Standpoint::Administrator).await
    }

    /// Gives one of the caller's keys a new secret; the old one works for `grace` more. It stays one key: same id, limits,
    /// usage, end. A secret that an earlier rotation replaced stops at once.
    ///
    /// # Errors
    /// `NotFound`, also for a revoked key; `Invalid`; `TooManyChanges`; `Conflict` for one that is over or configured; `Forbidden` for a key
    /// stronger than the one in use.
    pub async fn rotate_key(
        &self,
        actor: &Principal,
        id: &KeyId,
        grace: Option<Duration>,
    ) -> Result<Issued, ServiceError> {
        self.note_own_change(actor)?;
        self.rotate(actor, id, grace, Standpoint::Owner).await
    }

    /// Gives anybody's key a new secret, by an administrator.
    ///
    /// # Errors
    /// As [`Governor::rotate_key`].
    pub async fn rotate_any_key(
        &self,
        actor: &Principal,
        id: &KeyId,
        grace: Option<Duration>,
    ) -> Result<Issued, ServiceError> {
        self.rotate(actor, id, grace, Standpoint::Administrator).await
    }

    async fn update(
        &self,
        actor: &Principal,
        id: &KeyId,
        patch: &KeyPatch,
        standpoint: Standpoint,
    ) -> Result<Key, ServiceError> {
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let (old, user) = self.key_record(actor, id, standpoint).await?;
            let mut record = old.clone();
            apply(&mut record, patch)?;
            if (&record.models, &record.limits) != (&old.models, &old.limits) {
                self.check_terms(actor, &old, standpoint).await?;
                let is_free = record.models.is_none() && record.limits.is_empty();
                let by_admin = standpoint == Standpoint::Administrator && !is_free;
                record.terms_by = if by_admin { SetBy::Administrator } else { SetBy::Owner };
            }
            let is_same = record == old;
            if is_same || self.commit(actor.author(), &tables, vec![Change::PutKey(record.clone())]).await? {
                return Ok(self.key_view(record, user.name));
            }
        }
        Err(busy())
    }

    /// Who may change the models and limits of a key.
    async fn check_terms(
        &self,
        actor: &Principal,
        old: &KeyRecord,
        standpoint: Standpoint,
    ) -> Result<(), ServiceError> {
        if standpoint == Standpoint::Owner && old.terms_by == SetBy::Administrator {
            let message = "Access denied. An administrator set the models and limits of this key.";
            return Err(ServiceError::Forbidden(message.into()));
        }
        // What an administrator does to others is administration; a key changes its owner's keys only if it has no terms.
        if old.user == actor.user && self.lineage_in_use(actor).await?.iter().any(has_terms) {
            let message = "Access denied. A key with models or limits of its own cannot change those of keys.";
            return Err(ServiceError::Forbidden(message.into()));
        }
        Ok(())
    }

    async fn rotate(
        &self,
        actor: &Principal,
        id: &KeyId,
        grace: Option<Duration>,
        standpoint: Standpoint,
    ) -> Result<Issued, ServiceError> {
        let grace = grace.unwrap_or(GRACE);
        if grace > LONGEST_GRACE {
            let message = format!("`grace` must be at most {}", in_words(LONGEST_GRACE));
            return Err(ServiceError::invalid("grace", message));
        }
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let (mut record, user) = self.key_record(actor, id, standpoint).await?;
            let now_us = self.0.clock.now_us();
            self.check_renewable(&record, now_us)?;
            if record.user == actor.user {
                self.check_no_stronger(actor, &record).await?;
            }
            let fresh = fresh(keys::renew(&record.id))?;
            let until_us = now_us.saturating_add(micros(grace));
            record.previous = (!grace.is_zero()).then_some(PreviousSecret { digest: record.digest, until_us });
            record.digest = fresh.digest;
            if self.commit(actor.author(), &tables, vec![Change::PutKey(record.clone())]).await? {
                return Ok(self.issued(record, &user, fresh.text));
            }
        }
        Err(busy())
    }

    fn check_renewable(&self, key: &KeyRecord, now_us: i64) -> Result<(), ServiceError> {
        match key.status(now_us) {
            KeyStatus::Revoked => return Err(ServiceError::NotFound("API key")),
            KeyStatus::Expired => {
                return Err(ServiceError::Conflict("the key is over: make a new one".into()));
            }
            KeyStatus::Active => {}
        }
        let is_configured = key.is_bootstrap && self.0.config.admin_key.is_some();
        if is_configured || key.id.as_str() == BOOTSTRAP_ID {
            let message = "this key is set by MILLGATE_ADMIN_KEY: change it there and start the server again";
            return Err(ServiceError::Conflict(message.into()));
        }
        Ok(())
    }

    /// A new secret is a new credential: whoever asks for it with a key must not get more than that key gives.
    async fn check_no_stronger(&self, actor: &Principal, wanted: &KeyRecord) -> Result<(), ServiceError> {
        let in_use = self.lineage_in_use(actor).await?;
        let Some(key) = in_use.first() else { return Ok(()) };
        let comes_from_it = lineage(self.0.records.as_ref(), wanted.clone()).await?.iter().any(|one| one.id == key.id);
        let lasts = match (key.expires_at_us, wanted.expires_at_us) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(own), Some(other)) => other <= own,
        };
        let is_replaced = actor.secret.is_some_and(|secret| secret.until_us.is_some());
        if (comes_from_it && !is_replaced) || (lasts && !in_use.iter().any(has_terms)) {
            return Ok(());
        }
        let message =
            "Access denied. The key in use is weaker than this one: rotate it with itself or a key that lasts as long.";
        Err(ServiceError::Forbidden(message.into()))
    }
}

/// True for a key with models or limits of its own.
fn has_terms(key: &KeyRecord) -> bool {
    key.models.is_some() || !key.limits.is_empty()
}

fn apply(key: &mut KeyRecord, patch: &KeyPatch) -> Result<(), ServiceError> {
    if let Some(name) = &patch.name {
        check_key_name(name)?;
        key.name.clone_from(name);
    }
    if let Some(description) = &patch.description {
        check_free_text("description", description, 1000)?;
        key.description = Some(description.clone()).filter(|text| !text.is_empty());
    }
    if let Some(labels) = &patch.labels {
        check_labels(labels)?;
        key.labels.clone_from(labels);
    }
    if let Some(models) = &patch.models {
        check_models(models.as_deref().unwrap_or_default())?;
        key.models.clone_from(models);
    }
    if let Some(limits) = &patch.limits {
        key.limits = key_limits(limits)?;
    }
    Ok(())
}
