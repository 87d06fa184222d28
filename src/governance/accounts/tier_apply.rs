//! Applying declared tiers: all of a declaration in one transaction, by an administrator or from the watched folder.

use super::commit::{ATTEMPTS, busy, require_admin};
use super::tiers::{DeletedTier, deletion_changes, put};
use crate::governance::audit::Author;
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::policy::Principal;
use crate::governance::ports::{Change, PolicyTables};
use crate::governance::records::TierRecord;
use crate::governance::tier_files::{Declaration, TierFilesState, TierPlan};

/// What applying a declaration did, or would do; tiers that stay as they are appear nowhere.
#[derive(Debug, Clone, Default)]
pub struct AppliedTiers {
    /// New tiers.
    pub created: Vec<TierRecord>,
    /// Changed tiers, as they were and as they are.
    pub updated: Vec<(TierRecord, TierRecord)>,
    /// Tiers that went, with who had them.
    pub deleted: Vec<DeletedTier>,
}

impl AppliedTiers {
    /// True when nothing changes.
    pub fn is_empty(&self) -> bool {
        self.created.is_empty() && self.updated.is_empty() && self.deleted.is_empty()
    }
}

impl Governor {
    /// What applying a declaration would do.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid` for a tier that breaks the rules, `Conflict` for what the watched folder owns.
    pub async fn plan_tiers(&self, actor: &Principal, declared: &Declaration) -> Result<AppliedTiers, ServiceError> {
        require_admin(actor)?;
        let tables = self.tables().await?;
        let plan = declared.plan(&tables.tiers, &self.0.config.new_tier_limits)?;
        self.refuse_watched(&tables, &plan)?;
        self.outcome(&tables, plan).await
    }

    /// Applies a declaration in one transaction and tells what it did.
    ///
    /// # Errors
    /// As [`Governor::plan_tiers`].
    pub async fn apply_tiers(&self, actor: &Principal, declared: &Declaration) -> Result<AppliedTiers, ServiceError> {
        require_admin(actor)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let plan = declared.plan(&tables.tiers, &self.0.config.new_tier_limits)?;
            self.refuse_watched(&tables, &plan)?;
            if plan.is_empty() {
                return Ok(AppliedTiers::default());
            }
            let outcome = self.outcome(&tables, plan.clone()).await?;
            if self.commit(actor.author(), &tables, plan_changes(&tables, &plan)).await? {
                return Ok(outcome);
            }
        }
        Err(busy())
    }

    /// Brings the tiers in line with the watched folder; from then on the fields it declares cannot be changed elsewhere.
    ///
    /// # Errors
    /// `Invalid` for a tier that breaks the rules, the store; the last good state stays in effect then.
    pub async fn follow_tiers(&self, declared: &Declaration) -> Result<TierPlan, ServiceError> {
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let plan = declared.plan(&tables.tiers, &self.0.config.new_tier_limits)?;
            let changes = plan_changes(&tables, &plan);
            if changes.is_empty() || self.commit(Author::server(), &tables, changes).await? {
                self.0.watched.applied(declared, self.0.clock.now_us());
                return Ok(plan);
            }
        }
        Err(busy())
    }

    /// Takes note that the watched folder cannot be applied.
    pub fn tier_files_failed(&self, problem: String) {
        self.0.watched.failed(problem);
    }

    /// How the files of the watched folder are doing; `None` while none is watched.
    pub fn tier_files_state(&self) -> Option<TierFilesState> {
        self.0.watched.state()
    }

    /// What a watched folder declares is changed there, or the next look at it would silently undo the change.
    pub(super) fn refuse_declared(&self, old: &TierRecord, new: &TierRecord) -> Result<(), ServiceError> {
        match self.0.watched.conflict(old, new) {
            None => Ok(()),
            Some((file, field)) => Err(ServiceError::Conflict(format!(
                "`{field}` of tier `{}` is declared in the watched file `{file}`: change it there",
                old.name
            ))),
        }
    }

    /// The same for a tier as a whole.
    pub(super) fn refuse_declared_deletion(&self, name: &str) -> Result<(), ServiceError> {
        match self.0.watched.file_of(name) {
            None => Ok(()),
            Some(file) => Err(ServiceError::Conflict(format!(
                "tier `{name}` is declared in the watched file `{file}`: remove it there"
            ))),
        }
    }

    fn refuse_watched(&self, tables: &PolicyTables, plan: &TierPlan) -> Result<(), ServiceError> {
        for new in &plan.update {
            let old = tables.tiers.iter().find(|old| old.name == new.name);
            old.map_or(Ok(()), |old| self.refuse_declared(old, new))?;
        }
        plan.delete.iter().try_for_each(|tier| self.refuse_declared_deletion(&tier.name))
    }

    async fn outcome(&self, tables: &PolicyTables, plan: TierPlan) -> Result<AppliedTiers, ServiceError> {
        let gone: Vec<&str> = plan.delete.iter().map(|tier| tier.name.as_str()).collect();
        let is_kept = |tier: &&TierRecord| !gone.contains(&tier.name.as_str());
        let is_same = |tier: &&TierRecord| plan.update.iter().all(|new| new.name != tier.name);
        let kept = tables.tiers.iter().filter(is_kept).filter(is_same);
        let after: Vec<TierRecord> = kept.chain(&plan.update).chain(&plan.create).cloned().collect();
        let deleted = self.deletion(tables, &after, &gone).await?;
        let before = |new: TierRecord| {
            let old = tables.tiers.iter().find(|old| old.name == new.name).unwrap_or(&new).clone();
            (old, new)
        };
        Ok(AppliedTiers { created: plan.create, updated: plan.update.into_iter().map(before).collect(), deleted })
    }
}

fn plan_changes(tables: &PolicyTables, plan: &TierPlan) -> Vec<Change> {
    let mut changes: Vec<Change> = plan.create.iter().chain(&plan.update).flat_map(put).collect();
    let gone: Vec<&str> = plan.delete.iter().map(|tier| tier.name.as_str()).collect();
    changes.extend(deletion_changes(tables, &gone));
    changes
}
