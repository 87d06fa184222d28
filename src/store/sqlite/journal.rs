//! Writing one group: reservations, progress, ledger rows and their roll-ups, in one transaction.
//!
//! A connection of its own that calls SQLite directly: each kind of row has one statement that is prepared once and run for
//! row after row, which is what a group of hundreds of rows costs least with.

use std::collections::HashSet;
use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags, Statement, Transaction, TransactionBehavior, params};
use uuid::Uuid;

use super::group::Group;
use super::notices;
use super::roll_ups;
use super::rows::{to_i64, to_json};
use crate::governance::attribution::Attribution;
use crate::governance::ports::StoreError;
use crate::governance::records::{KeyId, LedgerRecord, RequestRecord, ReservationRecord, Usage};

/// Statements kept prepared; there are about a dozen.
const PREPARED: usize = 32;
/// Pages of the write-ahead log between two checkpoints, 16 MiB: a checkpoint holds up the commit that makes it, so it must
/// not be one in a hundred.
const CHECKPOINT_PAGES: i64 = 4096;
/// Attributions remembered; beyond it all are forgotten.
const KNOWN_MAX: usize = 16_384;

/// The connection that writes groups.
#[derive(Debug)]
pub(super) struct Journal {
    connection: Connection,
    /// Attributions that are in the store, so that they are not written with every row.
    known: HashSet<Uuid>,
}

impl Journal {
    /// Opens a database that is there and up to date.
    pub(super) fn open(database: &Path, busy_timeout: Duration) -> Result<Self, rusqlite::Error> {
        // Only one thread uses it.
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(database, flags)?;
        connection.busy_timeout(busy_timeout)?;
        connection.pragma_update(None, "synchronous", "FULL")?;
        connection.pragma_update(None, "wal_autocheckpoint", CHECKPOINT_PAGES)?;
        connection.set_prepared_statement_cache_capacity(PREPARED);
        Ok(Self { connection, known: HashSet::new() })
    }

    /// Writes all of it or nothing.
    pub(super) fn write(&mut self, group: &Group) -> Result<(), rusqlite::Error> {
        // The write lock at once: an upgrade in the middle could fail although nothing is wrong.
        let transaction = self.connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut new = HashSet::new();
        for attribution in group.attributions() {
            if !self.known.contains(&attribution.id) && new.insert(attribution.id) {
                attribute(&transaction, attribution)?;
            }
        }
        write_rows(&transaction, group)?;
        transaction.commit()?;
        if self.known.len() > KNOWN_MAX {
            self.known.clear();
        }
        self.known.extend(new);
        Ok(())
    }

    /// Notes when keys were last used.
    pub(super) fn touch(&mut self, used: &[(KeyId, i64)]) -> Result<(), StoreError> {
        let noted = self.connection.transaction_with_behavior(TransactionBehavior::Immediate).and_then(|transaction| {
            for (id, at_us) in used {
                let mut update =
                    transaction.prepare_cached("UPDATE api_keys SET last_used_at_us = $1 WHERE id = $2")?;
                update.execute(params![at_us, id.as_str()])?;
            }
            transaction.commit()
        });
        noted.map_err(|error| StoreError::Unavailable {
            operation: "note when keys were last used",
            message: error.to_string().into(),
        })
    }

    pub(super) fn close(self) -> Result<(), rusqlite::Error> {
        self.connection.close().map_err(|(_, error)| error)
    }
}

fn attribute(transaction: &Transaction<'_>, attribution: &Attribution) -> Result<(), rusqlite::Error> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO attributions (id, member_groups, labels) VALUES ($1, $2, $3) ON CONFLICT (id) DO NOTHING",
    )?;
    let (id, groups, labels) = (attribution.id.to_string(), to_json(&attribution.groups), to_json(&attribution.labels));
    insert.execute(params![id, groups, labels]).map(drop)
}

fn write_rows(transaction: &Transaction<'_>, group: &Group) -> Result<(), rusqlite::Error> {
    open(transaction, group.opens.values())?;
    for (id, extents) in &group.extents {
        let mut update = transaction.prepare_cached("UPDATE reservations SET extents = $1 WHERE id = $2")?;
        update.execute(params![to_json(extents), Text::of(*id).as_str()])?;
    }
    for (id, usage) in &group.progress {
        let mut update = transaction.prepare_cached(
            "UPDATE reservations SET prompt_tokens = $1, cached_tokens = $2, completion_tokens = $3 WHERE id = $4",
        )?;
        let [prompt, cached, completion] =
            [usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens].map(to_i64);
        update.execute(params![prompt, cached, completion, Text::of(*id).as_str()])?;
    }
    let charged = close(transaction, &group.closes)?;
    for id in &group.settled {
        let mut delete = transaction.prepare_cached("DELETE FROM reservations WHERE id = $1")?;
        delete.execute([Text::of(*id).as_str()])?;
    }
    notices::write(transaction, &group.notices, &group.told)?;
    roll_ups::write(transaction, charged.into_iter(), &group.refusals)
}

/// The text of an id, without an allocation.
pub(super) struct Text([u8; uuid::fmt::Hyphenated::LENGTH]);

impl Text {
    pub(super) fn of(id: Uuid) -> Self {
        let mut text = [0; uuid::fmt::Hyphenated::LENGTH];
        id.hyphenated().encode_lower(&mut text);
        Self(text)
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).expect("hexadecimal digits and hyphens")
    }
}

/// Binds what a reservation and its ledger row have in common, as the first parameters; tells which one is next.
fn bind_request(statement: &mut Statement<'_>, request: &RequestRecord) -> Result<usize, rusqlite::Error> {
    statement.raw_bind_parameter(1, Text::of(request.id).as_str())?;
    statement.raw_bind_parameter(2, request.client_request_id.as_deref())?;
    statement.raw_bind_parameter(3, Text::of(request.user.0).as_str())?;
    statement.raw_bind_parameter(4, &*request.user_name)?;
    statement.raw_bind_parameter(5, request.key.as_ref().map(KeyId::as_str))?;
    statement.raw_bind_parameter(6, &*request.tier)?;
    statement.raw_bind_parameter(7, &*request.model)?;
    statement.raw_bind_parameter(8, &*request.endpoint)?;
    statement.raw_bind_parameter(9, request.admitted_at_us)?;
    statement.raw_bind_parameter(10, request.price_version.map(to_i64))?;
    statement.raw_bind_parameter(11, Text::of(request.attribution.id).as_str())?;
    Ok(12)
}

/// Binds tokens from `first` on; tells which parameter is next.
fn bind_usage(statement: &mut Statement<'_>, first: usize, usage: &Usage) -> Result<usize, rusqlite::Error> {
    statement.raw_bind_parameter(first, to_i64(usage.prompt_tokens))?;
    statement.raw_bind_parameter(first + 1, to_i64(usage.cached_tokens))?;
    statement.raw_bind_parameter(first + 2, to_i64(usage.completion_tokens))?;
    Ok(first + 3)
}

fn open<'a>(
    transaction: &Transaction<'_>,
    rows: impl Iterator<Item = &'a ReservationRecord>,
) -> Result<(), rusqlite::Error> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO reservations (id, client_request_id, user_id, user_name, key_id, tier, model, endpoint, admitted_at_us, \
         price_version, attribution_id, prompt_tokens, cached_tokens, completion_tokens, extents) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) ON CONFLICT (id) DO NOTHING",
    )?;
    for row in rows {
        let next = bind_request(&mut insert, &row.request)?;
        let next = bind_usage(&mut insert, next, &row.progress)?;
        insert.raw_bind_parameter(next, to_json(&row.extents))?;
        insert.raw_execute()?;
    }
    Ok(())
}

/// Inserts ledger rows and tells which were not there before.
fn close<'a>(
    transaction: &Transaction<'_>,
    rows: &'a [LedgerRecord],
) -> Result<Vec<&'a LedgerRecord>, rusqlite::Error> {
    let mut insert = transaction.prepare_cached(
        "INSERT INTO ledger (id, client_request_id, user_id, user_name, key_id, tier, model, endpoint, admitted_at_us, \
         price_version, attribution_id, prompt_tokens, cached_tokens, completion_tokens, cost_nano_usd, settled_at_us, \
         status, charged) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15, $16, $17, $18) \
         ON CONFLICT (admitted_at_us, id) DO NOTHING",
    )?;
    let mut inserted = Vec::with_capacity(rows.len());
    for row in rows {
        let next = bind_request(&mut insert, &row.request)?;
        let next = bind_usage(&mut insert, next, &row.usage)?;
        insert.raw_bind_parameter(next, to_i64(row.cost_nano_usd))?;
        insert.raw_bind_parameter(next + 1, row.settled_at_us)?;
        insert.raw_bind_parameter(next + 2, row.status.as_str())?;
        insert.raw_bind_parameter(next + 3, to_json(&row.charged))?;
        if insert.raw_execute()? > 0 {
            inserted.push(row);
        }
    }
    Ok(inserted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_commit_of_the_ledger_is_synced() {
        let folder = tempfile::tempdir().unwrap();
        let database = folder.path().join("ledger.db");
        Connection::open(&database).unwrap().pragma_update(None, "journal_mode", "wal").unwrap();
        let journal = Journal::open(&database, Duration::ZERO).unwrap();
        let level = journal.connection.pragma_query_value(None, "synchronous", |row| row.get::<_, i64>(0)).unwrap();
        assert_eq!(level, 2, "FULL: with a write-ahead log, NORMAL would sync at checkpoints only");
    }
}
