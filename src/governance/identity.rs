//! From a credential to a principal: looked up once per policy version, compared in constant time on every request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

use arc_swap::ArcSwap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::attribution::Attribution;
use super::keys::{self, BOOTSTRAP_ID, Credential, Presented};
use super::policy::{ADMINS, AUTHENTICATED, Policy, Principal};
use super::ports::{PolicyTables, Records, StoreError};
use super::records::{KeyId, KeyRecord, UserId, UserRecord};

/// Identities kept; beyond it all are forgotten and looked up again, so memory stays bounded.
const CACHED_MAX: usize = 65_536;

/// A key and what its holder may do, at one policy version.
struct Identity {
    version: u64,
    digest: [u8; 32],
    expires_at_us: Option<i64>,
    /// `None`: revoked, or its user is deactivated.
    principal: Option<Principal>,
}

/// Cached identities and the policy they were made from.
pub(super) struct Identities {
    /// The newest version known; every change made here bumps it before the change is answered.
    version: AtomicU64,
    /// When the version was last read from the store.
    confirmed_at_us: AtomicI64,
    tables: ArcSwap<PolicyTables>,
    cache: RwLock<HashMap<KeyId, Arc<Identity>>>,
    used: Mutex<HashMap<KeyId, i64>>,
    salt_secret: [u8; 32],
    instance: Arc<str>,
}

impl Identities {
    /// Nothing cached, the policy as it is now.
    pub(super) fn new(tables: PolicyTables, now_us: i64, salt_secret: [u8; 32], instance: Arc<str>) -> Self {
        Self {
            version: AtomicU64::new(tables.version),
            confirmed_at_us: AtomicI64::new(now_us),
            tables: ArcSwap::from_pointee(tables),
            cache: RwLock::default(),
            used: Mutex::default(),
            salt_secret,
            instance,
        }
    }

    /// Takes note of a version; older ones change nothing.
    pub(super) fn saw_version(&self, version: u64) {
        self.version.fetch_max(version, Ordering::SeqCst);
    }

    /// Takes note that the store was read.
    pub(super) fn confirm(&self, now_us: i64) {
        self.confirmed_at_us.fetch_max(now_us, Ordering::SeqCst);
    }

    /// Microseconds since the store was last read.
    pub(super) fn unconfirmed_us(&self, now_us: i64) -> i64 {
        now_us - self.confirmed_at_us.load(Ordering::SeqCst)
    }

    /// Tiers and models, at least as new as the newest version known.
    pub(super) async fn tables(&self, records: &dyn Records) -> Result<Arc<PolicyTables>, StoreError> {
        let tables = self.tables.load_full();
        if tables.version >= self.version.load(Ordering::SeqCst) {
            return Ok(tables);
        }
        let fresh = Arc::new(records.policy().await?);
        self.saw_version(fresh.version);
        self.tables.rcu(|old| if old.version < fresh.version { fresh.clone() } else { old.clone() });
        Ok(fresh)
    }

    /// The holder of a credential; `None` when it opens nothing.
    pub(super) async fn verify(
        &self,
        records: &dyn Records,
        credential: &Credential,
        now_us: i64,
    ) -> Result<Option<Principal>, StoreError> {
        let (id, digest) = match &credential.0 {
            Presented::Key { id, digest } => (id.clone(), digest),
            Presented::Opaque { digest } => (KeyId::from(BOOTSTRAP_ID), digest),
            Presented::Hopeless => return Ok(None),
        };
        let Some(identity) = self.identity(records, &id).await? else {
            return Ok(None);
        };
        let proven = keys::digests_match(&identity.digest, digest);
        let live = identity.expires_at_us.is_none_or(|end| now_us < end);
        if !(proven && live) {
            return Ok(None);
        }
        let principal = identity.principal.clone();
        if principal.is_some() {
            self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(id, now_us);
        }
        Ok(principal)
    }

    async fn identity(&self, records: &dyn Records, id: &KeyId) -> Result<Option<Arc<Identity>>, StoreError> {
        // Read before the record: a change that comes between makes the entry stale, never wrongly fresh.
        let version = self.version.load(Ordering::SeqCst);
        let cached = self.cache.read().unwrap_or_else(PoisonError::into_inner).get(id).cloned();
        if let Some(identity) = cached
            && identity.version == version
        {
            return Ok(Some(identity));
        }
        let tables = self.tables(records).await?;
        let Some((key, user)) = records.key(id).await? else {
            return Ok(None);
        };
        let identity = Arc::new(Identity {
            version,
            digest: key.digest,
            expires_at_us: key.expires_at_us,
            principal: (user.active && key.revoked_at_us.is_none()).then(|| self.principal(&tables, &user, Some(&key))),
        });
        let mut cache = self.cache.write().unwrap_or_else(PoisonError::into_inner);
        if cache.len() >= CACHED_MAX {
            cache.clear();
        }
        cache.insert(id.clone(), identity.clone());
        Ok(Some(identity))
    }

    /// What a user may do with a key.
    pub(super) fn principal(&self, tables: &PolicyTables, user: &UserRecord, key: Option<&KeyRecord>) -> Principal {
        let groups = groups_of(user);
        Principal {
            user: user.id,
            name: user.name.as_str().into(),
            policy: Arc::new(Policy::new(tables, user.id, &groups, key, &self.instance)),
            is_admin: groups.iter().any(|group| group == ADMINS),
            groups: groups.into(),
            key: key.map(|key| key.id.clone()),
            address: None,
            cache_salt: self.salt(user.id),
            attribution: Arc::new(Attribution::new(
                user.groups.iter().map(|membership| membership.group.clone()).collect(),
                key.map(|key| key.labels.clone()).unwrap_or_default(),
            )),
        }
    }

    /// Keys used since the last call, with the time.
    pub(super) fn take_used(&self) -> Vec<(KeyId, i64)> {
        std::mem::take(&mut *self.used.lock().unwrap_or_else(PoisonError::into_inner)).into_iter().collect()
    }

    fn salt(&self, user: UserId) -> [u8; 16] {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.salt_secret).expect("HMAC takes keys of any length");
        mac.update(user.0.as_bytes());
        let mut salt = [0; 16];
        salt.copy_from_slice(&mac.finalize().into_bytes()[..16]);
        salt
    }
}

/// The groups of a user, the one of everybody included, sorted and once each.
pub(super) fn groups_of(user: &UserRecord) -> Vec<String> {
    let mut groups: Vec<String> = user.groups.iter().map(|membership| membership.group.clone()).collect();
    groups.push(AUTHENTICATED.to_owned());
    groups.sort_unstable();
    groups.dedup();
    groups
}
