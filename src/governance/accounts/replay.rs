//! What other tiers would have done to the requests of the past; nothing changes.

use super::commit::require_admin;
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::policy::Principal;
use crate::governance::ports::StoreError;
use crate::governance::replay::{Question, Recorded, ReplayError, Report, Stage, simulate, tiers_after};
use crate::governance::tier_files::Declaration;

impl From<ReplayError> for ServiceError {
    fn from(error: ReplayError) -> Self {
        match error {
            ReplayError::Store(error) => error.into(),
            ReplayError::Counters(error) => {
                Self::Unavailable(StoreError::Unavailable { operation: "replay the ledger", message: error.message })
            }
        }
    }
}

impl Governor {
    /// Plays the ledger of `[from_us, to_us)` under the tiers as they would be with `declared` applied, and tells at most
    /// `cases` single requests.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid` tiers, the store.
    pub async fn simulate_tiers(
        &self,
        actor: &Principal,
        declared: &Declaration,
        (from_us, to_us): (i64, i64),
        cases: usize,
    ) -> Result<Report, ServiceError> {
        require_admin(actor)?;
        let tables = self.tables().await?;
        let plan = declared.plan(&tables.tiers, &self.0.config.new_tier_limits)?;
        let tiers = tiers_after(&tables.tiers, plan);
        let instance = self.0.config.instance.clone();
        let question = Question { tables: tables.as_ref().clone(), tiers, from_us, to_us, cases, instance };
        let stage = Stage::new(|clock| self.0.counters.blank(clock));
        let _turn = self.0.replays.acquire().await;
        Ok(simulate(&Recorded(self.0.records.as_ref()), stage, question).await?)
    }
}
