//! The SQLite store as [`Records`]: every operation by name, nothing else.

use async_trait::async_trait;
use uuid::Uuid;

use super::open::SqliteRecords;
use super::{audit, books, keys, ledger, notices, policy, signing_keys, usage};
use crate::governance::Limit;
use crate::governance::audit::{AuditFilter, AuditRow};
use crate::governance::ports::{
    Commit, Edit, JournalEntry, KeyFilter, Notice, PolicyTables, Records, RollUpDifference, RowRange, StoreError,
    SubjectSum, Sums, UsageQuery, UsageSum,
};
use crate::governance::records::{
    KeyId, KeyRecord, LedgerRecord, ReservationRecord, SigningKeyRecord, UserId, UserRecord,
};

#[async_trait]
impl Records for SqliteRecords {
    async fn policy_version(&self) -> Result<u64, StoreError> {
        policy::version(&self.pool).await
    }

    async fn policy(&self) -> Result<PolicyTables, StoreError> {
        policy::tables(&self.pool).await
    }

    async fn key(&self, id: &KeyId) -> Result<Option<(KeyRecord, UserRecord)>, StoreError> {
        keys::key(&self.pool, id).await
    }

    async fn keys(&self, filter: &KeyFilter) -> Result<Vec<KeyRecord>, StoreError> {
        keys::search(&self.pool, filter).await
    }

    async fn live_keys(&self, user: UserId, now_us: i64) -> Result<u64, StoreError> {
        keys::live(&self.pool, user, now_us).await
    }

    async fn bootstrap_keys(&self) -> Result<Vec<KeyRecord>, StoreError> {
        keys::bootstrap(&self.pool).await
    }

    async fn user(&self, id: UserId) -> Result<Option<UserRecord>, StoreError> {
        policy::user(&self.pool, id).await
    }

    async fn user_by_subject(&self, issuer: &str, subject: &str) -> Result<Option<UserRecord>, StoreError> {
        policy::user_by_subject(&self.pool, issuer, subject).await
    }

    async fn user_by_name(&self, name: &str) -> Result<Option<UserRecord>, StoreError> {
        policy::user_by_name(&self.pool, name).await
    }

    async fn users(&self, after: Option<&str>, limit: u32) -> Result<Vec<UserRecord>, StoreError> {
        policy::users(&self.pool, after, limit).await
    }

    async fn signing_keys(&self) -> Result<Vec<SigningKeyRecord>, StoreError> {
        signing_keys::all(&self.pool).await
    }

    async fn groups(&self, after: Option<&str>, limit: u32) -> Result<Vec<String>, StoreError> {
        policy::groups(&self.pool, after, limit).await
    }

    async fn is_group_known(&self, name: &str) -> Result<bool, StoreError> {
        policy::is_group_known(&self.pool, name).await
    }

    async fn change(&self, expected: u64, edit: Edit) -> Result<u64, StoreError> {
        self.writer.change(expected, edit).await
    }

    async fn audit(&self, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
        audit::list(&self.pool, filter).await
    }

    async fn audit_after(&self, sequence: i64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
        audit::after(&self.pool, sequence, limit).await
    }

    fn submit(&self, entry: JournalEntry) -> Commit {
        self.writer.submit(entry)
    }

    async fn open_reservations(&self) -> Result<Vec<ReservationRecord>, StoreError> {
        ledger::open_reservations(&self.pool).await
    }

    async fn ledger_since(&self, settled_from_us: i64) -> Result<Vec<LedgerRecord>, StoreError> {
        ledger::since(&self.pool, settled_from_us).await
    }

    async fn ledger_between(&self, range: RowRange) -> Result<Vec<LedgerRecord>, StoreError> {
        ledger::between(&self.pool, range).await
    }

    async fn roll_up_differences(&self, from_us: i64, to_us: i64) -> Result<Vec<RollUpDifference>, StoreError> {
        books::differences(&self.pool, from_us, to_us).await
    }

    async fn totals(&self) -> Result<Sums, StoreError> {
        books::totals(&self.pool).await
    }

    async fn limits_of_keys(&self) -> Result<Vec<Limit>, StoreError> {
        keys::limits(&self.pool).await
    }

    async fn charged_between(&self, start_us: i64, end_us: i64) -> Result<Vec<SubjectSum>, StoreError> {
        ledger::charged_between(&self.pool, start_us, end_us).await
    }

    async fn usage(&self, query: &UsageQuery) -> Result<Vec<UsageSum>, StoreError> {
        usage::report(&self.pool, query).await
    }

    async fn due_notices(&self, now_us: i64, limit: u32) -> Result<Vec<Notice>, StoreError> {
        notices::due(&self.pool, now_us, limit).await
    }

    async fn notices(&self, before: Option<(i64, Uuid)>, limit: u32) -> Result<Vec<Notice>, StoreError> {
        notices::list(&self.pool, before, limit).await
    }

    async fn ledger_row(&self, id: Uuid) -> Result<Option<LedgerRecord>, StoreError> {
        ledger::row(&self.pool, id).await
    }

    async fn touch_keys(&self, used: Vec<(KeyId, i64)>) -> Result<(), StoreError> {
        self.writer.touch(used).await
    }

    async fn active_members(&self, group: &str) -> Result<Vec<UserId>, StoreError> {
        policy::active_members(&self.pool, group).await
    }

    async fn forget_ephemeral_keys(&self, ended_before_us: i64, limited_before_us: i64) -> Result<u64, StoreError> {
        self.writer.forget_ephemeral_keys(ended_before_us, limited_before_us).await
    }

    async fn close(&self) {
        self.writer.close().await;
        self.pool.close().await;
    }
}
