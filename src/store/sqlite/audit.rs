//! The audit log: what a change found, the row it leaves behind, and reading the rows again.

use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, SqlitePool};

use super::policy::{membership, user_row};
use super::rows::{self, column, failed};
use super::signing_keys;
use crate::governance::audit::{self, AuditFilter, AuditRow, Author, Entry, Found, Head};
use crate::governance::ports::{Change, StoreError};
use crate::governance::records::{KeyId, ModelRecord, SigningKeyRecord, TierRecord, UserId, UserRecord};

const WRITE: &str = "write the audit log";
const READ: &str = "read the audit log";
const WHAT: &str = "audit row";

/// The end of the chain inside one transaction.
pub(super) struct Log<'a> {
    head: Head,
    at_us: i64,
    author: &'a Author,
}

impl<'a> Log<'a> {
    /// Reads the newest row.
    pub(super) async fn open(
        connection: &mut SqliteConnection,
        at_us: i64,
        author: &'a Author,
    ) -> Result<Self, StoreError> {
        let select = sqlx::query("SELECT sequence, hash FROM audit ORDER BY sequence DESC LIMIT 1");
        let newest = select.fetch_optional(connection).await.map_err(failed(WRITE))?;
        let head = match &newest {
            Some(row) => Head { sequence: column(row, WHAT, "sequence")?, hash: column(row, WHAT, "hash")? },
            None => Head::default(),
        };
        Ok(Self { head, at_us, author })
    }

    /// What the log will say about a change, from the state before it.
    pub(super) async fn describe(
        &self,
        connection: &mut SqliteConnection,
        change: &Change,
    ) -> Result<Option<Entry>, StoreError> {
        Ok(audit::entry(change, &found(connection, change).await?))
    }

    /// Writes one row.
    pub(super) async fn append(&mut self, connection: &mut SqliteConnection, entry: &Entry) -> Result<(), StoreError> {
        let row = AuditRow::seal(&self.head, self.at_us, self.author, entry);
        sqlx::query(
            "INSERT INTO audit (sequence, at_us, actor_id, actor, key_id, source, action, target, state_before, \
             state_after, previous, hash) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12)",
        )
        .bind(row.sequence)
        .bind(row.at_us)
        .bind(&row.actor_id)
        .bind(&row.actor)
        .bind(&row.key)
        .bind(&row.source)
        .bind(&row.action)
        .bind(&row.target)
        .bind(&row.before)
        .bind(&row.after)
        .bind(&row.previous)
        .bind(&row.hash)
        .execute(connection)
        .await
        .map_err(failed(WRITE))?;
        self.head = Head { sequence: row.sequence, hash: row.hash };
        Ok(())
    }
}

/// Reads what a change is about, inside its transaction.
async fn found(connection: &mut SqliteConnection, change: &Change) -> Result<Found, StoreError> {
    Ok(match change {
        Change::PutUser(UserRecord { id, .. }) | Change::DeleteUser(id) => {
            user(connection, *id).await?.map_or(Found::Nothing, Found::User)
        }
        Change::PutKey(key) => match one(connection, "SELECT * FROM api_keys WHERE id = $1", key.id.as_str()).await? {
            Some(row) => Found::Key(rows::key(&row)?),
            None => Found::Nothing,
        },
        Change::RevokeKeysOf { user: id, .. } => {
            let select =
                sqlx::query("SELECT id FROM api_keys WHERE user_id = $1 AND revoked_at_us IS NULL ORDER BY id");
            let live = select.bind(id.to_string()).fetch_all(&mut *connection).await.map_err(failed(WRITE))?;
            let ids = live.iter().map(|row| Ok(KeyId::from(column::<&str, _>(row, "key", "id")?)));
            let ids = ids.collect::<Result<_, StoreError>>()?;
            Found::KeysOf(user(connection, *id).await?, ids)
        }
        Change::PutTier(TierRecord { name, .. }) | Change::DeleteTier(name) => {
            match one(connection, "SELECT * FROM tiers WHERE name = $1", name).await? {
                Some(row) => Found::Tier(rows::tier(&row)?),
                None => Found::Nothing,
            }
        }
        Change::PutModel(ModelRecord { name, .. }) | Change::DeleteModel(name) => {
            match one(connection, "SELECT * FROM models WHERE name = $1", name).await? {
                Some(row) => Found::Model(rows::model(&row)?),
                None => Found::Nothing,
            }
        }
        Change::PutGroup(name) => match one(connection, "SELECT name FROM known_groups WHERE name = $1", name).await? {
            Some(_) => Found::Group,
            None => Found::Nothing,
        },
        Change::AddPrice(price) => {
            let select = sqlx::query(
                "SELECT * FROM prices WHERE model = $1 AND effective_from_us <= $2 \
                 ORDER BY effective_from_us DESC, version DESC LIMIT 1",
            );
            let select = select.bind(&price.model).bind(price.effective_from_us);
            match select.fetch_optional(connection).await.map_err(failed(WRITE))? {
                Some(row) => Found::Price(rows::price(&row)?),
                None => Found::Nothing,
            }
        }
        Change::PutSigningKey(SigningKeyRecord { id, .. }) | Change::DeleteSigningKey(id) => {
            match one(connection, "SELECT * FROM signing_keys WHERE id = $1", id).await? {
                Some(row) => Found::SigningKey(signing_keys::signing_key(&row)?),
                None => Found::Nothing,
            }
        }
        Change::NoteConfig(_) => {
            let newest = "SELECT state_after FROM audit WHERE target = $1 ORDER BY sequence DESC LIMIT 1";
            match one(connection, newest, audit::CONFIG).await? {
                Some(row) => {
                    let text: Option<&str> = column(&row, WHAT, "state_after")?;
                    text.and_then(|text| serde_json::from_str(text).ok()).map_or(Found::Nothing, Found::Config)
                }
                None => Found::Nothing,
            }
        }
    })
}

async fn one(
    connection: &mut SqliteConnection,
    select: &'static str,
    name: &str,
) -> Result<Option<SqliteRow>, StoreError> {
    sqlx::query(select).bind(name).fetch_optional(connection).await.map_err(failed(WRITE))
}

async fn user(connection: &mut SqliteConnection, id: UserId) -> Result<Option<UserRecord>, StoreError> {
    let id = id.to_string();
    let Some(row) = one(connection, "SELECT * FROM users WHERE id = $1", &id).await? else { return Ok(None) };
    let mut user = user_row(&row)?;
    let select = sqlx::query("SELECT * FROM user_groups WHERE user_id = $1 ORDER BY group_name, source").bind(&id);
    let groups = select.fetch_all(connection).await.map_err(failed(WRITE))?;
    user.groups = groups.iter().map(membership).collect::<Result<_, _>>()?;
    Ok(Some(user))
}

/// Rows that match, newest first.
pub(super) async fn list(pool: &SqlitePool, filter: &AuditFilter) -> Result<Vec<AuditRow>, StoreError> {
    // A kind alone stands for everything of that kind; both are ASCII up to the separator, so lengths in characters agree.
    let select = sqlx::query(
        "SELECT * FROM audit WHERE ($1 IS NULL OR sequence < $1) \
         AND ($2 IS NULL OR actor = $2 OR actor_id = $2 OR key_id = $2) \
         AND ($3 IS NULL OR action = $3 OR substr(action, 1, length($3) + 1) = $3 || '.') \
         AND ($4 IS NULL OR target = $4 OR substr(target, 1, length($4) + 1) = $4 || '/') \
         AND ($5 IS NULL OR at_us >= $5) AND ($6 IS NULL OR at_us < $6) ORDER BY sequence DESC LIMIT $7",
    )
    .bind(filter.below)
    .bind(&filter.actor)
    .bind(&filter.action)
    .bind(&filter.target)
    .bind(filter.start_us)
    .bind(filter.end_us)
    .bind(i64::from(filter.limit));
    let found = select.fetch_all(pool).await.map_err(failed(READ))?;
    found.iter().map(audit_row).collect()
}

/// Rows after a number, oldest first.
pub(super) async fn after(pool: &SqlitePool, sequence: i64, limit: u32) -> Result<Vec<AuditRow>, StoreError> {
    let select = sqlx::query("SELECT * FROM audit WHERE sequence > $1 ORDER BY sequence LIMIT $2");
    let found = select.bind(sequence).bind(i64::from(limit)).fetch_all(pool).await.map_err(failed(READ))?;
    found.iter().map(audit_row).collect()
}

fn audit_row(row: &SqliteRow) -> Result<AuditRow, StoreError> {
    Ok(AuditRow {
        sequence: column(row, WHAT, "sequence")?,
        at_us: column(row, WHAT, "at_us")?,
        actor_id: column(row, WHAT, "actor_id")?,
        actor: column(row, WHAT, "actor")?,
        key: column(row, WHAT, "key_id")?,
        source: column(row, WHAT, "source")?,
        action: column(row, WHAT, "action")?,
        target: column(row, WHAT, "target")?,
        before: column(row, WHAT, "state_before")?,
        after: column(row, WHAT, "state_after")?,
        previous: column(row, WHAT, "previous")?,
        hash: column(row, WHAT, "hash")?,
    })
}
