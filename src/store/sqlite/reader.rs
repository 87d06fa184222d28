//! Reads the ledger and the audit log without the data directory's lock, beside a running server: nothing can be written this way.

use std::path::Path;

use async_trait::async_trait;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};
use sqlx::{ConnectOptions, Row, SqlitePool};

use super::open::DATABASE;
use super::rows::failed;
use super::{audit, books, keys, ledger, policy, usage};
use crate::governance::audit::{AuditFilter, AuditRow};
use crate::governance::ports::{PolicyTables, RollUpDifference, RowRange, StoreError, UsageQuery, UsageSum};
use crate::governance::reconcile::Books;
use crate::governance::records::{KeyRecord, LedgerRecord};
use crate::governance::replay::Past;
use crate::governance::{KeyId, Limit, UserId};

/// The ledger and the audit log of a data directory, to be read only.
#[derive(Debug)]
pub struct LedgerReader {
    pool: SqlitePool,
}

impl LedgerReader {
    /// Opens the ledger in `data_dir`; makes nothing that is not there.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when there is no database or it cannot be read.
    pub async fn open(data_dir: &Path) -> Result<Self, StoreError> {
        let options = SqliteConnectOptions::new().filename(data_dir.join(DATABASE)).read_only(true);
        let pool = SqlitePoolOptions::new().max_connections(1).connect_with(options.disable_statement_logging()).await;
        Ok(Self { pool: pool.map_err(failed("open the database"))? })
    }

    /// The user of that name, if there is one.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn user(&self, name: &str) -> Result<Option<UserId>, StoreError> {
        let select = sqlx::query("SELECT id FROM users WHERE name = $1 LIMIT 1").bind(name);
        let row = select.fetch_optional(&self.pool).await.map_err(failed("find a user"))?;
        let Some(row) = row else { return Ok(None) };
        let id: String = row.try_get(0).map_err(failed("find a user"))?;
        Ok(uuid::Uuid::parse_str(&id).ok().map(UserId))
    }

    /// A usage report.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageSum>, StoreError> {
        usage::report(&self.pool, query).await
    }

    /// Rows of the audit log, newest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        audit::list(&self.pool, filter).await
    }

    /// At most `limit` rows of the audit log after the one of that number, oldest first.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn audit_after(&self, sequence: i64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        audit::after(&self.pool, sequence, limit).await
    }

    /// Tiers, models and prices as they are.
    ///
    /// # Errors
    /// The database cannot be read.
    pub async fn policy(&self) -> Result<PolicyTables, StoreError> {
        policy::tables(&self.pool).await
    }
}

#[async_trait]
impl Past for LedgerReader {
    async fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError> {
        Ok(keys::key(&self.pool, id).await?.map(|(key, _)| key))
    }

    async fn limits_of_keys(&self) -> Result<Vec<Limit>, StoreError> {
        keys::limits(&self.pool).await
    }

    async fn rows(&self, range: RowRange) -> Result<Vec<LedgerRecord>, StoreError> {
        ledger::between(&self.pool, range).await
    }
}

#[async_trait]
impl Books for LedgerReader {
    async fn rows(&self, range: RowRange) -> Result<Vec<LedgerRecord>, StoreError> {
        ledger::between(&self.pool, range).await
    }

    async fn roll_up_differences(&self, from_us: i64, to_us: i64) -> Result<Vec<RollUpDifference>, StoreError> {
        books::differences(&self.pool, from_us, to_us).await
    }
}
