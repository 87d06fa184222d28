//! Making and ending short-lived tokens, and looking after the keys that sign them.

use std::sync::Arc;
use std::time::Duration;

use uuid::Uuid;

use super::commit::{ATTEMPTS, busy, check_text, require_admin};
use crate::governance::audit::Author;
use crate::governance::clock::micros;
use crate::governance::config::Secret;
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::keys::SecretMark;
use crate::governance::policy::{Means, Principal};
use crate::governance::ports::{Change, StoreError};
use crate::governance::records::{KeyRecord, SigningKeyRecord, UserId};
use crate::governance::tokens::{Claims, Keyring, MadeWith, SHORTEST_TOKEN_LIFE, fresh_key};

/// A token that was just made.
#[derive(Debug)]
pub struct SignedToken {
    /// The token itself: shown this once and kept nowhere.
    pub token: Secret,
    /// Its id.
    pub id: Uuid,
    /// First instant at which it no longer works; microseconds since the Unix epoch.
    pub expires_at_us: i64,
}

/// A key that signs tokens, or did: never its secret.
#[derive(Debug, Clone)]
pub struct SigningKey {
    /// The `kid` in tokens and in the JWKS document.
    pub id: String,
    /// Microseconds since the Unix epoch, like all times here.
    pub created_at_us: i64,
    /// When it stopped signing; `None`: it signs.
    pub retired_at_us: Option<i64>,
}

impl From<&SigningKeyRecord> for SigningKey {
    fn from(key: &SigningKeyRecord) -> Self {
        Self { id: key.id.clone(), created_at_us: key.created_at_us, retired_at_us: key.retired_at_us }
    }
}

impl Governor {
    /// Makes a token for the caller: as strong as the key they came with while that stands, and never longer.
    ///
    /// # Errors
    /// `Forbidden` for a caller who came with a token, `Invalid` for a life out of bounds.
    pub async fn create_token(
        &self,
        actor: &Principal,
        life: Option<Duration>,
        name: Option<&str>,
    ) -> Result<SignedToken, ServiceError> {
        let config = &self.0.config;
        let life = life.unwrap_or(config.token_default_life);
        if life < SHORTEST_TOKEN_LIFE || life > config.token_longest_life {
            let (least, most) = (SHORTEST_TOKEN_LIFE.as_secs() / 60, config.token_longest_life.as_secs() / 60);
            let most = if most.is_multiple_of(60) { format!("{}h", most / 60) } else { format!("{most}m") };
            return Err(ServiceError::invalid("expiration", format!("`expiration` must be {least}m to {most}")));
        }
        name.map_or(Ok(()), |name| check_text("name", name, 100))?;
        let parent = self.parent(actor).await?;
        let user = self.0.records.user(actor.user).await?.ok_or(ServiceError::NotFound("user"))?;
        let keyring = self.signing_keyring().await?;
        // Whole seconds, rounded down, so that it never outlives what it comes from.
        let whole = |us: i64| us.div_euclid(1_000_000) * 1_000_000;
        let now_us = self.0.clock.now_us();
        let ends_us = whole(now_us).saturating_add(micros(life));
        let parent_ends_us = parent.as_ref().and_then(|key| key.expires_at_us).map_or(i64::MAX, whole);
        // The secret that was shown, whatever became of the key since: if it was stopped, the token opens nothing.
        let mark = |key: &KeyRecord| actor.secret.map_or_else(|| SecretMark::of(&key.digest), |secret| secret.mark);
        let claims = Claims {
            id: Uuid::now_v7(),
            user: user.id,
            key: parent.map(|key| MadeWith { mark: mark(&key), key: key.id }),
            epoch: user.token_epoch,
            issued_at_us: whole(now_us),
            expires_at_us: ends_us.min(parent_ends_us),
        };
        let token = claims.sign(&keyring).ok_or_else(busy)?;
        tracing::info!(user.id = %user.id, token.id = %claims.id, token.name = name, "a token was made");
        Ok(SignedToken { token: Secret::new(token), id: claims.id, expires_at_us: claims.expires_at_us })
    }

    /// Ends every token the caller has made; keys stay.
    ///
    /// # Errors
    /// `TooManyChanges`, the store.
    pub async fn revoke_tokens(&self, actor: &Principal) -> Result<(), ServiceError> {
        self.note_own_change(actor)?;
        self.end_tokens(actor.author(), actor.user).await
    }

    /// Ends every token of a user, by an administrator.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound` for an unknown user.
    pub async fn revoke_tokens_of(&self, actor: &Principal, name: &str) -> Result<(), ServiceError> {
        require_admin(actor)?;
        let user = self.user_record(name).await?.id;
        self.end_tokens(actor.author(), user).await
    }

    async fn end_tokens(&self, author: Author, whose: UserId) -> Result<(), ServiceError> {
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let mut user = self.0.records.user(whose).await?.ok_or(ServiceError::NotFound("user"))?;
            user.token_epoch += 1;
            if self.commit(author.clone(), &tables, vec![Change::PutUser(user)]).await? {
                return Ok(());
            }
        }
        Err(busy())
    }

    /// The public halves of the signing keys, as a JWKS document.
    ///
    /// # Errors
    /// The store.
    pub async fn jwks(&self) -> Result<serde_json::Value, ServiceError> {
        Ok(self.keyring().await?.document(self.0.clock.now_us()))
    }

    /// The keys that sign tokens, or did and still verify; newest first.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn signing_keys(&self, actor: &Principal) -> Result<Vec<SigningKey>, ServiceError> {
        require_admin(actor)?;
        let keyring = self.keyring().await?;
        Ok(keyring.published(self.0.clock.now_us()).map(SigningKey::from).collect())
    }

    /// Lets a new key sign from now on; tokens of the old one live to their end.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn rotate_signing_key(&self, actor: &Principal) -> Result<SigningKey, ServiceError> {
        require_admin(actor)?;
        let before = self.keyring().await?.active().map(|key| key.id.clone());
        let is_unchanged = |ring: &Keyring| ring.active().map(|key| &key.id) == before.as_ref();
        let keyring = self.rotate_while(actor.author(), is_unchanged).await?;
        keyring.active().map(SigningKey::from).ok_or_else(busy)
    }

    /// Withdraws a signing key: every token it signed is dead on the next request.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn withdraw_signing_key(&self, actor: &Principal, id: &str) -> Result<(), ServiceError> {
        require_admin(actor)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let keyring = self.keyring().await?;
            if !keyring.published(self.0.clock.now_us()).any(|key| key.id == id) {
                return Err(ServiceError::NotFound("signing key"));
            }
            if self.commit(actor.author(), &tables, vec![Change::DeleteSigningKey(id.to_owned())]).await? {
                return Ok(());
            }
        }
        Err(busy())
    }

    /// Lets a new key sign when the old one is due, and forgets keys that nothing needs; called now and then.
    pub(in crate::governance) async fn tend_signing_keys(&self) {
        let now_us = self.0.clock.now_us();
        let tended = async {
            let keyring = self.keyring().await?;
            if keyring.active().is_some() {
                self.signing_keyring().await?;
            }
            if self.keyring().await?.has_leftovers(now_us) {
                let tables = self.tables().await?;
                let changes = self.keyring().await?.cleaning(now_us);
                // Lost against another change: the next round does it.
                self.commit(Author::server(), &tables, changes).await?;
            }
            Ok::<(), ServiceError>(())
        };
        if let Err(error) = tended.await {
            tracing::warn!(%error, "cannot look after the signing keys");
        }
    }

    async fn keyring(&self) -> Result<Arc<Keyring>, ServiceError> {
        Ok(self.0.tokens.keyring(self.0.records.as_ref(), &self.0.identities).await?)
    }

    /// A keyring whose active key is young enough to sign; makes one when it must.
    async fn signing_keyring(&self) -> Result<Arc<Keyring>, ServiceError> {
        let life = self.0.config.signing_key_life;
        self.rotate_while(Author::server(), |ring| ring.is_rotation_due(self.0.clock.now_us(), life)).await
    }

    /// Rotates unless somebody else did so first, and returns the keys as they are then.
    async fn rotate_while(
        &self,
        author: Author,
        is_wanted: impl Fn(&Keyring) -> bool,
    ) -> Result<Arc<Keyring>, ServiceError> {
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let keyring = self.keyring().await?;
            if !is_wanted(&keyring) {
                return Ok(keyring);
            }
            let now_us = self.0.clock.now_us();
            let fresh = fresh_key(now_us).map_err(|error| {
                ServiceError::Unavailable(StoreError::Unavailable {
                    operation: "make a signing key",
                    message: error.to_string().into(),
                })
            })?;
            let id = fresh.id.clone();
            if self.commit(author.clone(), &tables, keyring.rotation(fresh, now_us)).await? {
                tracing::info!(key.id = %id, "a new key signs tokens from now on");
            }
        }
        Err(busy())
    }
}

/// A token makes no other credential: what it made could outlive it.
pub(super) fn require_maker(actor: &Principal) -> Result<(), ServiceError> {
    match actor.means {
        // Who has just logged in at a provider makes the first key, or a token, with that.
        Means::Key | Means::Provider { .. } => Ok(()),
        Means::Token => Err(ServiceError::Forbidden(
            "Access denied. A token makes no keys and no tokens: use the API key it was made with.".into(),
        )),
    }
}
