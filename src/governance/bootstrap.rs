//! The first start: default tiers, the user `admin`, and one key that is told once.

use uuid::Uuid;

use super::audit::Author;
use super::config::{Config, Secret};
use super::error::StartError;
use super::keys::{self, BOOTSTRAP_ID, Credential, Presented};
use super::policy::ADMINS;
use super::ports::{Change, Edit, Records, StoreError};
use super::records::{KeyId, KeyRecord, LOCAL_ISSUER, Membership, MembershipSource, SetBy, UserId, UserRecord};
use super::tiers;

/// The name of the first administrator.
pub const ADMIN: &str = "admin";

/// What the start made.
#[derive(Debug, Default)]
pub struct FirstStart {
    /// The administrator's key, if this start made one: tell it once, it is not kept.
    pub admin_key: Option<Secret>,
    /// True when the store was empty.
    pub is_first: bool,
}

/// Times a decision is made again because another process changed the policy meanwhile.
const ATTEMPTS: usize = 16;

/// Makes what is missing, in one transaction, whoever comes first.
pub(super) async fn run(records: &dyn Records, config: &Config, now_us: i64) -> Result<FirstStart, StartError> {
    for _ in 0..ATTEMPTS {
        let version = records.policy_version().await?;
        let (first, changes) = decide(records, config, version, now_us).await?;
        if changes.is_empty() {
            return Ok(first);
        }
        let edit = Edit { author: Author::server(), at_us: now_us, changes };
        match records.change(version, edit).await {
            Ok(_) => return Ok(first),
            Err(StoreError::Changed { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Err(StartError::Store(StoreError::Unavailable {
        operation: "make the first administrator",
        message: "others keep changing the policy".into(),
    }))
}

async fn decide(
    records: &dyn Records,
    config: &Config,
    version: u64,
    now_us: i64,
) -> Result<(FirstStart, Vec<Change>), StartError> {
    // Version 0 is a store that nobody has ever changed; an emptied one is not filled again.
    let is_first = version == 0;
    let mut changes = Vec::new();
    let mut first = FirstStart { is_first, ..FirstStart::default() };
    if is_first {
        for tier in tiers::defaults() {
            changes.extend(tier.groups.iter().cloned().map(Change::PutGroup));
            changes.push(Change::PutTier(tier));
        }
    }
    let known = records.user_by_subject(LOCAL_ISSUER, ADMIN).await?;
    let (user, is_new) = match known {
        Some(user) => (user, false),
        None => (admin(now_us), true),
    };
    let wanted = config.admin_key.as_ref();
    if is_new && (is_first || wanted.is_some()) {
        changes.push(Change::PutUser(user.clone()));
    }
    match wanted {
        Some(secret) => changes.extend(replace_bootstrap(records, &user, secret, now_us).await?),
        None if is_first => {
            let fresh = keys::mint().map_err(|error| StartError::Random(error.to_string()))?;
            changes.push(Change::PutKey(bootstrap_key(&user, fresh.id, fresh.digest, now_us)));
            first.admin_key = Some(fresh.text);
        }
        None => {}
    }
    Ok((first, changes))
}

/// The changes that make `secret` the one bootstrap key; none when it is already.
async fn replace_bootstrap(
    records: &dyn Records,
    user: &UserRecord,
    secret: &Secret,
    now_us: i64,
) -> Result<Vec<Change>, StartError> {
    let text = secret.reveal();
    let id = bootstrap_id(text).ok_or(StartError::WeakAdminKey)?;
    let digest = keys::digest(text);
    let mut changes = Vec::new();
    let old = records.bootstrap_keys().await?;
    if old.iter().any(|key| key.id == id && keys::digests_match(&key.digest, &digest)) && old.len() == 1 {
        return Ok(Vec::new());
    }
    if let Some((taken, _)) = records.key(&id).await? {
        if !taken.is_bootstrap {
            return Err(StartError::AdminKeyTaken);
        }
        if taken.revoked_at_us.is_some() && keys::digests_match(&taken.digest, &digest) {
            tracing::warn!("the configured admin key was revoked and stays so: configure another one");
            return Ok(Vec::new());
        }
        // The id may stay the same when the secret changes, and a token names its key by id: the old key's tokens must end.
        changes.push(Change::PutUser(UserRecord { token_epoch: user.token_epoch + 1, ..user.clone() }));
    }
    let revoke = |key: KeyRecord| Change::PutKey(KeyRecord { revoked_at_us: Some(now_us), ..key });
    let replaced: Vec<Change> = old.into_iter().filter(|key| key.id != id).map(revoke).collect();
    if !replaced.is_empty() {
        tracing::warn!("the administrator's bootstrap key was replaced by the configured one");
    }
    changes.extend(replaced);
    changes.push(Change::PutKey(bootstrap_key(user, id, digest, now_us)));
    Ok(changes)
}

/// The id a bootstrap key is stored under; `None` for a text that no request could present as one.
fn bootstrap_id(text: &str) -> Option<KeyId> {
    // What stands at the ends of a header's value is not part of it.
    if text.trim() != text || !text.bytes().all(|byte| byte == b' ' || byte.is_ascii_graphic()) {
        return None;
    }
    match Credential::parse(text).0 {
        Presented::Key { id, .. } => Some(id),
        Presented::Opaque { .. } => Some(KeyId::from(BOOTSTRAP_ID)),
        Presented::Token { .. } | Presented::Hopeless => None,
    }
}

fn admin(now_us: i64) -> UserRecord {
    UserRecord {
        id: UserId(Uuid::now_v7()),
        issuer: LOCAL_ISSUER.into(),
        subject: ADMIN.into(),
        name: ADMIN.into(),
        active: true,
        created_at_us: now_us,
        groups: vec![Membership { group: ADMINS.into(), source: MembershipSource::Local }],
        token_epoch: 0,
        groups_at_us: None,
    }
}

fn bootstrap_key(user: &UserRecord, id: KeyId, digest: [u8; 32], now_us: i64) -> KeyRecord {
    KeyRecord {
        id,
        digest,
        previous: None,
        user: user.id,
        name: "bootstrap".into(),
        description: Some("the administrator's first key".into()),
        labels: Default::default(),
        models: None,
        limits: Vec::new(),
        terms_by: SetBy::Owner,
        parent: None,
        is_ephemeral: false,
        is_bootstrap: true,
        created_at_us: now_us,
        expires_at_us: None,
        revoked_at_us: None,
        last_used_at_us: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_secret_that_a_request_can_present_is_a_bootstrap_key() {
        assert_eq!(bootstrap_id("a-long-enough-admin-secret"), Some(KeyId::from(BOOTSTRAP_ID)));
        let minted = keys::mint().expect("randomness");
        assert_eq!(bootstrap_id(minted.text.reveal()), Some(minted.id));
        for unusable in [
            "short",
            "sk-mg_mistyped_mistyped_mistyped",
            " padded-secret-with-spaces-0123 ",
            "                             ",
            "a-secret-with-an-accent-in-it-\u{e9}",
            "eyJhbGciOiJIUzI1NiJ9.eyJhIjoxfQ.abcdefgh",
        ] {
            assert_eq!(bootstrap_id(unusable), None, "{unusable}");
        }
    }
}
