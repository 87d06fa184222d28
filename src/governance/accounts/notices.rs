//! Threshold notices for administrators.

use uuid::Uuid;

use super::commit::require_admin;
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::notices::Notice;
use crate::governance::policy::Principal;

impl Governor {
    /// Thresholds that were reached, newest first, before that one, with how their delivery stands.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn notices(
        &self,
        actor: &Principal,
        before: Option<(i64, Uuid)>,
        limit: u32,
    ) -> Result<Vec<Notice>, ServiceError> {
        require_admin(actor)?;
        Ok(self.0.records.notices(before, limit).await?)
    }
}
