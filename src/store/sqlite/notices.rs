//! Threshold notices: the first of each id is kept, with how its delivery stands.

use rusqlite::{Transaction, params};
use sqlx::SqlitePool;
use sqlx::sqlite::SqliteRow;
use uuid::Uuid;

use super::journal::Text;
use super::rows::{self, column, corrupt, failed};
use crate::governance::notices::{Notice, NoticeOutcome, NoticeState};
use crate::governance::ports::StoreError;

const WHAT: &str = "notice";
/// Notices that may wait for a receiver; what comes beyond is kept and not sent.
const PENDING_MAX: i64 = 10_000;
/// How long notices are kept.
const KEPT_US: i64 = 400 * 24 * 3600 * 1_000_000;

pub(super) fn write(
    transaction: &Transaction<'_>,
    notices: &[Notice],
    outcomes: &[NoticeOutcome],
) -> Result<(), rusqlite::Error> {
    for notice in notices {
        let mut insert = transaction.prepare_cached(
            "INSERT INTO notices (id, at_us, body, state, attempts, next_attempt_us) \
             SELECT $1, $2, $3, CASE WHEN $4 = 'pending' AND \
             (SELECT COUNT(*) FROM notices WHERE state = 'pending') >= $5 THEN 'dropped' ELSE $4 END, 0, $2 \
             WHERE true ON CONFLICT (id) DO NOTHING",
        )?;
        let (id, body) = (Text::of(notice.id), notice.body.to_string());
        insert.execute(params![id.as_str(), notice.at_us, body, notice.state.as_str(), PENDING_MAX])?;
        let mut delete = transaction.prepare_cached("DELETE FROM notices WHERE at_us < $1 AND state <> 'pending'")?;
        delete.execute([notice.at_us.saturating_sub(KEPT_US)])?;
    }
    for outcome in outcomes {
        let mut update = transaction.prepare_cached(
            "UPDATE notices SET state = $1, attempts = $2, next_attempt_us = $3, last_error = $4 WHERE id = $5",
        )?;
        let NoticeOutcome { id, state, attempts, next_attempt_us, error } = outcome;
        update.execute(params![state.as_str(), attempts, next_attempt_us, error, Text::of(*id).as_str()])?;
    }
    Ok(())
}

pub(super) async fn due(pool: &SqlitePool, now_us: i64, limit: u32) -> Result<Vec<Notice>, StoreError> {
    let select = sqlx::query(
        "SELECT * FROM notices WHERE state = 'pending' AND next_attempt_us <= $1 ORDER BY next_attempt_us, id LIMIT $2",
    );
    let found = select.bind(now_us).bind(limit).fetch_all(pool).await.map_err(failed("list notices"))?;
    found.iter().map(notice).collect()
}

pub(super) async fn list(
    pool: &SqlitePool,
    before: Option<(i64, Uuid)>,
    limit: u32,
) -> Result<Vec<Notice>, StoreError> {
    let (before_us, before_id) = before.map_or((i64::MAX, String::new()), |(us, id)| (us, id.to_string()));
    let select = sqlx::query(
        "SELECT * FROM notices WHERE at_us < $1 OR (at_us = $1 AND id < $2) ORDER BY at_us DESC, id DESC LIMIT $3",
    );
    let found =
        select.bind(before_us).bind(before_id).bind(limit).fetch_all(pool).await.map_err(failed("list notices"))?;
    found.iter().map(notice).collect()
}

fn notice(row: &SqliteRow) -> Result<Notice, StoreError> {
    let state: &str = column(row, WHAT, "state")?;
    let body: &str = column(row, WHAT, "body")?;
    let id: &str = column(row, WHAT, "id")?;
    Ok(Notice {
        id: id.parse().map_err(|error| corrupt(WHAT, error))?,
        at_us: column(row, WHAT, "at_us")?,
        body: serde_json::from_str(body).map_err(|error| corrupt(WHAT, error))?,
        state: state.parse::<NoticeState>().map_err(|()| corrupt(WHAT, format!("`state` is `{state}`")))?,
        attempts: u32::try_from(rows::count(row, WHAT, "attempts")?).unwrap_or(u32::MAX),
        next_attempt_us: column(row, WHAT, "next_attempt_us")?,
        last_error: column(row, WHAT, "last_error")?,
    })
}
