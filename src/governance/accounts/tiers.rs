//! Tiers for administrators, and the look-up for everybody.

use super::commit::{ATTEMPTS, busy, require_admin};
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::identity::groups_of;
use crate::governance::limits::Limit;
use crate::governance::policy::Principal;
use crate::governance::ports::{Change, PolicyTables};
use crate::governance::records::{ModelRecord, Published, TierOrigin, TierRecord};
use crate::governance::tiers::{self, TierError};

/// A tier to make.
#[derive(Debug, Clone, Default)]
pub struct NewTier {
    /// Immutable; made from the display name when absent.
    pub name: Option<String>,
    /// What people read; the name when absent.
    pub display_name: Option<String>,
    /// What it is for.
    pub description: String,
    /// The highest level among a user's groups wins.
    pub level: u32,
    /// Whose members are in it; at least one.
    pub groups: Vec<String>,
    /// Those of the configuration for new tiers when absent, never unlimited in silence; empty: unlimited.
    pub limits: Option<Vec<Limit>>,
    /// Share of the scheduler; 1 when absent.
    pub weight: Option<u32>,
}

/// What to change about a tier; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct TierPatch {
    /// What people read.
    pub display_name: Option<String>,
    /// What it is for.
    pub description: Option<String>,
    /// The highest level wins.
    pub level: Option<u32>,
    /// Whose members are in it.
    pub groups: Option<Vec<String>>,
    /// Empty: unlimited.
    pub limits: Option<Vec<Limit>>,
    /// Share of the scheduler.
    pub weight: Option<u32>,
}

/// Somebody whose tier is going.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Affected {
    /// The user's name.
    pub user: String,
    /// The tier they fall to; `None`: they lose access.
    pub falls_to: Option<String>,
}

/// A tier that was deleted, or would be.
#[derive(Debug, Clone)]
pub struct DeletedTier {
    /// As it was.
    pub tier: TierRecord,
    /// Who had it; the first thousand.
    pub affected: Vec<Affected>,
    /// How many had it.
    pub affected_count: u64,
    /// Models that were published to it by name.
    pub models: Vec<String>,
}

/// Users told by name when a tier goes; the others are counted.
const AFFECTED_MAX: usize = 1000;

impl From<TierError> for ServiceError {
    fn from(error: TierError) -> Self {
        Self::Invalid { param: error.param, message: error.message }
    }
}

impl Governor {
    /// All tiers, lowest level first.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn tiers(&self, actor: &Principal) -> Result<Vec<TierRecord>, ServiceError> {
        require_admin(actor)?;
        let mut tiers = self.tables().await?.tiers.clone();
        tiers.sort_by_key(|tier| (tier.level, tier.position));
        Ok(tiers)
    }

    /// One tier.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn tier(&self, actor: &Principal, name: &str) -> Result<TierRecord, ServiceError> {
        require_admin(actor)?;
        let tables = self.tables().await?;
        find(&tables, name).cloned()
    }

    /// Makes a tier.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`, `Conflict` when name or level is in use.
    pub async fn create_tier(&self, actor: &Principal, new: NewTier) -> Result<TierRecord, ServiceError> {
        require_admin(actor)?;
        let tier = resolve_new(new, &self.0.config.new_tier_limits)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            if tables.tiers.iter().any(|other| other.name == tier.name) {
                return Err(ServiceError::Conflict(format!("tier `{}` exists already", tier.name)));
            }
            check_level(&tables, &tier)?;
            let position = tables.tiers.iter().map(|other| other.position + 1).max().unwrap_or(0);
            let tier = TierRecord { position, ..tier.clone() };
            if self.commit(actor.author(), &tables, put(&tier)).await? {
                return Ok(tier);
            }
        }
        Err(busy())
    }

    /// Changes a tier; effective on the next request, usage is kept.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Invalid`, `Conflict` when the level is in use.
    pub async fn update_tier(
        &self,
        actor: &Principal,
        name: &str,
        patch: TierPatch,
    ) -> Result<TierRecord, ServiceError> {
        require_admin(actor)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let old = find(&tables, name)?.clone();
            let patch = patch.clone();
            let tier = TierRecord {
                display_name: patch.display_name.unwrap_or(old.display_name),
                description: patch.description.unwrap_or(old.description),
                level: patch.level.unwrap_or(old.level),
                groups: patch.groups.map_or(old.groups, once_each),
                limits: patch.limits.unwrap_or(old.limits),
                weight: patch.weight.unwrap_or(old.weight),
                ..old
            };
            tiers::check(&tier)?;
            self.refuse_declared(find(&tables, name)?, &tier)?;
            if patch.level.is_some_and(|level| level != old.level) {
                check_level(&tables, &tier)?;
            }
            if self.commit(actor.author(), &tables, put(&tier)).await? {
                return Ok(tier);
            }
        }
        Err(busy())
    }

    /// Tells who would be affected by deleting a tier, without deleting it.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn preview_tier_deletion(&self, actor: &Principal, name: &str) -> Result<DeletedTier, ServiceError> {
        require_admin(actor)?;
        let tables = self.tables().await?;
        self.deletion_of(&tables, name).await
    }

    /// Deletes a tier and tells who is affected; the last one may go, too.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn delete_tier(&self, actor: &Principal, name: &str) -> Result<DeletedTier, ServiceError> {
        require_admin(actor)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let deleted = self.deletion_of(&tables, name).await?;
            if self.commit(actor.author(), &tables, deletion_changes(&tables, &[name])).await? {
                return Ok(deleted);
            }
        }
        Err(busy())
    }

    /// The tier that members of these groups get.
    ///
    /// # Errors
    /// `Invalid` for an empty list, `NotFound` when no tier matches.
    pub async fn lookup_tier(&self, groups: &[String]) -> Result<TierRecord, ServiceError> {
        if groups.is_empty() {
            return Err(ServiceError::invalid("groups", "`groups` must name at least one group"));
        }
        let tables = self.tables().await?;
        tiers::resolve(&tables.tiers, groups, &self.0.config.instance).cloned().ok_or(ServiceError::NotFound("tier"))
    }

    /// Who had the tiers that go, and what they fall to; in one pass over the users.
    pub(super) async fn deletion(
        &self,
        tables: &PolicyTables,
        after: &[TierRecord],
        gone: &[&str],
    ) -> Result<Vec<DeletedTier>, ServiceError> {
        let mut deleted = Vec::with_capacity(gone.len());
        for name in gone {
            let models = published_to(tables, &[name]).map(|(model, _)| model.name.clone()).collect();
            let tier = find(tables, name)?.clone();
            deleted.push(DeletedTier { tier, affected: Vec::new(), affected_count: 0, models });
        }
        if deleted.is_empty() {
            return Ok(deleted);
        }
        let instance = &self.0.config.instance;
        let mut last: Option<String> = None;
        loop {
            let page = self.0.records.users(last.as_deref(), 1000).await?;
            let Some(end) = page.last() else { return Ok(deleted) };
            last = Some(end.name.clone());
            for user in page {
                let groups = groups_of(&user, self.0.clock.now_us(), self.0.config.groups_max_age);
                let Some(theirs) = tiers::resolve(&tables.tiers, &groups, instance) else { continue };
                let Some(deleted) = deleted.iter_mut().find(|one| one.tier.name == theirs.name) else { continue };
                deleted.affected_count += 1;
                if deleted.affected.len() < AFFECTED_MAX {
                    let falls_to = tiers::resolve(after, &groups, instance).map(|next| next.name.clone());
                    deleted.affected.push(Affected { user: user.name, falls_to });
                }
            }
        }
    }

    async fn deletion_of(&self, tables: &PolicyTables, name: &str) -> Result<DeletedTier, ServiceError> {
        find(tables, name)?;
        self.refuse_declared_deletion(name)?;
        let after: Vec<TierRecord> = tables.tiers.iter().filter(|other| other.name != name).cloned().collect();
        let deleted = self.deletion(tables, &after, &[name]).await?.pop();
        deleted.ok_or(ServiceError::NotFound("tier"))
    }
}

fn find<'a>(tables: &'a PolicyTables, name: &str) -> Result<&'a TierRecord, ServiceError> {
    tables.tiers.iter().find(|tier| tier.name == name).ok_or(ServiceError::NotFound("tier"))
}

fn check_level(tables: &PolicyTables, tier: &TierRecord) -> Result<(), ServiceError> {
    match tables.tiers.iter().find(|other| other.level == tier.level && other.name != tier.name) {
        None => Ok(()),
        Some(other) => Err(ServiceError::Conflict(format!("level {} is in use by tier `{}`", tier.level, other.name))),
    }
}

fn resolve_new(new: NewTier, new_limits: &[Limit]) -> Result<TierRecord, ServiceError> {
    let name = match (&new.name, &new.display_name) {
        (Some(name), _) => name.clone(),
        (None, Some(display_name)) => tiers::name_from(display_name)?,
        (None, None) => return Err(ServiceError::invalid("name", "a tier needs `name` or `display_name`")),
    };
    let tier = TierRecord {
        display_name: new.display_name.unwrap_or_else(|| name.clone()),
        name,
        description: new.description,
        level: new.level,
        groups: once_each(new.groups),
        limits: new.limits.unwrap_or_else(|| new_limits.to_vec()),
        weight: new.weight.unwrap_or(1),
        origin: TierOrigin::Local,
        position: 0,
    };
    tiers::check(&tier)?;
    Ok(tier)
}

fn once_each(groups: Vec<String>) -> Vec<String> {
    let mut seen = std::collections::HashSet::new();
    groups.into_iter().filter(|group| seen.insert(group.clone())).collect()
}

pub(super) fn put(tier: &TierRecord) -> Vec<Change> {
    let groups = tier.groups.iter().cloned().map(Change::PutGroup);
    std::iter::once(Change::PutTier(tier.clone())).chain(groups).collect()
}

/// The models published to any of these tiers by name, with the other tiers they are published to.
fn published_to<'a>(
    tables: &'a PolicyTables,
    gone: &'a [&str],
) -> impl Iterator<Item = (&'a ModelRecord, Vec<String>)> {
    tables.models.iter().filter_map(move |model| match &model.published {
        Published::Tiers(names) if names.iter().any(|name| gone.contains(&name.as_str())) => {
            Some((model, names.iter().filter(|name| !gone.contains(&name.as_str())).cloned().collect()))
        }
        _ => None,
    })
}

/// A tier of the same name made later must not inherit the models of this one.
pub(super) fn deletion_changes(tables: &PolicyTables, gone: &[&str]) -> Vec<Change> {
    let unpublish = published_to(tables, gone)
        .map(|(model, rest)| Change::PutModel(ModelRecord { published: Published::Tiers(rest), ..model.clone() }));
    unpublish.chain(gone.iter().map(|name| Change::DeleteTier((*name).to_owned()))).collect()
}
