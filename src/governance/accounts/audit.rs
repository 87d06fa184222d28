//! The audit log for administrators: reading it, checking it, and noting the configuration in it.

use serde_json::Value;

use super::commit::{ATTEMPTS, busy, require_admin};
use crate::governance::audit::{AuditFilter, AuditRow, Author, Broken, Head, Verification};
use crate::governance::error::ServiceError;
use crate::governance::governor::Governor;
use crate::governance::policy::Principal;
use crate::governance::ports::Change;

/// Some rows, newest first.
#[derive(Debug, Clone)]
pub struct AuditPage {
    /// The rows.
    pub rows: Vec<AuditRow>,
    /// Where the next page begins; `None`: this was the last.
    pub next: Option<i64>,
}

/// What checking the whole log found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditVerdict {
    /// The last row that holds, and so the head of an intact log.
    pub head: Head,
    /// The first row that does not hold; `None`: all do.
    pub broken: Option<Broken>,
}

const PAGE: u32 = 100;
const PAGE_MAX: u32 = 1000;
/// Rows checked at a time.
const CHUNK: u32 = 1000;

impl Governor {
    /// Rows of the audit log, newest first; `filter.limit` 0 asks for a page of the usual size.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn audit(&self, actor: &Principal, filter: AuditFilter) -> Result<AuditPage, ServiceError> {
        require_admin(actor)?;
        let wanted = if filter.limit == 0 { PAGE } else { filter.limit.min(PAGE_MAX) };
        // One more than wanted tells whether there is a next page.
        let mut rows = self.0.records.audit(&AuditFilter { limit: wanted + 1, ..filter }).await?;
        let has_more = rows.len() > wanted as usize;
        rows.truncate(wanted as usize);
        let next = rows.last().filter(|_| has_more).map(|row| row.sequence);
        Ok(AuditPage { rows, next })
    }

    /// Follows the chain of the audit log from its beginning; `noted` is the head of an earlier check.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn verify_audit(&self, actor: &Principal, noted: Option<Head>) -> Result<AuditVerdict, ServiceError> {
        require_admin(actor)?;
        let mut verification = Verification::against(noted);
        loop {
            let rows = self.0.records.audit_after(verification.head().sequence, CHUNK).await?;
            if let Some(broken) = rows.iter().find_map(|row| verification.take(row).err()) {
                return Ok(AuditVerdict { head: verification.head().clone(), broken: Some(broken) });
            }
            if rows.len() < CHUNK as usize {
                let head = verification.head().clone();
                return Ok(AuditVerdict { head, broken: verification.finish().err() });
            }
        }
    }

    /// Notes the effective configuration, secrets masked, in the audit log if it is another than at the last start.
    ///
    /// # Errors
    /// The store.
    pub async fn note_config(&self, config: &Value) -> Result<(), ServiceError> {
        self.note_config_of(&Author::server(), config).await
    }

    /// Notes in the audit log that `actor` changes the running server's configuration to this.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn note_config_change(&self, actor: &Principal, config: &Value) -> Result<(), ServiceError> {
        require_admin(actor)?;
        self.note_config_of(&actor.author(), config).await
    }

    async fn note_config_of(&self, author: &Author, config: &Value) -> Result<(), ServiceError> {
        for _ in 0..ATTEMPTS {
            let tables = self.tables().await?;
            if self.commit(author.clone(), &tables, vec![Change::NoteConfig(config.clone())]).await? {
                return Ok(());
            }
        }
        Err(busy())
    }
}
