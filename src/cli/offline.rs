//! Work on a stopped server's data directory: takes its lock, so that nobody else writes meanwhile.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, Result};

use crate::config::Environment;
use crate::governance::ports::{Records, StoreError};
use crate::governance::records::MembershipSource;
use crate::governance::{ADMIN, ADMINS, Config, Governor, NewKey, NewUser, ServiceError, SystemClock, UserPatch};
use crate::store::{self, MemoryCounters, SqliteRecords};

use super::fail::Hinted;
use super::usage::data_dir;

/// Makes a new key for the administrator of a stopped server and returns its text.
///
/// # Errors
/// No data directory, one that a running server holds, or a store that cannot be used.
pub(super) async fn create_admin_key(named: Option<&Path>, environment: &Environment) -> Result<String> {
    let data_dir = data_dir(named, environment)?;
    if !data_dir.is_dir() {
        let hint = "start the server once, or name its data directory with --data-dir";
        return Err(Hinted::error(format!("there is no data directory `{}`", data_dir.display()), hint));
    }
    let records = open(&data_dir).await?;
    let clock = Arc::new(SystemClock::new());
    let counters = Arc::new(MemoryCounters::new(clock.clone()));
    let (governor, first) = Governor::start(records.clone(), counters, clock, Config::default()).await?;
    let made = match first.admin_key {
        Some(key) => Ok(key),
        None => {
            restore_administrator(&governor).await?;
            let new = NewKey { name: "made on the command line".into(), ..NewKey::default() };
            let issued = governor.create_key_for(&governor.operator(), ADMIN, new).await;
            issued.map(|issued| issued.secret).context("cannot create a key for the administrator")
        }
    };
    governor.shutdown().await;
    records.close().await;
    made.map(|key| key.reveal().to_owned())
}

/// Whoever holds the data directory is the last resort: a user `admin` that was deleted, deactivated or taken out of the
/// administrators' group administers again.
async fn restore_administrator(governor: &Governor) -> Result<()> {
    let operator = governor.operator();
    let restored = match governor.user(&operator, ADMIN).await {
        Err(ServiceError::NotFound(_)) => {
            let new = NewUser { name: ADMIN.to_owned(), groups: vec![ADMINS.to_owned()] };
            governor.create_user(&operator, new).await.map(drop)
        }
        Ok(user) if !user.active || !user.groups.iter().any(|one| one.group == ADMINS) => {
            let local = user.groups.into_iter().filter(|one| one.source == MembershipSource::Local);
            let groups = local.map(|one| one.group).chain([ADMINS.to_owned()]).collect();
            let patch = UserPatch { groups: Some(groups), active: Some(true) };
            governor.update_user(&operator, ADMIN, patch).await.map(drop)
        }
        other => other.map(drop),
    };
    restored.context("cannot make `admin` an administrator again")
}

async fn open(data_dir: &Path) -> Result<Arc<SqliteRecords>> {
    let config = store::Config { data_dir: data_dir.to_path_buf(), ..store::Config::default() };
    match SqliteRecords::open(&config).await {
        Ok(records) => Ok(Arc::new(records)),
        Err(error @ StoreError::InUse(_)) => {
            let hint =
                "stop the server first; while it runs, an administrator's key works through it: `millgate key create`";
            Err(anyhow::Error::new(error).context(Hinted::context("the server is running", hint)))
        }
        Err(error) => Err(anyhow::Error::new(error).context("cannot open the data directory")),
    }
}
