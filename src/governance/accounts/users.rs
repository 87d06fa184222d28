//! Users and their groups, for administrators.

use uuid::Uuid;

use super::commit::{ATTEMPTS, busy, require_admin};
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::policy::{ADMINS, Principal};
use crate::governance::ports::Change;
use crate::governance::records::{LOCAL_ISSUER, Membership, MembershipSource, UserId, UserRecord};
use crate::governance::tiers::is_group_name;

/// A user to make.
#[derive(Debug, Clone, Default)]
pub struct NewUser {
    /// Unique among the users made here.
    pub name: String,
    /// Their groups; everybody is in `system:authenticated` besides.
    pub groups: Vec<String>,
}

/// What to change about a user; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct UserPatch {
    /// The groups given here; groups from an identity provider stay.
    pub groups: Option<Vec<String>>,
    /// False: every credential of theirs is refused from the next request on.
    pub active: Option<bool>,
}

impl Governor {
    /// Users by name, after a name, at most `limit` (100).
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn users(
        &self,
        actor: &Principal,
        after: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Vec<UserRecord>, ServiceError> {
        require_admin(actor)?;
        Ok(self.0.records.users(after, limit.unwrap_or(100).clamp(1, 1000)).await?)
    }

    /// One user, by name or id.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, the store.
    pub async fn user(&self, actor: &Principal, name: &str) -> Result<UserRecord, ServiceError> {
        require_admin(actor)?;
        self.user_record(name).await
    }

    /// Makes a user.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`, `Conflict` when the name is taken.
    pub async fn create_user(&self, actor: &Principal, new: NewUser) -> Result<UserRecord, ServiceError> {
        require_admin(actor)?;
        check_name(&new.name)?;
        let user = UserRecord {
            id: UserId(Uuid::now_v7()),
            issuer: LOCAL_ISSUER.into(),
            subject: new.name.clone(),
            name: new.name.clone(),
            active: true,
            created_at_us: self.0.clock.now_us(),
            groups: local_groups(&new.groups)?,
            token_epoch: 0,
            groups_at_us: None,
        };
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let records = &self.0.records;
            let namesake = records.user_by_name(&new.name).await?;
            if namesake.is_some() || records.user_by_subject(LOCAL_ISSUER, &new.name).await?.is_some() {
                return Err(ServiceError::Conflict(format!("user `{}` exists already", new.name)));
            }
            if self.commit(actor.author(), &tables, vec![Change::PutUser(user.clone())]).await? {
                return Ok(user);
            }
        }
        Err(busy())
    }

    /// Changes groups or deactivates; effective on the next request.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`, `NotFound`; `Conflict` for the caller's own administration and the last administrator's.
    pub async fn update_user(
        &self,
        actor: &Principal,
        name: &str,
        patch: UserPatch,
    ) -> Result<UserRecord, ServiceError> {
        require_admin(actor)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let mut user = self.user_record(name).await?;
            let before = user.clone();
            if let Some(groups) = &patch.groups {
                user.groups.retain(|membership| membership.source != MembershipSource::Local);
                user.groups.extend(local_groups(groups)?);
                user.groups.sort();
            }
            let was_admin = is_admin(&before);
            user.active = patch.active.unwrap_or(user.active);
            if was_admin && !is_admin(&user) {
                self.check_may_lose(actor, &before).await?;
            }
            if self.commit(actor.author(), &tables, vec![Change::PutUser(user.clone())]).await? {
                return Ok(user);
            }
        }
        Err(busy())
    }

    /// Forgets a user and revokes their keys; ledger rows stay.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Conflict` for the caller's own user and the last administrator.
    pub async fn delete_user(&self, actor: &Principal, name: &str) -> Result<UserRecord, ServiceError> {
        require_admin(actor)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            let user = self.user_record(name).await?;
            if is_admin(&user) || user.id == actor.user {
                self.check_may_lose(actor, &user).await?;
            }
            let at_us = self.0.clock.now_us();
            let changes = vec![Change::RevokeKeysOf { user: user.id, at_us }, Change::DeleteUser(user.id)];
            if self.commit(actor.author(), &tables, changes).await? {
                return Ok(user);
            }
        }
        Err(busy())
    }

    /// That an administrator goes is fine as long as another one stays, and somebody else decides it.
    async fn check_may_lose(&self, actor: &Principal, user: &UserRecord) -> Result<(), ServiceError> {
        if user.id == actor.user {
            let message =
                "you cannot lock yourself out: let another administrator do it, make one first if there is none";
            return Err(ServiceError::Conflict(message.into()));
        }
        let admins = self.0.records.active_members(ADMINS).await?;
        if admins.iter().all(|admin| *admin == user.id) {
            let message = format!("`{}` is the last administrator: put another user into `{ADMINS}` first", user.name);
            return Err(ServiceError::Conflict(message));
        }
        Ok(())
    }

    /// Groups that anybody has named, to pick from: by name, after a name, at most `limit` (100).
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn groups(
        &self,
        actor: &Principal,
        after: Option<&str>,
        limit: Option<u32>,
    ) -> Result<Vec<String>, ServiceError> {
        require_admin(actor)?;
        Ok(self.0.records.groups(after, limit.unwrap_or(100).clamp(1, 1000)).await?)
    }

    /// Makes a group known so that it can be picked; true when it was not known before.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`.
    pub async fn create_group(&self, actor: &Principal, name: &str) -> Result<bool, ServiceError> {
        require_admin(actor)?;
        check_group("name", name)?;
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            if self.0.records.is_group_known(name).await? {
                return Ok(false);
            }
            if self.commit(actor.author(), &tables, vec![Change::PutGroup(name.to_owned())]).await? {
                return Ok(true);
            }
        }
        Err(busy())
    }
}

fn is_admin(user: &UserRecord) -> bool {
    user.active && user.groups.iter().any(|membership| membership.group == ADMINS)
}

fn check_name(name: &str) -> Result<(), ServiceError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "._@+-:".contains(c);
    if name.is_empty() || name.len() > 128 || !name.chars().all(allowed) {
        let message = "a user name must be 1 to 128 letters, digits or `._@+-:`";
        return Err(ServiceError::invalid("name", message));
    }
    Ok(())
}

fn check_group(param: &'static str, name: &str) -> Result<(), ServiceError> {
    if !is_group_name(name) {
        return Err(ServiceError::invalid(param, format!("`{name}` is not a group name")));
    }
    if name.starts_with("system:") {
        return Err(ServiceError::invalid(param, format!("`{name}`: groups named `system:` cannot be given to users")));
    }
    Ok(())
}

fn local_groups(names: &[String]) -> Result<Vec<Membership>, ServiceError> {
    names.iter().try_for_each(|name| check_group("groups", name))?;
    let mut groups: Vec<Membership> =
        names.iter().map(|name| Membership { group: name.clone(), source: MembershipSource::Local }).collect();
    groups.sort();
    groups.dedup();
    Ok(groups)
}
