//! API keys: look-up, search with filters, writing, forgetting.

use sqlx::sqlite::Sqlite;
use sqlx::{QueryBuilder, SqliteConnection, SqlitePool};

use super::policy::{former_user, user};
use super::rows::{self, failed, to_hex, to_json};
use crate::governance::Limit;
use crate::governance::ports::{CursorValue, KeyFilter, KeySort, StoreError};
use crate::governance::records::{KeyId, KeyRecord, KeyStatus, UserId, UserRecord};

pub(super) async fn put(connection: &mut SqliteConnection, key: &KeyRecord) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO api_keys (id, digest, user_id, name, description, labels, models, limits, parent, is_bootstrap, \
         created_at_us, expires_at_us, revoked_at_us, last_used_at_us, previous_digest, previous_until_us, terms_by, \
         is_ephemeral) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) \
         ON CONFLICT (id) DO UPDATE SET digest = excluded.digest, user_id = excluded.user_id, name = excluded.name, \
         description = excluded.description, labels = excluded.labels, models = excluded.models, limits = excluded.limits, \
         created_at_us = excluded.created_at_us, expires_at_us = excluded.expires_at_us, \
         revoked_at_us = excluded.revoked_at_us, previous_digest = excluded.previous_digest, \
         previous_until_us = excluded.previous_until_us, terms_by = excluded.terms_by",
    )
    .bind(key.id.as_str())
    .bind(to_hex(&key.digest))
    .bind(key.user.to_string())
    .bind(&key.name)
    .bind(&key.description)
    .bind(to_json(&key.labels))
    .bind(key.models.as_ref().map(to_json))
    .bind(to_json(&key.limits))
    .bind(key.parent.as_ref().map(KeyId::to_string))
    .bind(i64::from(key.is_bootstrap))
    .bind(key.created_at_us)
    .bind(key.expires_at_us)
    .bind(key.revoked_at_us)
    .bind(key.last_used_at_us)
    .bind(key.previous.as_ref().map(|previous| to_hex(&previous.digest)))
    .bind(key.previous.as_ref().map(|previous| previous.until_us))
    .bind(key.terms_by.as_str())
    .bind(i64::from(key.is_ephemeral))
    .execute(connection)
    .await
    .map(drop)
}

pub(super) async fn key(pool: &SqlitePool, id: &KeyId) -> Result<Option<(KeyRecord, UserRecord)>, StoreError> {
    let select = sqlx::query("SELECT * FROM api_keys WHERE id = $1").bind(id.as_str());
    let Some(row) = select.fetch_optional(pool).await.map_err(failed("look up a key"))? else {
        return Ok(None);
    };
    let key = rows::key(&row)?;
    let user = match user(pool, key.user).await? {
        None => former_user(pool, key.user).await?,
        user => user,
    };
    Ok(user.map(|user| (key, user)))
}

/// The keys that pass the filter, in its order.
pub(super) async fn search(pool: &SqlitePool, filter: &KeyFilter) -> Result<Vec<KeyRecord>, StoreError> {
    let mut sql = select(filter);
    let found = sql.build().fetch_all(pool).await.map_err(failed("list keys"))?;
    found.iter().map(rows::key).collect()
}

fn select(filter: &KeyFilter) -> QueryBuilder<Sqlite> {
    let mut sql = QueryBuilder::new("SELECT * FROM api_keys WHERE 1 = 1");
    if let Some(user) = filter.user {
        sql.push(" AND user_id = ").push_bind(user.to_string());
    }
    if !filter.with_ephemeral {
        sql.push(" AND is_ephemeral = 0");
    }
    if let Some(part) = &filter.name_contains {
        // Portable and without wildcards: a name that holds the part changes when it is taken out.
        let part = part.to_ascii_lowercase();
        sql.push(" AND REPLACE(LOWER(name), ").push_bind(part).push(", '') <> LOWER(name)");
    }
    for (name, value) in &filter.labels {
        // Label names hold neither quotes nor backslashes, so this text can only stand where it means the label.
        let entry = match value {
            Some(value) => format!("{}:{}", to_json(name), to_json(value)),
            None => format!("{}:", to_json(name)),
        };
        sql.push(" AND REPLACE(labels, ").push_bind(entry).push(", '') <> labels");
    }
    if let Some(from_us) = filter.created_from_us {
        sql.push(" AND created_at_us >= ").push_bind(from_us);
    }
    if let Some(before_us) = filter.created_before_us {
        sql.push(" AND created_at_us < ").push_bind(before_us);
    }
    push_statuses(&mut sql, filter);
    push_order(&mut sql, filter);
    sql
}

fn push_statuses(sql: &mut QueryBuilder<Sqlite>, filter: &KeyFilter) {
    if filter.statuses.is_empty() {
        return;
    }
    sql.push(" AND (1 = 0");
    for status in &filter.statuses {
        match status {
            KeyStatus::Revoked => sql.push(" OR revoked_at_us IS NOT NULL"),
            KeyStatus::Expired => {
                sql.push(" OR (revoked_at_us IS NULL AND expires_at_us <= ").push_bind(filter.now_us).push(")")
            }
            KeyStatus::Active => sql
                .push(" OR (revoked_at_us IS NULL AND (expires_at_us IS NULL OR expires_at_us > ")
                .push_bind(filter.now_us)
                .push("))"),
        };
    }
    sql.push(")");
}

fn push_order(sql: &mut QueryBuilder<Sqlite>, filter: &KeyFilter) {
    // A key that never ends comes after all that do, one that was never used before all that were.
    let by = match filter.sort {
        KeySort::CreatedAt => "created_at_us",
        KeySort::ExpiresAt => "COALESCE(expires_at_us, 9223372036854775807)",
        KeySort::LastUsedAt => "COALESCE(last_used_at_us, 0)",
        KeySort::Name => "name",
    };
    let (relation, direction) = if filter.is_ascending { (" > (", "ASC") } else { (" < (", "DESC") };
    if let Some(after) = &filter.after {
        sql.push(format!(" AND ({by}, id){relation}"));
        match &after.value {
            CursorValue::Time(us) => sql.push_bind(*us),
            CursorValue::Text(text) => sql.push_bind(text.clone()),
        };
        sql.push(", ").push_bind(after.id.to_string()).push(")");
    }
    sql.push(format!(" ORDER BY {by} {direction}, id {direction} LIMIT ")).push_bind(i64::from(filter.limit));
}

/// Every limit that a key has, each once.
pub(super) async fn limits(pool: &SqlitePool) -> Result<Vec<Limit>, StoreError> {
    let select = sqlx::query("SELECT DISTINCT limits FROM api_keys WHERE limits <> '[]'");
    let mut limits: Vec<Limit> = Vec::new();
    for row in &select.fetch_all(pool).await.map_err(failed("list limits of keys"))? {
        for limit in rows::limits(row)? {
            if !limits.contains(&limit) {
                limits.push(limit);
            }
        }
    }
    Ok(limits)
}

pub(super) async fn live(pool: &SqlitePool, user: UserId, now_us: i64) -> Result<u64, StoreError> {
    let select = sqlx::query(
        "SELECT COUNT(*) AS live FROM api_keys WHERE user_id = $1 AND revoked_at_us IS NULL \
         AND (expires_at_us IS NULL OR expires_at_us > $2)",
    );
    let row = select.bind(user.to_string()).bind(now_us).fetch_one(pool).await.map_err(failed("count keys"))?;
    rows::count(&row, "count of keys", "live")
}

pub(super) async fn bootstrap(pool: &SqlitePool) -> Result<Vec<KeyRecord>, StoreError> {
    let select = sqlx::query("SELECT * FROM api_keys WHERE is_bootstrap = 1 AND revoked_at_us IS NULL");
    let found = select.fetch_all(pool).await.map_err(failed("look up the bootstrap key"))?;
    found.iter().map(rows::key).collect()
}

/// One statement, so it is a transaction of its own.
pub(super) async fn forget_ephemeral(
    connection: &mut SqliteConnection,
    ended_before_us: i64,
    limited_before_us: i64,
) -> Result<u64, StoreError> {
    let delete = sqlx::query(
        "WITH RECURSIVE limited (id) AS (SELECT id FROM api_keys WHERE limits <> '[]' \
         UNION SELECT child.id FROM api_keys AS child JOIN limited ON child.parent = limited.id) \
         DELETE FROM api_keys WHERE is_ephemeral = 1 AND expires_at_us < $1 \
         AND (expires_at_us < $2 OR id NOT IN (SELECT id FROM limited))",
    );
    let done = delete.bind(ended_before_us).bind(limited_before_us).execute(connection).await;
    done.map(|done| done.rows_affected()).map_err(failed("forget ephemeral keys"))
}
