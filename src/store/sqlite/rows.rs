//! Rows to records and back: ids, JSON columns, numbers.

use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;
use sqlx::sqlite::SqliteRow;
use sqlx::{ColumnIndex, Decode, Row, Sqlite, Type};
use uuid::Uuid;

use crate::governance::Limit;
use crate::governance::attribution::Attribution;
use crate::governance::ports::StoreError;
use crate::governance::pricing::{Price, PriceRecord};
use crate::governance::records::{
    KeyId, KeyRecord, LedgerRecord, ModelRecord, PreviousSecret, Published, RequestRecord, ReservationRecord, SetBy,
    TierOrigin, TierRecord, Usage, UserId,
};

/// Names the operation that SQLite refused.
pub(super) fn failed(operation: &'static str) -> impl Fn(sqlx::Error) -> StoreError {
    move |error| match &error {
        sqlx::Error::Database(inner) if inner.is_unique_violation() => StoreError::Exists { operation },
        _ => StoreError::Unavailable { operation, message: error.to_string().into() },
    }
}

pub(super) fn corrupt(what: &'static str, message: impl ToString) -> StoreError {
    StoreError::Corrupt { what, message: message.to_string().into() }
}

/// Reads one column.
pub(super) fn column<'r, T, I>(row: &'r SqliteRow, what: &'static str, name: I) -> Result<T, StoreError>
where
    T: Decode<'r, Sqlite> + Type<Sqlite>,
    I: ColumnIndex<SqliteRow>,
{
    row.try_get(name).map_err(|error| corrupt(what, error))
}

fn json<T: DeserializeOwned>(row: &SqliteRow, what: &'static str, name: &str) -> Result<T, StoreError> {
    let text: &str = column(row, what, name)?;
    serde_json::from_str(text).map_err(|error| corrupt(what, format!("`{name}`: {error}")))
}

/// Values that are always representable: strings, lists, numbers.
pub(super) fn to_json<T: Serialize + ?Sized>(value: &T) -> String {
    serde_json::to_string(value).expect("records hold nothing that JSON cannot say")
}

fn uuid(row: &SqliteRow, what: &'static str, name: &str) -> Result<Uuid, StoreError> {
    let text: &str = column(row, what, name)?;
    text.parse().map_err(|error| corrupt(what, format!("`{name}`: {error}")))
}

/// Counts fit: they are sums of tokens, which the edge bounds far below.
pub(super) fn to_i64(count: u64) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}

pub(super) fn count(row: &SqliteRow, what: &'static str, name: &str) -> Result<u64, StoreError> {
    let value: i64 = column(row, what, name)?;
    u64::try_from(value).map_err(|_| corrupt(what, format!("`{name}` is {value}")))
}

fn small(row: &SqliteRow, what: &'static str, name: &str) -> Result<u32, StoreError> {
    let value: i64 = column(row, what, name)?;
    u32::try_from(value).map_err(|_| corrupt(what, format!("`{name}` is {value}")))
}

fn key_id(row: &SqliteRow, what: &'static str, name: &str) -> Result<Option<KeyId>, StoreError> {
    let text: Option<&str> = column(row, what, name)?;
    Ok(text.map(KeyId::from))
}

pub(super) fn usage(row: &SqliteRow, what: &'static str) -> Result<Usage, StoreError> {
    Ok(Usage {
        prompt_tokens: count(row, what, "prompt_tokens")?,
        cached_tokens: count(row, what, "cached_tokens")?,
        completion_tokens: count(row, what, "completion_tokens")?,
    })
}

pub(super) fn user_id(row: &SqliteRow, what: &'static str, name: &str) -> Result<UserId, StoreError> {
    uuid(row, what, name).map(UserId)
}

pub(super) fn subject_key(row: &SqliteRow) -> Result<Option<KeyId>, StoreError> {
    key_id(row, "ledger row", "key_id")
}

const KEY: &str = "key";
const NO_DIGEST: &str = "a digest is not 64 hexadecimal digits";

pub(super) fn key(row: &SqliteRow) -> Result<KeyRecord, StoreError> {
    let digest: &str = column(row, KEY, "digest")?;
    let models: Option<&str> = column(row, KEY, "models")?;
    let models = models.map(serde_json::from_str).transpose().map_err(|error| corrupt(KEY, error))?;
    Ok(KeyRecord {
        id: KeyId::from(column::<&str, _>(row, KEY, "id")?),
        digest: from_hex(digest).ok_or_else(|| corrupt(KEY, NO_DIGEST))?,
        previous: previous(row)?,
        user: user_id(row, KEY, "user_id")?,
        name: column(row, KEY, "name")?,
        description: column(row, KEY, "description")?,
        labels: json(row, KEY, "labels")?,
        models,
        limits: json(row, KEY, "limits")?,
        terms_by: match column::<&str, _>(row, KEY, "terms_by")? {
            "administrator" => SetBy::Administrator,
            _ => SetBy::Owner,
        },
        parent: key_id(row, KEY, "parent")?,
        is_ephemeral: column::<i64, _>(row, KEY, "is_ephemeral")? != 0,
        is_bootstrap: column::<i64, _>(row, KEY, "is_bootstrap")? != 0,
        created_at_us: column(row, KEY, "created_at_us")?,
        expires_at_us: column(row, KEY, "expires_at_us")?,
        revoked_at_us: column(row, KEY, "revoked_at_us")?,
        last_used_at_us: column(row, KEY, "last_used_at_us")?,
    })
}

/// The limits of a key alone.
pub(super) fn limits(row: &SqliteRow) -> Result<Vec<Limit>, StoreError> {
    json(row, KEY, "limits")
}

fn previous(row: &SqliteRow) -> Result<Option<PreviousSecret>, StoreError> {
    let digest: Option<&str> = column(row, KEY, "previous_digest")?;
    let until_us: Option<i64> = column(row, KEY, "previous_until_us")?;
    let (Some(digest), Some(until_us)) = (digest, until_us) else { return Ok(None) };
    let digest = from_hex(digest).ok_or_else(|| corrupt(KEY, NO_DIGEST))?;
    Ok(Some(PreviousSecret { digest, until_us }))
}

const TIER: &str = "tier";

pub(super) fn tier(row: &SqliteRow) -> Result<TierRecord, StoreError> {
    let origin: &str = column(row, TIER, "origin")?;
    let origin = [TierOrigin::Local, TierOrigin::File, TierOrigin::ConfigMap]
        .into_iter()
        .find(|known| known.as_str() == origin)
        .ok_or_else(|| corrupt(TIER, format!("`origin` is `{origin}`")))?;
    Ok(TierRecord {
        name: column(row, TIER, "name")?,
        display_name: column(row, TIER, "display_name")?,
        description: column(row, TIER, "description")?,
        level: small(row, TIER, "level")?,
        groups: json(row, TIER, "member_groups")?,
        limits: json(row, TIER, "limits")?,
        weight: small(row, TIER, "weight")?,
        origin,
        position: column(row, TIER, "position")?,
    })
}

const MODEL: &str = "model";

pub(super) fn model(row: &SqliteRow) -> Result<ModelRecord, StoreError> {
    Ok(ModelRecord {
        name: column(row, MODEL, "name")?,
        display_name: column(row, MODEL, "display_name")?,
        source: column(row, MODEL, "source")?,
        published: json::<Published>(row, MODEL, "published")?,
        settings: column(row, MODEL, "settings")?,
        created_at_us: column(row, MODEL, "created_at_us")?,
    })
}

fn request(row: &SqliteRow, what: &'static str) -> Result<RequestRecord, StoreError> {
    Ok(RequestRecord {
        id: uuid(row, what, "id")?,
        client_request_id: column(row, what, "client_request_id")?,
        user: user_id(row, what, "user_id")?,
        user_name: column(row, what, "user_name")?,
        key: key_id(row, what, "key_id")?,
        tier: column(row, what, "tier")?,
        model: column(row, what, "model")?,
        endpoint: column(row, what, "endpoint")?,
        admitted_at_us: column(row, what, "admitted_at_us")?,
        price_version: column::<Option<i64>, _>(row, what, "price_version")?
            .and_then(|version| version.try_into().ok()),
        attribution: Arc::new(attribution(row, what)?.unwrap_or_default()),
    })
}

/// Groups and labels of a joined row; `None`: the row was written before they were kept.
pub(super) fn attribution(row: &SqliteRow, what: &'static str) -> Result<Option<Attribution>, StoreError> {
    if column::<Option<&str>, _>(row, what, "member_groups")?.is_none() {
        return Ok(None);
    }
    Ok(Some(Attribution::new(json(row, what, "member_groups")?, json(row, what, "labels")?)))
}

pub(super) fn price(row: &SqliteRow) -> Result<PriceRecord, StoreError> {
    const WHAT: &str = "price";
    Ok(PriceRecord {
        version: count(row, WHAT, "version")?,
        model: column(row, WHAT, "model")?,
        price: Price {
            prompt_pico_usd: count(row, WHAT, "prompt_pico_usd")?,
            cached_pico_usd: count(row, WHAT, "cached_pico_usd")?,
            completion_pico_usd: count(row, WHAT, "completion_pico_usd")?,
        },
        effective_from_us: column(row, WHAT, "effective_from_us")?,
        created_at_us: column(row, WHAT, "created_at_us")?,
    })
}

pub(super) fn reservation(row: &SqliteRow) -> Result<ReservationRecord, StoreError> {
    const WHAT: &str = "reservation";
    Ok(ReservationRecord {
        request: Arc::new(request(row, WHAT)?),
        extents: json(row, WHAT, "extents")?,
        progress: usage(row, WHAT)?,
    })
}

pub(super) fn ledger(row: &SqliteRow) -> Result<LedgerRecord, StoreError> {
    const WHAT: &str = "ledger row";
    let status: &str = column(row, WHAT, "status")?;
    Ok(LedgerRecord {
        request: Arc::new(request(row, WHAT)?),
        usage: usage(row, WHAT)?,
        cost_nano_usd: count(row, WHAT, "cost_nano_usd")?,
        status: status.parse().map_err(|()| corrupt(WHAT, format!("`status` is `{status}`")))?,
        settled_at_us: column(row, WHAT, "settled_at_us")?,
        charged: json(row, WHAT, "charged")?,
    })
}

pub(super) fn to_hex(bytes: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    let digits = bytes.iter().flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]]);
    digits.map(char::from).collect()
}

pub(super) fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    if text.len() != 64 || !text.is_ascii() {
        return None;
    }
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_survive_the_text_column() {
        let digest: [u8; 32] = std::array::from_fn(|i| u8::try_from(i * 7 % 256).expect("a byte"));
        assert_eq!(from_hex(&to_hex(&digest)), Some(digest));
        assert_eq!(from_hex("ab"), None);
        assert_eq!(from_hex(&"é".repeat(32)), None);
    }
}
