//! The keys that sign short-lived tokens; their seeds are read here and written here and nowhere else.

use sqlx::sqlite::SqliteRow;
use sqlx::{SqliteConnection, SqlitePool};

use super::rows::{column, corrupt, failed, from_hex, to_hex};
use crate::governance::ports::StoreError;
use crate::governance::records::{SigningKeyRecord, SigningSeed};

pub(super) async fn all(pool: &SqlitePool) -> Result<Vec<SigningKeyRecord>, StoreError> {
    let select = sqlx::query("SELECT * FROM signing_keys ORDER BY created_at_us, id");
    let found = select.fetch_all(pool).await.map_err(failed("read the signing keys"))?;
    found.iter().map(signing_key).collect()
}

pub(super) async fn put(connection: &mut SqliteConnection, key: &SigningKeyRecord) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO signing_keys (id, public_key, seed, created_at_us, retired_at_us) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (id) DO UPDATE SET seed = excluded.seed, retired_at_us = excluded.retired_at_us",
    )
    .bind(&key.id)
    .bind(to_hex(&key.public))
    .bind(key.seed.as_ref().map(|seed| to_hex(seed.reveal())))
    .bind(key.created_at_us)
    .bind(key.retired_at_us)
    .execute(connection)
    .await
    .map(drop)
}

pub(super) async fn delete(connection: &mut SqliteConnection, id: &str) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM signing_keys WHERE id = $1").bind(id).execute(connection).await.map(drop)
}

pub(super) fn signing_key(row: &SqliteRow) -> Result<SigningKeyRecord, StoreError> {
    const WHAT: &str = "signing key";
    let bytes = |text: &str, name: &str| {
        from_hex(text).ok_or_else(|| corrupt(WHAT, format!("`{name}` is not 64 hexadecimal digits")))
    };
    let seed: Option<&str> = column(row, WHAT, "seed")?;
    Ok(SigningKeyRecord {
        id: column(row, WHAT, "id")?,
        public: bytes(column(row, WHAT, "public_key")?, "public_key")?,
        seed: seed.map(|seed| bytes(seed, "seed").map(SigningSeed::new)).transpose()?,
        created_at_us: column(row, WHAT, "created_at_us")?,
        retired_at_us: column(row, WHAT, "retired_at_us")?,
    })
}
