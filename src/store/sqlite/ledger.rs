//! Reading the journal and the ledger: recovery, and rebuilding counters.

use sqlx::{QueryBuilder, SqlitePool};
use uuid::Uuid;

use super::rows::{self, column, failed};
use crate::governance::ports::{RowRange, StoreError, SubjectSum};
use crate::governance::records::{LedgerRecord, ReservationRecord};

const READ: &str = "read the ledger";

pub(super) async fn open_reservations(pool: &SqlitePool) -> Result<Vec<ReservationRecord>, StoreError> {
    let select = sqlx::query(
        "SELECT reservations.*, attributions.member_groups, attributions.labels FROM reservations \
         LEFT JOIN attributions ON attributions.id = reservations.attribution_id ORDER BY admitted_at_us, reservations.id",
    );
    let found = select.fetch_all(pool).await.map_err(failed("read the journal"))?;
    found.iter().map(rows::reservation).collect()
}

/// Rows settled within a minute of their admission are found by it, the others by an index of their own; its condition is
/// the one below, word for word.
const SINCE: &str = "SELECT found.*, attributions.member_groups, attributions.labels FROM ( \
     SELECT * FROM ledger WHERE admitted_at_us > $1 - 60000000 AND settled_at_us >= $1 AND settled_at_us - admitted_at_us < 60000000 \
     UNION ALL \
     SELECT * FROM ledger WHERE settled_at_us >= $1 AND settled_at_us - admitted_at_us >= 60000000 \
     ) AS found LEFT JOIN attributions ON attributions.id = found.attribution_id ORDER BY settled_at_us, found.id";

pub(super) async fn since(pool: &SqlitePool, settled_from_us: i64) -> Result<Vec<LedgerRecord>, StoreError> {
    let found = sqlx::query(SINCE).bind(settled_from_us).fetch_all(pool).await.map_err(failed(READ))?;
    found.iter().map(rows::ledger).collect()
}

pub(super) async fn between(pool: &SqlitePool, range: RowRange) -> Result<Vec<LedgerRecord>, StoreError> {
    // Before every id of the first instant when there is no page before.
    let (after_us, after_id) = range.after.map_or((range.from_us, String::new()), |(us, id)| (us, id.to_string()));
    let select = sqlx::query(
        "SELECT ledger.*, attributions.member_groups, attributions.labels FROM ledger \
         LEFT JOIN attributions ON attributions.id = ledger.attribution_id \
         WHERE ledger.admitted_at_us >= $1 AND (ledger.admitted_at_us > $1 OR ledger.id > $2) AND ledger.admitted_at_us < $3 \
         ORDER BY ledger.admitted_at_us, ledger.id LIMIT $4",
    );
    let select = select.bind(after_us).bind(after_id).bind(range.to_us).bind(range.limit);
    select.fetch_all(pool).await.map_err(failed(READ))?.iter().map(rows::ledger).collect()
}

/// Reads the whole ledger: no index says where an id is.
pub(super) async fn row(pool: &SqlitePool, id: Uuid) -> Result<Option<LedgerRecord>, StoreError> {
    let select = sqlx::query(
        "SELECT ledger.*, attributions.member_groups, attributions.labels FROM ledger \
         LEFT JOIN attributions ON attributions.id = ledger.attribution_id WHERE ledger.id = $1",
    )
    .bind(id.to_string());
    let found = select.fetch_optional(pool).await.map_err(failed(READ))?;
    found.as_ref().map(rows::ledger).transpose()
}

const SUMS: &str = "CAST(SUM(CASE WHEN status = 'failed' THEN 0 ELSE 1 END) AS BIGINT) AS requests, \
    CAST(SUM(prompt_tokens) AS BIGINT) AS prompt_tokens, CAST(SUM(cached_tokens) AS BIGINT) AS cached_tokens, \
    CAST(SUM(completion_tokens) AS BIGINT) AS completion_tokens, CAST(SUM(cost_nano_usd) AS BIGINT) AS cost_nano_usd";

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
                cost_nano_usd: rows::count(row, WHAT, "cost_nano_usd")?,
            })
        })
        .collect()
}
