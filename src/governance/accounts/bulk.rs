//! Ending many API keys in one step, or telling which it would be.

use super::commit::{ATTEMPTS, busy, require_admin};
use super::keys::Key;
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::policy::Principal;
use crate::governance::ports::{Change, KeyFilter};
use crate::governance::records::{KeyStatus, UserId};

/// Which keys to end; all conditions together.
#[derive(Debug, Clone, Default)]
pub struct RevokeMany {
    /// Those of this user.
    pub user: Option<String>,
    /// Those with this label, of that value if one is named.
    pub label: Option<(String, Option<String>)>,
    /// Those made before this moment.
    pub created_before_us: Option<i64>,
    /// Tell which and change nothing.
    pub is_dry_run: bool,
}

/// What was ended, or would be.
#[derive(Debug, Clone)]
pub struct BulkRevoked {
    /// The keys, newest first.
    pub keys: Vec<Key>,
    /// Nothing was changed.
    pub is_dry_run: bool,
    /// More keys fit than one step takes: ask again.
    pub has_more: bool,
}

/// Keys ended in one step at most; a user has far fewer, a clean-up over everybody may need several.
const STEP: u32 = 10_000;

impl Governor {
    /// Ends the caller's keys that fit; an administrator may name another user.
    ///
    /// The key in use is not spared when it fits.
    ///
    /// # Errors
    /// `Invalid` when nothing is selected, `Forbidden` for another user's keys, `NotFound` for an unknown user.
    pub async fn revoke_many(&self, actor: &Principal, wish: &RevokeMany) -> Result<BulkRevoked, ServiceError> {
        let user = match &wish.user {
            None => actor.user,
            Some(name) if !actor.is_admin && *name != *actor.name => {
                return Err(ServiceError::Forbidden(
                    "Access denied. Only administrators may end keys of others.".into(),
                ));
            }
            Some(_) if !actor.is_admin => actor.user,
            Some(name) => self.user_record(name).await?.id,
        };
        self.revoke_fitting(actor, Some(user), wish).await
    }

    /// Ends everybody's keys that fit, by an administrator.
    ///
    /// # Errors
    /// `Forbidden`; as [`Governor::revoke_many`].
    pub async fn revoke_many_of_all(&self, actor: &Principal, wish: &RevokeMany) -> Result<BulkRevoked, ServiceError> {
        require_admin(actor)?;
        let user = match &wish.user {
            Some(name) => Some(self.user_record(name).await?.id),
            None => None,
        };
        self.revoke_fitting(actor, user, wish).await
    }

    async fn revoke_fitting(
        &self,
        actor: &Principal,
        user: Option<UserId>,
        wish: &RevokeMany,
    ) -> Result<BulkRevoked, ServiceError> {
        if wish.user.is_none() && wish.label.is_none() && wish.created_before_us.is_none() {
            let message = "say which keys: `label`, `created_before` or `user`; nothing was revoked";
            return Err(ServiceError::invalid("label", message));
        }
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let now_us = self.0.clock.now_us();
            let filter = KeyFilter {
                user,
                statuses: vec![KeyStatus::Active],
                labels: wish.label.clone().into_iter().collect(),
                created_before_us: wish.created_before_us,
                with_ephemeral: true,
                now_us,
                limit: STEP + 1,
                ..KeyFilter::default()
            };
            let mut records = self.0.records.keys(&filter).await?;
            let has_more = records.len() > STEP as usize;
            records.truncate(STEP as usize);
            if wish.is_dry_run || records.is_empty() {
                let keys = self.views(records).await?;
                return Ok(BulkRevoked { keys, is_dry_run: wish.is_dry_run, has_more });
            }
            for record in &mut records {
                record.revoked_at_us = Some(now_us);
            }
            let changes = records.iter().cloned().map(Change::PutKey).collect();
            if self.commit(actor.author(), &tables, changes).await? {
                return Ok(BulkRevoked { keys: self.views(records).await?, is_dry_run: false, has_more });
            }
        }
        Err(busy())
    }
}
