//! Writing one group: reservations, progress, ledger rows and their roll-ups, in one transaction.

use std::collections::{BTreeMap, HashSet};

use sqlx::query_builder::Separated;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::group::Group;
use super::rows::{to_i64, to_json};
use crate::governance::records::{KeyId, LedgerRecord, RequestRecord, ReservationRecord, Usage};

/// Rows inserted by one statement; few sizes, so that prepared statements are found again.
const CHUNKS: [usize; 3] = [64, 8, 1];

/// Writes all of it or nothing.
pub(super) async fn write(connection: &mut SqliteConnection, group: &Group) -> Result<(), sqlx::Error> {
    begin(connection).await?;
    let written = write_rows(connection, group).await;
    end(connection, written).await
}

/// Notes when keys were last used.
pub(super) async fn touch(connection: &mut SqliteConnection, used: &[(KeyId, i64)]) -> Result<(), sqlx::Error> {
    begin(connection).await?;
    let mut written = Ok(());
    for (id, at_us) in used {
        let update =
            sqlx::query("UPDATE api_keys SET last_used_at_us = $1 WHERE id = $2").bind(at_us).bind(id.as_str());
        if let Err(error) = update.execute(&mut *connection).await {
            written = Err(error);
            break;
        }
    }
    end(connection, written).await
}

/// Takes the write lock at once: an upgrade in the middle could fail although nothing is wrong.
pub(super) async fn begin(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(connection).await.map(drop)
}

/// Commits when all went well, rolls back otherwise.
pub(super) async fn end<T, E: From<sqlx::Error>>(
    connection: &mut SqliteConnection,
    written: Result<T, E>,
) -> Result<T, E> {
    let committed = match written {
        Ok(value) => sqlx::query("COMMIT").execute(&mut *connection).await.map(|_| value).map_err(E::from),
        Err(error) => Err(error),
    };
    if committed.is_err() {
        // Some failures (disk full) have rolled back already; then there is nothing to roll back.
        let _ = sqlx::query("ROLLBACK").execute(connection).await;
    }
    committed
}

async fn write_rows(connection: &mut SqliteConnection, group: &Group) -> Result<(), sqlx::Error> {
    let opens: Vec<&ReservationRecord> = group.opens.values().collect();
    for chunk in chunks(&opens) {
        open(connection, chunk).await?;
    }
    for (id, extents) in &group.extents {
        let update = sqlx::query("UPDATE reservations SET extents = $1 WHERE id = $2");
        update.bind(to_json(extents)).bind(id.to_string()).execute(&mut *connection).await?;
    }
    for (id, usage) in &group.progress {
        let update = sqlx::query(
            "UPDATE reservations SET prompt_tokens = $1, cached_tokens = $2, completion_tokens = $3 WHERE id = $4",
        );
        update
            .bind(to_i64(usage.prompt_tokens))
            .bind(to_i64(usage.cached_tokens))
            .bind(to_i64(usage.completion_tokens))
            .bind(id.to_string())
            .execute(&mut *connection)
            .await?;
    }
    let mut inserted = HashSet::new();
    for chunk in chunks(&group.closes) {
        inserted.extend(close(connection, chunk).await?);
    }
    roll_up(connection, group.closes.iter().filter(|row| inserted.contains(&row.request.id))).await
}

fn chunks<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
    let mut rest = rows;
    std::iter::from_fn(move || {
        let size = CHUNKS.into_iter().find(|size| *size <= rest.len())?;
        let (chunk, left) = rest.split_at(size);
        rest = left;
        Some(chunk)
    })
}

fn bind_request(values: &mut Separated<'_, Sqlite, &'static str>, request: &RequestRecord) {
    values
        .push_bind(request.id.to_string())
        .push_bind(request.client_request_id.clone())
        .push_bind(request.user.to_string())
        .push_bind(request.user_name.clone())
        .push_bind(request.key.as_ref().map(KeyId::to_string))
        .push_bind(request.tier.clone())
        .push_bind(request.model.clone())
        .push_bind(request.endpoint.clone())
        .push_bind(request.admitted_at_us);
}

fn bind_usage(values: &mut Separated<'_, Sqlite, &'static str>, usage: &Usage) {
    values
        .push_bind(to_i64(usage.prompt_tokens))
        .push_bind(to_i64(usage.cached_tokens))
        .push_bind(to_i64(usage.completion_tokens));
}

async fn open(connection: &mut SqliteConnection, rows: &[&ReservationRecord]) -> Result<(), sqlx::Error> {
    let mut query = QueryBuilder::new(
        "INSERT INTO reservations (id, client_request_id, user_id, user_name, key_id, tier, model, endpoint, admitted_at_us, \
         extents, prompt_tokens, cached_tokens, completion_tokens) ",
    );
    query.push_values(rows, |mut values, row| {
        bind_request(&mut values, &row.request);
        values.push_bind(to_json(&row.extents));
        bind_usage(&mut values, &row.progress);
    });
    query.push(" ON CONFLICT (id) DO NOTHING");
    query.build().execute(connection).await.map(drop)
}

/// Inserts ledger rows, removes their reservations, and tells which rows were not there before.
async fn close(connection: &mut SqliteConnection, rows: &[LedgerRecord]) -> Result<Vec<Uuid>, sqlx::Error> {
    let mut query = QueryBuilder::new(
        "INSERT INTO ledger (id, client_request_id, user_id, user_name, key_id, tier, model, endpoint, admitted_at_us, \
         prompt_tokens, cached_tokens, completion_tokens, settled_at_us, status, charged) ",
    );
    query.push_values(rows, |mut values, row| {
        bind_request(&mut values, &row.request);
        bind_usage(&mut values, &row.usage);
        values.push_bind(row.settled_at_us).push_bind(row.status.as_str()).push_bind(to_json(&row.charged));
    });
    query.push(" ON CONFLICT (id) DO NOTHING RETURNING id");
    let inserted = query.build().fetch_all(&mut *connection).await?;
    let mut query = QueryBuilder::new("DELETE FROM reservations WHERE id IN (");
    let mut ids = query.separated(", ");
    for row in rows {
        ids.push_bind(row.request.id.to_string());
    }
    query.push(")");
    query.build().execute(connection).await?;
    let id = |row: &sqlx::sqlite::SqliteRow| row.try_get::<&str, _>(0).ok().and_then(|id| id.parse().ok());
    Ok(inserted.iter().filter_map(id).collect())
}

const BUCKETS: [(&str, i64); 3] = [("1m", 60_000_000), ("1h", 3_600_000_000), ("1d", 86_400_000_000)];

async fn roll_up(
    connection: &mut SqliteConnection,
    rows: impl Iterator<Item = &LedgerRecord>,
) -> Result<(), sqlx::Error> {
    let mut sums: BTreeMap<_, (i64, [u64; 3])> = BTreeMap::new();
    for row in rows {
        let request = &row.request;
        for (bucket, length_us) in BUCKETS {
            let start_us = request.admitted_at_us.div_euclid(length_us) * length_us;
            let key = request.key.as_ref().map_or("", KeyId::as_str);
            let sum = sums.entry((bucket, start_us, request.user, key, &request.tier, &request.model)).or_default();
            sum.0 += 1;
            sum.1[0] += row.usage.prompt_tokens;
            sum.1[1] += row.usage.cached_tokens;
            sum.1[2] += row.usage.completion_tokens;
        }
    }
    let sums: Vec<_> = sums.into_iter().collect();
    for chunk in chunks(&sums) {
        let mut query = QueryBuilder::new(
            "INSERT INTO usage_rollups (bucket, start_us, user_id, key_id, tier, model, requests, prompt_tokens, \
             cached_tokens, completion_tokens) ",
        );
        query.push_values(chunk, |mut values, ((bucket, start_us, user, key, tier, model), (requests, tokens))| {
            values
                .push_bind(*bucket)
                .push_bind(*start_us)
                .push_bind(user.to_string())
                .push_bind((*key).to_owned())
                .push_bind((*tier).clone())
                .push_bind((*model).clone())
                .push_bind(*requests)
                .push_bind(to_i64(tokens[0]))
                .push_bind(to_i64(tokens[1]))
                .push_bind(to_i64(tokens[2]));
        });
        query.push(
            " ON CONFLICT (bucket, start_us, user_id, key_id, tier, model) DO UPDATE SET \
             requests = usage_rollups.requests + excluded.requests, \
             prompt_tokens = usage_rollups.prompt_tokens + excluded.prompt_tokens, \
             cached_tokens = usage_rollups.cached_tokens + excluded.cached_tokens, \
             completion_tokens = usage_rollups.completion_tokens + excluded.completion_tokens",
        );
        query.build().execute(&mut *connection).await?;
    }
    Ok(())
}
