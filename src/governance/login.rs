//! What somebody else's token proves, and the user it stands for here: made at the first login, changed only when there is news.

use std::net::IpAddr;
use std::time::Duration;

use uuid::Uuid;

use super::audit::Author;
use super::clock::micros;
use super::governor::Core;
use super::ports::{Change, Edit, StoreError};
use super::records::{Membership, MembershipSource, UserId, UserRecord};
use super::tokens::Refused;

/// Times a login is decided again because the policy changed meanwhile.
const ATTEMPTS: usize = 64;

/// What became of a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Who vouches for it says this.
    Proven(Login),
    /// It is not accepted.
    Refused(Refused),
}

/// What one token proves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Login {
    /// The user's own id at whoever vouches for them.
    pub(super) subject: String,
    /// The user's name there, restricted to safe characters.
    pub(super) name: String,
    /// The groups that count here, sorted.
    pub(super) groups: Vec<String>,
    /// When this was said.
    pub(super) told_at_us: i64,
    /// First instant at which the token no longer works, or must be checked again.
    pub(super) until_us: i64,
}

/// Who vouches for users that are not made here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Voucher<'a> {
    /// Who somebody is, together with the subject.
    pub(super) issuer: &'a str,
    /// What the names of their users begin with here.
    pub(super) name: &'a str,
}

/// The user a proven token stands for; made or changed first when the token says something new.
///
/// # Errors
/// The store.
pub(super) async fn log_in(
    core: &Core,
    voucher: Voucher<'_>,
    login: &Login,
    source: IpAddr,
) -> Result<UserId, StoreError> {
    let records = core.records.as_ref();
    for _ in 0..ATTEMPTS {
        let version = core.identities.version();
        let known = records.user_by_subject(voucher.issuer, &login.subject).await?;
        let name = match &known {
            Some(user) if user.name == wanted_name(voucher, login) => user.name.clone(),
            _ => free_name(core, voucher, login, known.as_ref()).await?,
        };
        let max_age = core.config.groups_max_age;
        let Some(user) = merged(known.as_ref(), voucher, login, name, max_age, core.clock.now_us()) else {
            return Ok(known.expect("only a known user needs no change").id);
        };
        let author = Author { user: Some(user.id), name: user.name.clone(), key: None, address: Some(source) };
        let id = user.id;
        let edit = Edit { author, at_us: core.clock.now_us(), changes: vec![Change::PutUser(user)] };
        match records.change(version, edit).await {
            Ok(version) => {
                core.identities.saw_version(version);
                return Ok(id);
            }
            Err(StoreError::Changed { found, .. }) => core.identities.saw_version(found),
            // Another replica made the user in this very moment.
            Err(StoreError::Exists { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Err(StoreError::Unavailable { operation: "log a user in", message: "others keep changing the policy".into() })
}

/// Names are unique over all users: a provider's `admin` is `corp:admin` here.
fn wanted_name(voucher: Voucher<'_>, login: &Login) -> String {
    format!("{}:{}", voucher.name, login.name)
}

/// The wanted name, or one of its own when somebody else has that: providers give a name away again.
async fn free_name(
    core: &Core,
    voucher: Voucher<'_>,
    login: &Login,
    known: Option<&UserRecord>,
) -> Result<String, StoreError> {
    let wanted = wanted_name(voucher, login);
    match core.records.user_by_name(&wanted).await? {
        Some(other) if known.is_none_or(|known| known.id != other.id) => {
            let own = known.filter(|known| known.name.starts_with(&format!("{wanted}:")));
            Ok(own.map_or_else(|| format!("{wanted}:{}", Uuid::new_v4().simple()), |known| known.name.clone()))
        }
        _ => Ok(wanted),
    }
}

/// The user as the login leaves them; `None` when nothing is new.
fn merged(
    known: Option<&UserRecord>,
    voucher: Voucher<'_>,
    login: &Login,
    name: String,
    max_age: Duration,
    now_us: i64,
) -> Option<UserRecord> {
    let told: Vec<Membership> = login
        .groups
        .iter()
        .map(|group| Membership { group: group.clone(), source: MembershipSource::Federated })
        .collect();
    let Some(known) = known else {
        return Some(UserRecord {
            id: UserId(Uuid::now_v7()),
            issuer: voucher.issuer.to_owned(),
            subject: login.subject.clone(),
            name,
            active: true,
            created_at_us: now_us,
            groups: told,
            token_epoch: 0,
            groups_at_us: Some(login.told_at_us),
        });
    };
    let told_before_us = known.groups_at_us.unwrap_or(i64::MIN);
    // An older token knows less than we do; and who is locked out changes nothing here.
    if login.told_at_us < told_before_us || !known.active {
        return None;
    }
    let mut user = UserRecord { name, ..known.clone() };
    user.groups.retain(|membership| membership.source == MembershipSource::Local);
    user.groups.extend(told);
    user.groups.sort();
    // Not at every login: the same word again is noted when it has aged by a quarter of what it may.
    let has_aged = login.told_at_us.saturating_sub(told_before_us) >= micros(max_age) / 4;
    if user.groups == known.groups && user.name == known.name && !has_aged {
        return None;
    }
    user.groups_at_us = Some(login.told_at_us);
    Some(user)
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY_US: i64 = 86_400_000_000;
    const MAX_AGE: Duration = Duration::from_secs(4 * 86_400);

    fn login(groups: &[&str], told_at_us: i64) -> Login {
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        Login { subject: "s".into(), name: "ann".into(), groups, told_at_us, until_us: i64::MAX }
    }

    fn after(known: Option<&UserRecord>, groups: &[&str], told_at_us: i64) -> Option<UserRecord> {
        let voucher = Voucher { issuer: "https://id.example.com", name: "corp" };
        merged(known, voucher, &login(groups, told_at_us), "corp:ann".into(), MAX_AGE, told_at_us)
    }

    fn names(user: &UserRecord) -> Vec<&str> {
        user.groups.iter().map(|membership| membership.group.as_str()).collect()
    }

    #[test]
    fn a_login_replaces_what_the_provider_said_before_and_nothing_else() {
        let mut user = after(None, &["a", "b"], 0).expect("made");
        user.groups.push(Membership { group: "ours".into(), source: MembershipSource::Local });
        let changed = after(Some(&user), &["c"], 5).expect("changed");
        assert_eq!((names(&changed), changed.id, changed.groups_at_us), (vec!["c", "ours"], user.id, Some(5)));
    }

    #[test]
    fn nothing_new_writes_nothing_until_the_word_has_aged() {
        let user = after(None, &["a"], 0).expect("made");
        assert_eq!(after(Some(&user), &["a"], DAY_US - 1), None);
        assert_eq!(after(Some(&user), &["a"], DAY_US).expect("noted").groups_at_us, Some(DAY_US));
    }

    #[test]
    fn an_older_token_brings_no_old_groups_back_and_who_is_locked_out_stays_as_they_are() {
        let user = after(None, &["millgate-admins"], 0).expect("made");
        let user = after(Some(&user), &[], 10).expect("changed");
        assert_eq!(after(Some(&user), &["millgate-admins"], 9), None);
        let locked = UserRecord { active: false, ..user };
        assert_eq!(after(Some(&locked), &["x"], 20), None);
    }
}
