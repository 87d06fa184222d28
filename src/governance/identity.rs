//! From a credential to a principal: looked up once per policy version, compared in constant time on every request.

use std::collections::HashMap;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use tokio::sync::{Notify, watch};

use super::attribution::Attribution;
use super::clock::micros;
use super::config::Config;
use super::keys::{self, BOOTSTRAP_ID, Credential, Presented, SecretMark};
use super::known::Known;
use super::policy::{ADMINS, AUTHENTICATED, Means, Person, Policy, Principal};
use super::ports::{PolicyTables, Records, StoreError};
use super::records::{KeyId, KeyRecord, MembershipSource, PreviousSecret, UserId, UserRecord};

/// Identities kept, those of keys and those of users.
const CACHED_MAX: usize = 65_536;
/// How exact "last used" is: uses that follow sooner are not noted again.
const USE_NOTED_EVERY_US: i64 = 1_000_000;

/// Whom an identity is about: who holds this key, or a user who came without one.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Holder {
    /// The holder of a key.
    Key(KeyId),
    /// A user.
    User(UserId),
}

/// A holder and what they may do, at one policy version.
pub(super) struct Identity {
    version: u64,
    /// Good before this moment: then a provider's word about groups is too old.
    until_us: i64,
    /// What proves the key; `None` for a user without one.
    proof: Option<Proof>,
    expires_at_us: Option<i64>,
    /// Whose it is.
    pub(super) user: UserId,
    /// The user's token epoch.
    pub(super) epoch: u64,
    /// `None`: revoked, or its user is deactivated.
    principal: Option<Principal>,
    /// When its use was noted last.
    noted_us: AtomicI64,
}

impl Identity {
    /// False when the policy has changed since, or a provider's word is too old.
    fn is_fresh(&self, version: u64, now_us: i64) -> bool {
        self.version == version && now_us < self.until_us
    }

    /// True once in a while.
    fn is_use_worth_noting(&self, now_us: i64) -> bool {
        let noted_us = self.noted_us.load(Ordering::Relaxed);
        let is_soon = (noted_us..noted_us.saturating_add(USE_NOTED_EVERY_US)).contains(&now_us);
        if !is_soon {
            self.noted_us.store(now_us, Ordering::Relaxed);
        }
        !is_soon
    }

    /// The principal, unless the key has expired or was revoked, or its user is deactivated.
    pub(super) fn principal_at(&self, now_us: i64) -> Option<Principal> {
        self.principal.clone().filter(|_| self.expires_at_us.is_none_or(|end| now_us < end))
    }

    /// The secret with this digest: the key's, or the one before a rotation while its grace lasts.
    fn proven_by(&self, digest: &[u8; 32], now_us: i64) -> Option<SecretInUse> {
        let proof = self.proof.as_ref()?;
        // Both are compared, whatever the clock says: the time it takes tells nothing.
        let by_previous = proof
            .previous
            .filter(|(previous, _)| keys::digests_match(&previous.digest, digest) & (now_us < previous.until_us));
        let is_current = keys::digests_match(&proof.digest, digest);
        match by_previous {
            _ if is_current => Some(SecretInUse { mark: proof.mark, until_us: None }),
            Some((previous, mark)) => Some(SecretInUse { mark, until_us: Some(previous.until_us) }),
            None => None,
        }
    }

    /// The secret with this mark, if the key may still be used with it.
    pub(super) fn secret_of(&self, mark: SecretMark, now_us: i64) -> Option<SecretInUse> {
        let secret = self.proof.as_ref()?.secrets().find(|secret| secret.mark == mark)?;
        Some(secret).filter(|secret| secret.until_us.is_none_or(|until_us| now_us < until_us))
    }
}

/// What proves a key, with the marks of its secrets.
struct Proof {
    digest: [u8; 32],
    mark: SecretMark,
    previous: Option<(PreviousSecret, SecretMark)>,
}

impl Proof {
    fn of(key: &KeyRecord) -> Self {
        let previous = key.previous.map(|previous| (previous, SecretMark::of(&previous.digest)));
        Self { digest: key.digest, mark: SecretMark::of(&key.digest), previous }
    }

    fn secrets(&self) -> impl Iterator<Item = SecretInUse> {
        let previous = self.previous.map(|(previous, mark)| SecretInUse { mark, until_us: Some(previous.until_us) });
        std::iter::once(SecretInUse { mark: self.mark, until_us: None }).chain(previous)
    }
}

/// Which secret of a key somebody came with, or what they came with was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SecretInUse {
    pub(super) mark: SecretMark,
    /// When it stops working because it was replaced; `None`: as the key does.
    pub(super) until_us: Option<i64>,
}

impl SecretInUse {
    /// True while the key may be used with it.
    pub(super) fn holds(&self, key: &KeyRecord, now_us: i64) -> bool {
        let known = Proof::of(key).secrets().find(|secret| secret.mark == self.mark);
        known.is_some_and(|secret| secret.until_us.is_none_or(|until_us| now_us < until_us))
    }
}

/// Keys that made a key, at most so many: bounds what one look-up reads.
pub(super) const LINEAGE_MAX: usize = 8;

/// Cached identities and the policy they were made from.
pub(super) struct Identities {
    /// The newest version known; every change made here bumps it before the change is answered.
    version: AtomicU64,
    /// Rings when `version` grows.
    grown: Notify,
    /// The newest version whose tables are here; those who watch over running requests listen to it.
    published: watch::Sender<u64>,
    /// When the version was last read from the store.
    confirmed_at_us: AtomicI64,
    tables: ArcSwap<PolicyTables>,
    by_key: Known<KeyId, Identity>,
    by_user: Known<UserId, Identity>,
    used: Mutex<HashMap<KeyId, i64>>,
    salt_secret: [u8; 32],
    instance: Arc<str>,
    groups_max_age: Duration,
}

impl Identities {
    /// Nothing cached, the policy as it is now.
    pub(super) fn new(tables: PolicyTables, now_us: i64, salt_secret: [u8; 32], config: &Config) -> Self {
        Self {
            version: AtomicU64::new(tables.version),
            grown: Notify::new(),
            published: watch::Sender::new(tables.version),
            confirmed_at_us: AtomicI64::new(now_us),
            tables: ArcSwap::from_pointee(tables),
            by_key: Known::new(CACHED_MAX),
            by_user: Known::new(CACHED_MAX),
            used: Mutex::default(),
            salt_secret,
            instance: config.instance.clone(),
            groups_max_age: config.groups_max_age,
        }
    }

    /// The newest version known.
    pub(super) fn version(&self) -> u64 {
        self.version.load(Ordering::SeqCst)
    }

    /// Takes note of a version; older ones change nothing.
    pub(super) fn saw_version(&self, version: u64) {
        if self.version.fetch_max(version, Ordering::SeqCst) < version {
            self.grown.notify_one();
        }
    }

    /// Returns when the version has grown since the last call.
    pub(super) async fn version_grown(&self) {
        self.grown.notified().await;
    }

    /// Reads the tables if they are behind and tells everybody who watches over a running request.
    pub(super) async fn publish(&self, records: &dyn Records) -> Result<(), StoreError> {
        let version = self.tables(records).await?.version;
        self.published.send_if_modified(|published| {
            let is_newer = *published < version;
            *published = version.max(*published);
            is_newer
        });
        Ok(())
    }

    /// Versions as they are published.
    pub(super) fn versions(&self) -> watch::Receiver<u64> {
        self.published.subscribe()
    }

    /// What the caller may do now; `None`: their credential opens nothing any more.
    ///
    /// A key whose time ended while the request ran still holds for it: it was good when the request began.
    pub(super) async fn again(
        &self,
        records: &dyn Records,
        who: &Principal,
        now_us: i64,
    ) -> Result<Option<Principal>, StoreError> {
        let holder = who.key.clone().map_or(Holder::User(who.user), Holder::Key);
        let Some(identity) = self.identity(records, &holder, now_us).await? else { return Ok(None) };
        let is_ended = who.means == Means::Token && identity.epoch != who.epoch;
        // As with keys: a grace that ended meanwhile was good when the request began, a secret that was stopped is not.
        let is_stopped = |secret: &SecretInUse| {
            identity.proof.as_ref().is_none_or(|proof| proof.secrets().all(|known| known.mark != secret.mark))
        };
        let is_ended = is_ended || who.secret.as_ref().is_some_and(is_stopped);
        Ok(identity.principal.clone().filter(|_| !is_ended))
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
            Presented::Key { id, digest } => (id.as_str(), digest),
            Presented::Opaque { digest } => (BOOTSTRAP_ID, digest),
            Presented::Token { .. } | Presented::Hopeless => return Ok(None),
        };
        let version = self.version();
        let check = |identity: &Arc<Identity>| {
            identity.is_fresh(version, now_us).then(|| self.prove(identity, id, digest, now_us))
        };
        if let Some(verdict) = self.by_key.look(id, check).flatten() {
            return Ok(verdict);
        }
        let identity = self.identity(records, &Holder::Key(KeyId::from(id)), now_us).await?;
        Ok(identity.and_then(|identity| self.prove(&identity, id, digest, now_us)))
    }

    /// The holder of a key, for whoever has its secret.
    fn prove(&self, identity: &Identity, key: &str, digest: &[u8; 32], now_us: i64) -> Option<Principal> {
        let secret = identity.proven_by(digest, now_us)?;
        let principal = identity.principal_at(now_us)?;
        self.note_use(identity, key, now_us);
        Some(Principal { secret: Some(secret), ..principal })
    }

    /// Remembers that a key was used, to be written later.
    pub(super) fn note_use(&self, identity: &Identity, key: &str, now_us: i64) {
        if identity.is_use_worth_noting(now_us) {
            self.used.lock().unwrap_or_else(PoisonError::into_inner).insert(KeyId::from(key), now_us);
        }
    }

    /// Who a key or a user is at the newest version known; `None` when there is no such thing.
    pub(super) async fn identity(
        &self,
        records: &dyn Records,
        holder: &Holder,
        now_us: i64,
    ) -> Result<Option<Arc<Identity>>, StoreError> {
        // Read before the record: a change that comes between makes the entry stale, never wrongly fresh.
        let version = self.version.load(Ordering::SeqCst);
        let cached = match holder {
            Holder::Key(id) => self.by_key.look(id, Arc::clone),
            Holder::User(id) => self.by_user.look(id, Arc::clone),
        };
        if let Some(identity) = cached.filter(|identity| identity.is_fresh(version, now_us)) {
            return Ok(Some(identity));
        }
        let tables = self.tables(records).await?;
        let found = match holder {
            Holder::Key(id) => records.key(id).await?.map(|(key, user)| (Some(key), user)),
            Holder::User(id) => records.user(*id).await?.map(|user| (None, user)),
        };
        let Some((key, user)) = found else {
            return Ok(None);
        };
        let opens = user.active && key.as_ref().is_none_or(|key| key.revoked_at_us.is_none());
        let proof = key.as_ref().map(Proof::of);
        let expires_at_us = key.as_ref().and_then(|key| key.expires_at_us);
        let lineage = match key {
            Some(key) if opens => lineage(records, key).await?,
            _ => Vec::new(),
        };
        let identity = Arc::new(Identity {
            version,
            until_us: groups_until_us(&user, now_us, self.groups_max_age),
            proof,
            expires_at_us,
            user: user.id,
            epoch: user.token_epoch,
            principal: opens.then(|| self.principal(&tables, &user, &lineage, now_us)),
            noted_us: AtomicI64::new(i64::MIN),
        });
        match holder {
            Holder::Key(id) => self.by_key.put(id, &identity),
            Holder::User(id) => self.by_user.put(id, &identity),
        }
        Ok(Some(identity))
    }

    /// What a user may do with a key, given with the keys it comes from.
    pub(super) fn principal(
        &self,
        tables: &PolicyTables,
        user: &UserRecord,
        lineage: &[KeyRecord],
        now_us: i64,
    ) -> Principal {
        let groups = groups_of(user, now_us, self.groups_max_age);
        let is_admin = groups.iter().any(|group| group == ADMINS);
        let person = Person {
            name: user.name.as_str().into(),
            policy: Policy::new(tables, user.id, &groups, lineage, &self.instance),
            groups,
            key: lineage.first().map(|key| key.id.clone()),
            attribution: Arc::new(Attribution::new(
                user.groups.iter().map(|membership| membership.group.clone()).collect(),
                lineage.first().map(|key| key.labels.clone()).unwrap_or_default(),
            )),
        };
        Principal {
            person: Arc::new(person),
            user: user.id,
            means: Means::Key,
            epoch: user.token_epoch,
            signed_with: None,
            secret: None,
            is_admin,
            address: None,
            cache_salt: self.salt(user.id),
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

/// A key, the key that made it, the one that made that, and so on: all their models and limits hold for it.
///
/// That one of them was revoked or is over changes nothing about that. It never outlives the one that was forgotten.
pub(super) async fn lineage(records: &dyn Records, key: KeyRecord) -> Result<Vec<KeyRecord>, StoreError> {
    let mut lineage = vec![key];
    while lineage.len() <= LINEAGE_MAX
        && let Some(parent) = lineage.last().and_then(|key| key.parent.clone())
    {
        match records.key(&parent).await? {
            Some((parent, _)) => lineage.push(parent),
            None => break,
        }
    }
    Ok(lineage)
}

/// The groups of a user, the one of everybody included, sorted and once each.
///
/// What a provider said longer than `max_age` ago no longer counts.
pub(super) fn groups_of(user: &UserRecord, now_us: i64, max_age: Duration) -> Vec<String> {
    let is_fresh = now_us < told_until_us(user, max_age);
    let counts = |source| is_fresh || source != MembershipSource::Federated;
    let counted = user.groups.iter().filter(|membership| counts(membership.source));
    let mut groups: Vec<String> = counted.map(|membership| membership.group.clone()).collect();
    groups.push(AUTHENTICATED.to_owned());
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// Until when the groups of a user stay what they are now, if nobody changes them.
fn groups_until_us(user: &UserRecord, now_us: i64, max_age: Duration) -> i64 {
    let is_federated = user.groups.iter().any(|membership| membership.source == MembershipSource::Federated);
    let until_us = told_until_us(user, max_age);
    if is_federated && now_us < until_us { until_us } else { i64::MAX }
}

/// Until when the last word of the user's provider counts.
fn told_until_us(user: &UserRecord, max_age: Duration) -> i64 {
    user.groups_at_us.map_or(i64::MIN, |told_us| told_us.saturating_add(micros(max_age)))
}
