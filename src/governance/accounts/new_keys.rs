//! Making API keys: never stronger than the credential that makes them.

use std::collections::BTreeMap;
use std::time::Duration;

use super::commit::{ATTEMPTS, busy, check_free_text, check_text, require_admin};
use super::keys::Key;
use super::tokens::require_maker;
use crate::governance::clock::micros;
use crate::governance::config::Secret;
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::identity::{LINEAGE_MAX, lineage};
use crate::governance::keys::{self, FreshKey};
use crate::governance::limits::{Limit, Scope, check_limits};
use crate::governance::policy::Principal;
use crate::governance::ports::{Change, StoreError};
use crate::governance::records::{KeyRecord, SetBy, UserRecord};

/// What a new key should be.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// What people read; an ephemeral key gets one when it is empty.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// How long it works; the configured default when absent.
    pub expires_in: Option<Duration>,
    /// Free labels.
    pub labels: BTreeMap<String, String>,
    /// Only these models; they need not exist yet.
    pub models: Option<Vec<String>>,
    /// Limits of this key and of all keys it makes together; each counts per key.
    pub limits: Vec<Limit>,
    /// A key of short life that lists leave out and that is forgotten some time after its end.
    pub is_ephemeral: bool,
}

/// A key that was just made, or that got a new secret.
#[derive(Debug)]
pub struct Issued {
    /// Everything that can be looked up later.
    pub key: Key,
    /// The key itself: shown this once.
    pub secret: Secret,
}

/// The longest life of an ephemeral key, and the usual one.
const EPHEMERAL_LIFE: Duration = Duration::from_secs(3600);
/// Labels of one key at most.
const LABELS_MAX: usize = 32;

impl Governor {
    /// Makes a key for the caller; it is never stronger than the key they came with.
    ///
    /// # Errors
    /// `Invalid`, `Forbidden` for a key that would be stronger, `Conflict` for too many, `TooManyChanges`.
    pub async fn create_key(&self, actor: &Principal, new: NewKey) -> Result<Issued, ServiceError> {
        self.note_own_change(actor)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let user = self.0.records.user(actor.user).await?.ok_or(ServiceError::NotFound("user"))?;
            let parents = self.lineage_in_use(actor).await?;
            let (record, secret) = self.new_key(&user, &parents, &new, SetBy::Owner).await?;
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
            let parents = if user.id == actor.user { self.lineage_in_use(actor).await? } else { Vec::new() };
            let (record, secret) = self.new_key(&user, &parents, &new, SetBy::Administrator).await?;
            if self.commit(actor.author(), &tables, vec![Change::PutKey(record.clone())]).await? {
                return Ok(self.issued(record, &user, secret));
            }
        }
        Err(busy())
    }

    /// The key the caller came with and those it comes from; empty when they came without.
    pub(super) async fn lineage_in_use(&self, actor: &Principal) -> Result<Vec<KeyRecord>, ServiceError> {
        match self.parent(actor).await? {
            Some(key) => Ok(lineage(self.0.records.as_ref(), key).await?),
            None => Ok(Vec::new()),
        }
    }

    /// The key the caller came with, to make another credential with; it may have ended since then. Its end is that of
    /// the secret in use: one that was replaced makes nothing that outlives its grace.
    pub(super) async fn parent(&self, actor: &Principal) -> Result<Option<KeyRecord>, ServiceError> {
        require_maker(actor)?;
        let Some(id) = &actor.key else { return Ok(None) };
        let now_us = self.0.clock.now_us();
        let holds = |key: &KeyRecord| actor.secret.is_none_or(|secret| secret.holds(key, now_us));
        match self.0.records.key(id).await? {
            Some((key, user)) if user.active && key.is_live(now_us) && holds(&key) => {
                let until_us = actor.secret.and_then(|secret| secret.until_us);
                let expires_at_us = key.expires_at_us.into_iter().chain(until_us).min();
                Ok(Some(KeyRecord { expires_at_us, ..key }))
            }
            _ => Err(ServiceError::Forbidden("Access denied. The key in use is no longer valid.".into())),
        }
    }

    async fn new_key(
        &self,
        user: &UserRecord,
        parents: &[KeyRecord],
        new: &NewKey,
        set_by: SetBy,
    ) -> Result<(KeyRecord, Secret), ServiceError> {
        check_new(new)?;
        let now_us = self.0.clock.now_us();
        if parents.len() > LINEAGE_MAX {
            let message = format!("keys may make keys at most {LINEAGE_MAX} deep: make this one with an earlier key");
            return Err(ServiceError::Conflict(message));
        }
        let models = inherited_models(parents, new.models.as_deref())?;
        let ends_us = now_us.saturating_add(micros(self.life(new)?));
        let ends_us = parents.iter().filter_map(|key| key.expires_at_us).fold(ends_us, i64::min);
        let most = self.0.config.keys_max_per_user;
        if self.0.records.live_keys(user.id, now_us).await? >= most {
            return Err(ServiceError::Conflict(format!("a user may have at most {most} API keys: revoke one first")));
        }
        let limits = key_limits(&new.limits)?;
        let fresh = fresh(keys::mint())?;
        let name = match new.name.as_str() {
            "" if new.is_ephemeral => format!("ephemeral-{}", fresh.id),
            name => name.to_owned(),
        };
        let record = KeyRecord {
            digest: fresh.digest,
            previous: None,
            user: user.id,
            name,
            description: new.description.clone().filter(|text| !text.is_empty()),
            labels: new.labels.clone(),
            terms_by: if new.models.is_none() && limits.is_empty() { SetBy::Owner } else { set_by },
            models,
            limits,
            parent: parents.first().map(|key| key.id.clone()),
            is_ephemeral: new.is_ephemeral,
            is_bootstrap: false,
            created_at_us: now_us,
            expires_at_us: Some(ends_us),
            revoked_at_us: None,
            last_used_at_us: None,
            id: fresh.id,
        };
        Ok((record, fresh.text))
    }

    fn life(&self, new: &NewKey) -> Result<Duration, ServiceError> {
        let config = &self.0.config;
        let (usual, longest, kind) = match new.is_ephemeral {
            true => (
                EPHEMERAL_LIFE.min(config.key_longest_life),
                EPHEMERAL_LIFE.min(config.key_longest_life),
                " for an ephemeral key",
            ),
            false => (config.key_default_life, config.key_longest_life, ""),
        };
        let life = new.expires_in.unwrap_or(usual);
        if life.is_zero() || life > longest {
            let message = format!("`expires_in` must be longer than 0 and at most {}{kind}", in_words(longest));
            return Err(ServiceError::invalid("expires_in", message));
        }
        Ok(life)
    }

    pub(super) fn issued(&self, record: KeyRecord, user: &UserRecord, secret: Secret) -> Issued {
        Issued { key: self.key_view(record, user.name.clone()), secret }
    }
}

/// A fresh secret, or why the system has none.
pub(super) fn fresh(minted: Result<FreshKey, getrandom::Error>) -> Result<FreshKey, ServiceError> {
    minted.map_err(|error| {
        ServiceError::Unavailable(StoreError::Unavailable {
            operation: "make a key",
            message: error.to_string().into(),
        })
    })
}

/// The models of a key that keys with these lists make: what is wished for, inside of all of them.
fn inherited_models(parents: &[KeyRecord], wanted: Option<&[String]>) -> Result<Option<Vec<String>>, ServiceError> {
    let allowed = parents.iter().filter_map(|key| key.models.as_ref());
    let Some(wanted) = wanted else {
        // The list of the nearest one; those of the others hold as long as the key does.
        return Ok(allowed.into_iter().next().cloned());
    };
    for list in allowed {
        if let Some(beyond) = wanted.iter().find(|model| !list.contains(model)) {
            let message = format!("Access denied. The key in use does not allow model `{beyond}`.");
            return Err(ServiceError::Forbidden(message));
        }
    }
    Ok(Some(wanted.to_vec()))
}

/// Limits as a key has them: each counts per key.
pub(super) fn key_limits(limits: &[Limit]) -> Result<Vec<Limit>, ServiceError> {
    if let Some(shared) = limits.iter().find(|limit| limit.scope == Scope::Tier) {
        let message = format!("`{shared}`: limits of a key count per key, they cannot be shared by a tier");
        return Err(ServiceError::invalid("limits", message));
    }
    let limits: Vec<Limit> = limits.iter().cloned().map(|limit| Limit { scope: Scope::Key, ..limit }).collect();
    check_limits(&limits).map_err(|error| ServiceError::invalid("limits", error))?;
    Ok(limits)
}

fn check_new(new: &NewKey) -> Result<(), ServiceError> {
    if !(new.is_ephemeral && new.name.is_empty()) {
        check_key_name(&new.name)?;
    }
    check_free_text("description", new.description.as_deref().unwrap_or_default(), 1000)?;
    check_labels(&new.labels)?;
    check_models(new.models.as_deref().unwrap_or_default())
}

/// One line of up to 128 characters.
pub(super) fn check_key_name(name: &str) -> Result<(), ServiceError> {
    if name.chars().any(char::is_control) {
        return Err(ServiceError::invalid("name", "`name` must not contain control characters"));
    }
    check_text("name", name, 128)
}

/// Names that stand in addresses and reports as they are, values of one line.
pub(super) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), ServiceError> {
    if labels.len() > LABELS_MAX {
        return Err(ServiceError::invalid("labels", format!("`labels` must have at most {LABELS_MAX} entries")));
    }
    for (name, value) in labels {
        if !is_label_name(name) {
            let message = format!(
                "`labels`: `{}` must be 1 to 63 letters, digits or `-_./`, with a letter or digit at both ends",
                name.chars().take(80).collect::<String>()
            );
            return Err(ServiceError::invalid("labels", message));
        }
        if value.chars().count() > 256 || value.chars().any(char::is_control) {
            let message = format!("`labels`: the value of `{name}` must be one line of at most 256 characters");
            return Err(ServiceError::invalid("labels", message));
        }
    }
    Ok(())
}

fn is_label_name(name: &str) -> bool {
    let ends = [name.bytes().next(), name.bytes().next_back()];
    name.len() <= 63
        && ends.into_iter().all(|end| end.is_some_and(|byte| byte.is_ascii_alphanumeric()))
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_./".contains(&byte))
}

pub(super) fn check_models(models: &[String]) -> Result<(), ServiceError> {
    if models.len() > 1000 {
        return Err(ServiceError::invalid("models", "`models` must have at most 1000 entries"));
    }
    models.iter().try_for_each(|model| check_text("models", model, 253))
}

/// A span in the largest unit that divides it: `90d`, `1h`.
pub(super) fn in_words(span: Duration) -> String {
    let seconds = span.as_secs();
    let units = [(86_400, 'd'), (3600, 'h'), (60, 'm'), (1, 's')];
    let (length, unit) = units.into_iter().find(|(length, _)| seconds.is_multiple_of(*length)).unwrap_or((1, 's'));
    format!("{}{unit}", seconds / length)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn label_names_are_safe_in_addresses_and_reports() {
        for name in ["team", "cost-centre", "example.com/team", "a", "A_1"] {
            assert!(is_label_name(name), "{name}");
        }
        for name in ["", "-a", "a-", "a b", "a\"b", "a\\b", "é", "a=b", &"x".repeat(64)] {
            assert!(!is_label_name(name), "{name}");
        }
    }

    #[test]
    fn spans_are_told_in_their_largest_unit() {
        let told = [90 * 86_400, 3600, 90 * 60, 61].map(|seconds| in_words(Duration::from_secs(seconds)));
        assert_eq!(told, ["90d", "1h", "90m", "61s"]);
    }
}
