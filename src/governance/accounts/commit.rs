//! Reading a policy version and committing on condition that it is still the newest.

use std::sync::Arc;

use uuid::Uuid;

use crate::governance::audit::Author;
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::policy::Principal;
use crate::governance::ports::{Change, Edit, PolicyTables, StoreError};
use crate::governance::records::{UserId, UserRecord};

/// Times a decision is made again because the policy changed meanwhile.
pub(super) const ATTEMPTS: usize = 64;

impl Governor {
    /// Tiers and models of the newest version.
    pub(super) async fn tables(&self) -> Result<Arc<PolicyTables>, ServiceError> {
        Ok(self.0.identities.tables(self.0.records.as_ref()).await?)
    }

    /// Commits; `false`: the policy changed meanwhile, decide again.
    pub(super) async fn commit(
        &self,
        author: Author,
        tables: &PolicyTables,
        changes: Vec<Change>,
    ) -> Result<bool, ServiceError> {
        let edit = Edit { author, at_us: self.0.clock.now_us(), changes };
        match self.0.records.change(tables.version, edit).await {
            Ok(version) => {
                // Before the answer: so the very next request here sees the change.
                self.0.identities.saw_version(version);
                Ok(true)
            }
            Err(StoreError::Changed { found, .. }) => {
                self.0.identities.saw_version(found);
                Ok(false)
            }
            Err(error) => Err(error.into()),
        }
    }

    /// The one who works on the data directory itself, with the server stopped: an administrator without user or key.
    pub fn operator(&self) -> Principal {
        let nobody = UserRecord {
            id: UserId(Uuid::nil()),
            issuer: "operator".into(),
            subject: "operator".into(),
            name: "operator".into(),
            active: true,
            created_at_us: 0,
            groups: Vec::new(),
            token_epoch: 0,
            groups_at_us: None,
        };
        let now_us = self.0.clock.now_us();
        let principal = self.0.identities.principal(&PolicyTables::default(), &nobody, &[], now_us);
        Principal { is_admin: true, ..principal }
    }
}

/// Somebody else kept changing the policy for [`ATTEMPTS`] rounds.
pub(super) fn busy() -> ServiceError {
    ServiceError::Unavailable(StoreError::Unavailable {
        operation: "change the policy",
        message: "others keep changing it".into(),
    })
}

impl Governor {
    /// Counts a change that the caller makes to something of their own. Ending a key is none: each can be ended once, and
    /// nobody must be kept from it.
    pub(super) fn note_own_change(&self, actor: &Principal) -> Result<(), ServiceError> {
        if actor.is_admin {
            return Ok(());
        }
        self.0.own_changes.note(&actor.user).map_err(|retry_after| ServiceError::TooManyChanges { retry_after })
    }
}

/// Administration hangs on the group, not on a tier.
pub(super) fn require_admin(actor: &Principal) -> Result<(), ServiceError> {
    if actor.is_admin {
        return Ok(());
    }
    Err(ServiceError::Forbidden("Access denied. Only administrators may do this.".into()))
}

/// A text that people read: not empty, no control characters, not longer than `max` characters.
pub(super) fn check_text(param: &'static str, text: &str, max: usize) -> Result<(), ServiceError> {
    if text.trim().is_empty() {
        return Err(ServiceError::invalid(param, format!("`{param}` must not be empty")));
    }
    check_free_text(param, text, max)
}

/// A text that may be empty.
pub(super) fn check_free_text(param: &'static str, text: &str, max: usize) -> Result<(), ServiceError> {
    if text.chars().count() > max {
        return Err(ServiceError::invalid(param, format!("`{param}` must have at most {max} characters")));
    }
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err(ServiceError::invalid(param, format!("`{param}` must not contain control characters")));
    }
    Ok(())
}
