//! Users, groups, tiers and models: reading them, and changing them under one version.

use std::collections::BTreeMap;
use std::sync::Arc;

use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, SqlitePool};

use super::audit::Log;
use super::rows::{self, column, failed, to_i64, to_json};
use super::{keys, signing_keys};
use crate::governance::ports::{Change, Edit, PolicyTables, StoreError};
use crate::governance::pricing::{PriceList, PriceRecord};
use crate::governance::records::{Membership, MembershipSource, ModelRecord, TierRecord, UserId, UserRecord};

const READ: &str = "read the policy";
const CHANGE: &str = "change the policy";

struct Failed(StoreError);

impl From<sqlx::Error> for Failed {
    fn from(error: sqlx::Error) -> Self {
        Self(failed(CHANGE)(error))
    }
}

/// Takes the write lock at once: an upgrade in the middle could fail although nothing is wrong.
async fn begin(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query("BEGIN IMMEDIATE").execute(connection).await.map(drop)
}

/// Commits when all went well, rolls back otherwise.
async fn end<T, E: From<sqlx::Error>>(connection: &mut SqliteConnection, applied: Result<T, E>) -> Result<T, E> {
    let committed = match applied {
        Ok(value) => sqlx::query("COMMIT").execute(&mut *connection).await.map(|_| value).map_err(E::from),
        Err(error) => Err(error),
    };
    if committed.is_err() {
        // Some failures (disk full) have rolled back already; then there is nothing to roll back.
        let _ = sqlx::query("ROLLBACK").execute(connection).await;
    }
    committed
}

/// Applies all changes in one transaction if the version is still `expected`.
pub(super) async fn change(connection: &mut SqliteConnection, expected: u64, edit: Edit) -> Result<u64, StoreError> {
    begin(connection).await.map_err(failed(CHANGE))?;
    let applied = apply_all(connection, expected, edit).await;
    end(connection, applied).await.map_err(|Failed(error)| error)
}

async fn apply_all(connection: &mut SqliteConnection, expected: u64, edit: Edit) -> Result<u64, Failed> {
    let found = version(&mut *connection).await.map_err(Failed)?;
    if found != expected {
        return Err(Failed(StoreError::Changed { expected, found }));
    }
    sqlx::query("UPDATE policy_version SET version = version + 1 WHERE id = 1").execute(&mut *connection).await?;
    let mut log = Log::open(connection, edit.at_us, &edit.author).await.map_err(Failed)?;
    for change in edit.changes {
        // Before the change is made: what it is about must still be as it was.
        let entry = log.describe(connection, &change).await.map_err(Failed)?;
        apply(connection, change).await?;
        if let Some(entry) = entry {
            log.append(connection, &entry).await.map_err(Failed)?;
        }
    }
    Ok(found + 1)
}

async fn apply(connection: &mut SqliteConnection, change: Change) -> Result<(), sqlx::Error> {
    match change {
        Change::PutUser(user) => put_user(connection, &user).await,
        Change::DeleteUser(user) => {
            let id = user.to_string();
            sqlx::query("INSERT INTO former_users (id, name) SELECT id, name FROM users WHERE id = $1")
                .bind(&id)
                .execute(&mut *connection)
                .await?;
            sqlx::query("DELETE FROM user_groups WHERE user_id = $1").bind(&id).execute(&mut *connection).await?;
            sqlx::query("DELETE FROM users WHERE id = $1").bind(&id).execute(connection).await.map(drop)
        }
        Change::PutKey(key) => keys::put(connection, &key).await,
        Change::RevokeKeysOf { user, at_us } => {
            sqlx::query("UPDATE api_keys SET revoked_at_us = $1 WHERE user_id = $2 AND revoked_at_us IS NULL")
                .bind(at_us)
                .bind(user.to_string())
                .execute(connection)
                .await
                .map(drop)
        }
        Change::PutTier(tier) => put_tier(connection, &tier).await,
        Change::DeleteTier(name) => {
            sqlx::query("DELETE FROM tiers WHERE name = $1").bind(name).execute(connection).await.map(drop)
        }
        Change::PutModel(model) => put_model(connection, &model).await,
        Change::DeleteModel(name) => {
            sqlx::query("DELETE FROM models WHERE name = $1").bind(name).execute(connection).await.map(drop)
        }
        Change::PutGroup(name) => put_group(connection, &name).await,
        // The audit log itself remembers it.
        Change::NoteConfig(_) => Ok(()),
        Change::AddPrice(price) => add_price(connection, &price).await,
        Change::PutSigningKey(key) => signing_keys::put(connection, &key).await,
        Change::DeleteSigningKey(id) => signing_keys::delete(connection, &id).await,
    }
}

async fn add_price(connection: &mut SqliteConnection, record: &PriceRecord) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO prices (version, model, prompt_pico_usd, cached_pico_usd, completion_pico_usd, effective_from_us, \
         created_at_us) VALUES ($1, $2, $3, $4, $5, $6, $7)",
    )
    .bind(to_i64(record.version))
    .bind(&record.model)
    .bind(to_i64(record.price.prompt_pico_usd))
    .bind(to_i64(record.price.cached_pico_usd))
    .bind(to_i64(record.price.completion_pico_usd))
    .bind(record.effective_from_us)
    .bind(record.created_at_us)
    .execute(connection)
    .await
    .map(drop)
}

async fn put_group(connection: &mut SqliteConnection, name: &str) -> Result<(), sqlx::Error> {
    let insert = sqlx::query("INSERT INTO known_groups (name) VALUES ($1) ON CONFLICT (name) DO NOTHING");
    insert.bind(name).execute(connection).await.map(drop)
}

async fn put_user(connection: &mut SqliteConnection, user: &UserRecord) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO users (id, issuer, subject, name, active, created_at_us, token_epoch, groups_at_us) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (id) DO UPDATE SET name = excluded.name, active = excluded.active, \
         token_epoch = excluded.token_epoch, groups_at_us = excluded.groups_at_us",
    )
    .bind(user.id.to_string())
    .bind(&user.issuer)
    .bind(&user.subject)
    .bind(&user.name)
    .bind(i64::from(user.active))
    .bind(user.created_at_us)
    .bind(to_i64(user.token_epoch))
    .bind(user.groups_at_us)
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM user_groups WHERE user_id = $1")
        .bind(user.id.to_string())
        .execute(&mut *connection)
        .await?;
    for membership in &user.groups {
        sqlx::query("INSERT INTO user_groups (user_id, group_name, source) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING")
            .bind(user.id.to_string())
            .bind(&membership.group)
            .bind(membership.source.as_str())
            .execute(&mut *connection)
            .await?;
        put_group(connection, &membership.group).await?;
    }
    Ok(())
}

async fn put_tier(connection: &mut SqliteConnection, tier: &TierRecord) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO tiers (name, display_name, description, level, member_groups, limits, weight, origin, position) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9) \
         ON CONFLICT (name) DO UPDATE SET display_name = excluded.display_name, description = excluded.description, \
         level = excluded.level, member_groups = excluded.member_groups, limits = excluded.limits, \
         weight = excluded.weight, origin = excluded.origin, position = excluded.position",
    )
    .bind(&tier.name)
    .bind(&tier.display_name)
    .bind(&tier.description)
    .bind(i64::from(tier.level))
    .bind(to_json(&tier.groups))
    .bind(to_json(&tier.limits))
    .bind(i64::from(tier.weight))
    .bind(tier.origin.as_str())
    .bind(tier.position)
    .execute(connection)
    .await
    .map(drop)
}

async fn put_model(connection: &mut SqliteConnection, model: &ModelRecord) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO models (name, display_name, source, published, settings, created_at_us) VALUES ($1, $2, $3, $4, $5, $6) \
         ON CONFLICT (name) DO UPDATE SET display_name = excluded.display_name, source = excluded.source, \
         published = excluded.published, settings = excluded.settings",
    )
    .bind(&model.name)
    .bind(&model.display_name)
    .bind(&model.source)
    .bind(to_json(&model.published))
    .bind(&model.settings)
    .bind(model.created_at_us)
    .execute(connection)
    .await
    .map(drop)
}

pub(super) async fn version<'e>(executor: impl sqlx::SqliteExecutor<'e>) -> Result<u64, StoreError> {
    let select = sqlx::query("SELECT version FROM policy_version WHERE id = 1");
    let row = select.fetch_one(executor).await.map_err(failed(READ))?;
    rows::count(&row, "policy version", "version")
}

pub(super) async fn tables(pool: &SqlitePool) -> Result<PolicyTables, StoreError> {
    // One read transaction: version, tiers, models and prices belong together.
    let mut transaction = pool.begin().await.map_err(failed(READ))?;
    let version = version(&mut *transaction).await?;
    let tiers = sqlx::query("SELECT * FROM tiers ORDER BY name").fetch_all(&mut *transaction).await;
    let models = sqlx::query("SELECT * FROM models ORDER BY name").fetch_all(&mut *transaction).await;
    let prices = sqlx::query("SELECT * FROM prices ORDER BY version").fetch_all(&mut *transaction).await;
    transaction.rollback().await.map_err(failed(READ))?;
    Ok(PolicyTables {
        version,
        tiers: tiers.map_err(failed(READ))?.iter().map(rows::tier).collect::<Result<_, _>>()?,
        models: models.map_err(failed(READ))?.iter().map(rows::model).collect::<Result<_, _>>()?,
        prices: Arc::new(PriceList::new(
            prices.map_err(failed(READ))?.iter().map(rows::price).collect::<Result<_, _>>()?,
        )),
    })
}

pub(super) async fn user(pool: &SqlitePool, id: UserId) -> Result<Option<UserRecord>, StoreError> {
    let select = sqlx::query("SELECT * FROM users WHERE id = $1").bind(id.to_string());
    with_groups(pool, select.fetch_optional(pool).await.map_err(failed("look up a user"))?).await
}

/// Somebody who was deleted: a name, and no right to anything.
pub(super) async fn former_user(pool: &SqlitePool, id: UserId) -> Result<Option<UserRecord>, StoreError> {
    let select = sqlx::query("SELECT name FROM former_users WHERE id = $1").bind(id.to_string());
    let row = select.fetch_optional(pool).await.map_err(failed("look up a former user"))?;
    let former = |row: SqliteRow| -> Result<UserRecord, StoreError> {
        let name: String = column(&row, "former user", "name")?;
        Ok(UserRecord::former(id, &name))
    };
    row.map(former).transpose()
}

pub(super) async fn user_by_subject(
    pool: &SqlitePool,
    issuer: &str,
    subject: &str,
) -> Result<Option<UserRecord>, StoreError> {
    let select = sqlx::query("SELECT * FROM users WHERE issuer = $1 AND subject = $2").bind(issuer).bind(subject);
    with_groups(pool, select.fetch_optional(pool).await.map_err(failed("look up a user"))?).await
}

pub(super) async fn user_by_name(pool: &SqlitePool, name: &str) -> Result<Option<UserRecord>, StoreError> {
    let select = sqlx::query("SELECT * FROM users WHERE name = $1 ORDER BY created_at_us LIMIT 1").bind(name);
    with_groups(pool, select.fetch_optional(pool).await.map_err(failed("look up a user"))?).await
}

async fn with_groups(pool: &SqlitePool, row: Option<SqliteRow>) -> Result<Option<UserRecord>, StoreError> {
    let Some(row) = row else { return Ok(None) };
    let mut user = user_row(&row)?;
    let select = sqlx::query("SELECT * FROM user_groups WHERE user_id = $1 ORDER BY group_name, source");
    let found = select.bind(user.id.to_string()).fetch_all(pool).await.map_err(failed("look up groups"))?;
    user.groups = found.iter().map(membership).collect::<Result<_, _>>()?;
    Ok(Some(user))
}

pub(super) async fn users(pool: &SqlitePool, after: Option<&str>, limit: u32) -> Result<Vec<UserRecord>, StoreError> {
    let select = sqlx::query("SELECT * FROM users WHERE ($1 IS NULL OR name > $1) ORDER BY name LIMIT $2");
    let found = select.bind(after).bind(i64::from(limit)).fetch_all(pool).await.map_err(failed("list users"))?;
    let mut users = found.iter().map(user_row).collect::<Result<Vec<_>, _>>()?;
    let (Some(first), Some(last)) = (users.first(), users.last()) else {
        return Ok(users);
    };
    let select = sqlx::query(
        "SELECT user_groups.* FROM user_groups JOIN users ON users.id = user_groups.user_id \
         WHERE users.name >= $1 AND users.name <= $2 ORDER BY group_name, source",
    );
    let found = select.bind(&first.name).bind(&last.name).fetch_all(pool).await.map_err(failed("list users"))?;
    let mut groups: BTreeMap<UserId, Vec<Membership>> = BTreeMap::new();
    for row in &found {
        groups.entry(rows::user_id(row, "membership", "user_id")?).or_default().push(membership(row)?);
    }
    for user in &mut users {
        user.groups = groups.remove(&user.id).unwrap_or_default();
    }
    Ok(users)
}

pub(super) async fn active_members(pool: &SqlitePool, group: &str) -> Result<Vec<UserId>, StoreError> {
    let select = sqlx::query(
        "SELECT DISTINCT users.id FROM users JOIN user_groups ON user_groups.user_id = users.id \
         WHERE users.active = 1 AND user_groups.group_name = $1 ORDER BY users.id",
    );
    let found = select.bind(group).fetch_all(pool).await.map_err(failed("list the members of a group"))?;
    found.iter().map(|row| rows::user_id(row, "user", "id")).collect()
}

pub(super) async fn groups(pool: &SqlitePool, after: Option<&str>, limit: u32) -> Result<Vec<String>, StoreError> {
    let select = sqlx::query("SELECT name FROM known_groups WHERE ($1 IS NULL OR name > $1) ORDER BY name LIMIT $2");
    let found = select.bind(after).bind(i64::from(limit)).fetch_all(pool).await.map_err(failed("list groups"))?;
    found.iter().map(|row| column(row, "group", "name")).collect()
}

pub(super) async fn is_group_known(pool: &SqlitePool, name: &str) -> Result<bool, StoreError> {
    let select = sqlx::query("SELECT name FROM known_groups WHERE name = $1").bind(name);
    Ok(select.fetch_optional(pool).await.map_err(failed("look up a group"))?.is_some())
}

pub(super) fn user_row(row: &SqliteRow) -> Result<UserRecord, StoreError> {
    const WHAT: &str = "user";
    Ok(UserRecord {
        id: rows::user_id(row, WHAT, "id")?,
        issuer: column(row, WHAT, "issuer")?,
        subject: column(row, WHAT, "subject")?,
        name: column(row, WHAT, "name")?,
        active: column::<i64, _>(row, WHAT, "active")? != 0,
        created_at_us: column(row, WHAT, "created_at_us")?,
        groups: Vec::new(),
        token_epoch: rows::count(row, WHAT, "token_epoch")?,
        groups_at_us: column(row, WHAT, "groups_at_us")?,
    })
}

pub(super) fn membership(row: &SqliteRow) -> Result<Membership, StoreError> {
    let source: &str = column(row, "membership", "source")?;
    let source =
        if source == MembershipSource::Local.as_str() { MembershipSource::Local } else { MembershipSource::Federated };
    Ok(Membership { group: column(row, "membership", "group_name")?, source })
}
