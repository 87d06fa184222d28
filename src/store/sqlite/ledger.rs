//! Reading the journal and the ledger: recovery, rebuilding counters, usage reports.

use sqlx::{QueryBuilder, SqlitePool};
use uuid::Uuid;

use super::rows::{self, column, failed};
use crate::governance::ports::{StoreError, SubjectSum, UsageGroup, UsageQuery, UsageSum};
use crate::governance::records::{LedgerRecord, ReservationRecord};

const READ: &str = "read the ledger";

pub(super) async fn open_reservations(pool: &SqlitePool) -> Result<Vec<ReservationRecord>, StoreError> {
    let select = sqlx::query("SELECT * FROM reservations ORDER BY admitted_at_us, id");
    let found = select.fetch_all(pool).await.map_err(failed("read the journal"))?;
    found.iter().map(rows::reservation).collect()
}

pub(super) async fn since(pool: &SqlitePool, settled_from_us: i64) -> Result<Vec<LedgerRecord>, StoreError> {
    let select = sqlx::query("SELECT * FROM ledger WHERE settled_at_us >= $1 ORDER BY settled_at_us, id");
    let found = select.bind(settled_from_us).fetch_all(pool).await.map_err(failed(READ))?;
    found.iter().map(rows::ledger).collect()
}

pub(super) async fn row(pool: &SqlitePool, id: Uuid) -> Result<Option<LedgerRecord>, StoreError> {
    let select = sqlx::query("SELECT * FROM ledger WHERE id = $1").bind(id.to_string());
    let found = select.fetch_optional(pool).await.map_err(failed(READ))?;
    found.as_ref().map(rows::ledger).transpose()
}

const SUMS: &str = "COUNT(*) AS requests, CAST(COALESCE(SUM(prompt_tokens), 0) AS BIGINT) AS prompt_tokens, \
    CAST(COALESCE(SUM(cached_tokens), 0) AS BIGINT) AS cached_tokens, \
    CAST(COALESCE(SUM(completion_tokens), 0) AS BIGINT) AS completion_tokens";

pub(super) async fn charged_between(
    pool: &SqlitePool,
    start_us: i64,
    end_us: i64,
) -> Result<Vec<SubjectSum>, StoreError> {
    const WHAT: &str = "ledger row";
    let mut query = QueryBuilder::new("SELECT user_id, key_id, tier, model, ");
    query.push(SUMS).push(" FROM ledger WHERE admitted_at_us >= ").push_bind(start_us);
    query.push(" AND admitted_at_us < ").push_bind(end_us).push(" GROUP BY user_id, key_id, tier, model");
    let found = query.build().fetch_all(pool).await.map_err(failed(READ))?;
    found
        .iter()
        .map(|row| {
            Ok(SubjectSum {
                user: rows::user_id(row, WHAT, "user_id")?,
                key: rows::subject_key(row)?,
                tier: column(row, WHAT, "tier")?,
                model: column(row, WHAT, "model")?,
                requests: rows::count(row, WHAT, "requests")?,
                usage: rows::usage(row, WHAT)?,
            })
        })
        .collect()
}

pub(super) async fn usage(pool: &SqlitePool, asked: &UsageQuery) -> Result<Vec<UsageSum>, StoreError> {
    const WHAT: &str = "usage sum";
    let columns: Vec<&'static str> = asked
        .group_by
        .iter()
        .map(|group| match group {
            UsageGroup::User => "user_name",
            UsageGroup::Key => "COALESCE(key_id, '')",
            UsageGroup::Tier => "tier",
            UsageGroup::Model => "model",
        })
        .collect();
    let list = columns.join(", ");
    let mut query = QueryBuilder::new("SELECT ");
    for column in &columns {
        query.push(column).push(", ");
    }
    query.push(SUMS).push(" FROM ledger WHERE admitted_at_us >= ").push_bind(asked.start_us);
    query.push(" AND admitted_at_us < ").push_bind(asked.end_us);
    if let Some(user) = asked.user {
        query.push(" AND user_id = ").push_bind(user.to_string());
    }
    if !columns.is_empty() {
        query.push(" GROUP BY ").push(&list).push(" ORDER BY ").push(&list);
    }
    let found = query.build().fetch_all(pool).await.map_err(failed(READ))?;
    found
        .iter()
        .map(|row| {
            let group = (0..columns.len()).map(|at| column(row, WHAT, at)).collect::<Result<_, _>>()?;
            Ok(UsageSum { group, requests: rows::count(row, WHAT, "requests")?, usage: rows::usage(row, WHAT)? })
        })
        .collect()
}
