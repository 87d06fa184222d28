//! What the caller is told about themselves, and usage sums.

use super::commit::require_admin;
use crate::governance::error::{LimitStanding, ServiceError};
use crate::governance::governor::Governor;
use crate::governance::policy::Principal;
use crate::governance::ports::{StoreError, UsageQuery, UsageSum};
use crate::governance::records::UserId;

/// The answer to "who am I and what is left".
#[derive(Debug, Clone)]
pub struct Me {
    /// The name.
    pub user: String,
    /// All groups, `system:authenticated` included.
    pub groups: Vec<String>,
    /// Name and display name of the tier; `None`: no tier matches.
    pub tier: Option<(String, String)>,
    /// Whether they administer this server.
    pub is_admin: bool,
    /// Every limit that holds for all models, and where it stands.
    pub limits: Vec<LimitStanding>,
    /// The models they may use.
    pub models: Vec<String>,
}

impl Governor {
    /// Who the caller is, their limits and their models.
    ///
    /// # Errors
    /// `Unavailable` when the counters cannot be reached.
    pub async fn me(&self, who: &Principal) -> Result<Me, ServiceError> {
        let mut limits = self.standing(who, None).await.map_err(unavailable)?;
        for model in who.policy.models() {
            let of_model = self.standing(who, Some(model)).await.map_err(unavailable)?;
            limits.extend(of_model.into_iter().filter(|standing| standing.model.is_some()));
        }
        Ok(Me {
            user: who.name.to_string(),
            groups: who.groups.to_vec(),
            tier: who.policy.tier.as_ref().map(|tier| (tier.name.clone(), tier.display_name.clone())),
            is_admin: who.is_admin,
            limits,
            models: who.policy.models().map(str::to_owned).collect(),
        })
    }

    /// Sums of the ledger over everybody, for administrators.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn usage(&self, actor: &Principal, query: &UsageQuery) -> Result<Vec<UsageSum>, ServiceError> {
        require_admin(actor)?;
        self.report(query).await
    }

    /// Sums of the ledger over the caller's own requests.
    ///
    /// # Errors
    /// The store.
    pub async fn own_usage(&self, who: &Principal, query: &UsageQuery) -> Result<Vec<UsageSum>, ServiceError> {
        let own = UsageQuery { user: Some(who.user), ..query.clone() };
        self.report(&own).await
    }

    /// The id of a user by name or id, for administrators.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn user_named(&self, actor: &Principal, name: &str) -> Result<UserId, ServiceError> {
        require_admin(actor)?;
        Ok(self.user_record(name).await?.id)
    }

    /// A report that holds everything that was refused so far, too.
    async fn report(&self, query: &UsageQuery) -> Result<Vec<UsageSum>, ServiceError> {
        self.0.refusals.flush(self.0.records.as_ref()).await;
        Ok(self.0.records.usage(query).await?)
    }
}

fn unavailable(error: crate::governance::StandingError) -> ServiceError {
    ServiceError::Unavailable(StoreError::Unavailable { operation: error.operation, message: error.message })
}
