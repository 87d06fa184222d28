//! Writing one group: reservations, progress, ledger rows and their roll-ups, in one transaction.

use std::collections::{HashMap, HashSet};

use sqlx::query_builder::Separated;
use sqlx::{QueryBuilder, Row, Sqlite, SqliteConnection};
use uuid::Uuid;

use super::group::Group;
use super::notices;
use super::roll_ups;
use super::rows::{to_i64, to_json};
use crate::governance::attribution::Attribution;
use crate::governance::records::{KeyId, LedgerRecord, RequestRecord, ReservationRecord, Usage};

/// Rows inserted by one statement; few sizes, so that prepared statements are found again.
const CHUNKS: [usize; 3] = [64, 8, 1];

/// Attributions that are in the store, so that they are not written with every row; forgotten all at once when they are many.
#[derive(Debug, Default)]
pub(super) struct Known(HashSet<Uuid>);

const KNOWN_MAX: usize = 16_384;

/// Writes all of it or nothing.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    group: &Group,
    known: &mut Known,
) -> Result<(), sqlx::Error> {
    let new: HashMap<Uuid, &Attribution> = group
        .attributions()
        .filter(|attribution| !known.0.contains(&attribution.id))
        .map(|attribution| (attribution.id, attribution))
        .collect();
    begin(connection).await?;
    let written = async {
        for attribution in new.values() {
            attribute(connection, attribution).await?;
        }
        write_rows(connection, group).await
    };
    let written = written.await;
    end(connection, written).await?;
    if known.0.len() > KNOWN_MAX {
        known.0.clear();
    }
    known.0.extend(new.into_keys());
    Ok(())
}

async fn attribute(connection: &mut SqliteConnection, attribution: &Attribution) -> Result<(), sqlx::Error> {
    let insert = sqlx::query(
        "INSERT INTO attributions (id, member_groups, labels) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING",
    );
    insert
        .bind(attribution.id.to_string())
        .bind(to_json(&attribution.groups))
        .bind(to_json(&attribution.labels))
        .execute(connection)
        .await
        .map(drop)
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
    notices::write(connection, &group.notices, &group.told).await?;
    let charged = group.closes.iter().filter(|row| inserted.contains(&row.request.id));
    roll_ups::write(connection, charged, &group.refusals).await
}

pub(super) fn chunks<T>(rows: &[T]) -> impl Iterator<Item = &[T]> {
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
        .push_bind(request.admitted_at_us)
        .push_bind(request.price_version.map(to_i64))
        .push_bind(request.attribution.id.to_string());
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
         price_version, attribution_id, extents, prompt_tokens, cached_tokens, completion_tokens) ",
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
         price_version, attribution_id, prompt_tokens, cached_tokens, completion_tokens, cost_nano_usd, settled_at_us, \
         status, charged) ",
    );
    query.push_values(rows, |mut values, row| {
        bind_request(&mut values, &row.request);
        bind_usage(&mut values, &row.usage);
        values.push_bind(to_i64(row.cost_nano_usd));
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
