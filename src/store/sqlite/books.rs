//! Roll-ups held against the rows they sum up, and the sum of everything.

use sqlx::SqlitePool;
use sqlx::sqlite::SqliteRow;

use super::rows::{self, column, failed};
use crate::governance::ports::{RollUpDifference, StoreError, Sums};
use crate::governance::usage::{BucketLength, MINUTE_US};

const READ: &str = "check the roll-ups";
const WHAT: &str = "roll-up";
const DAY_US: i64 = 24 * 60 * MINUTE_US;
const BUCKETS: [(BucketLength, i64); 3] =
    [(BucketLength::Minute, MINUTE_US), (BucketLength::Hour, 60 * MINUTE_US), (BucketLength::Day, DAY_US)];
/// Differences told of each length.
const MOST: i64 = 100;

/// Rows and roll-ups of one stretch are written in one transaction: one statement always sees both or neither.
const DIFFERENCES: &str = "SELECT start_us, user_name, key_id, tier, model, \
     CAST(SUM(requests) AS BIGINT) AS requests, CAST(SUM(failures) AS BIGINT) AS failures, \
     CAST(SUM(prompt_tokens) AS BIGINT) AS prompt_tokens, CAST(SUM(cached_tokens) AS BIGINT) AS cached_tokens, \
     CAST(SUM(completion_tokens) AS BIGINT) AS completion_tokens, CAST(SUM(cost_nano_usd) AS BIGINT) AS cost_nano_usd \
     FROM ( \
     SELECT start_us, user_id, user_name, key_id, tier, model, attribution_id, requests, failures, prompt_tokens, \
     cached_tokens, completion_tokens, cost_nano_usd FROM usage_rollups \
     WHERE bucket = $1 AND start_us >= $3 AND start_us < $4 \
     UNION ALL \
     SELECT admitted_at_us / $2 * $2, user_id, user_name, COALESCE(key_id, ''), tier, model, attribution_id, \
     CASE WHEN status = 'failed' THEN 0 ELSE -1 END, CASE WHEN status = 'failed' THEN -1 ELSE 0 END, -prompt_tokens, \
     -cached_tokens, -completion_tokens, -cost_nano_usd FROM ledger WHERE admitted_at_us >= $3 AND admitted_at_us < $4 \
     ) AS both_sides GROUP BY start_us, user_id, key_id, tier, model, attribution_id \
     HAVING SUM(requests) <> 0 OR SUM(failures) <> 0 OR SUM(prompt_tokens) <> 0 OR SUM(cached_tokens) <> 0 \
     OR SUM(completion_tokens) <> 0 OR SUM(cost_nano_usd) <> 0 ORDER BY start_us, user_id LIMIT $5";

pub(super) async fn differences(
    pool: &SqlitePool,
    from_us: i64,
    to_us: i64,
) -> Result<Vec<RollUpDifference>, StoreError> {
    let first_us = from_us.div_euclid(DAY_US).saturating_mul(DAY_US);
    let end_us = to_us.saturating_sub(1).div_euclid(DAY_US).saturating_add(1).saturating_mul(DAY_US);
    let mut differences = Vec::new();
    for (bucket, length_us) in BUCKETS {
        let select = sqlx::query(DIFFERENCES).bind(bucket.as_str()).bind(length_us);
        let select = select.bind(first_us).bind(end_us).bind(MOST);
        for row in &select.fetch_all(pool).await.map_err(failed(READ))? {
            differences.push(difference(bucket.as_str(), row)?);
        }
    }
    Ok(differences)
}

fn difference(bucket: &'static str, row: &SqliteRow) -> Result<RollUpDifference, StoreError> {
    let word = |name: &str| column::<String, _>(row, WHAT, name);
    let number = |name: &str| column::<i64, _>(row, WHAT, name);
    Ok(RollUpDifference {
        bucket,
        start_us: number("start_us")?,
        subject: format!(
            "{} in `{}` for `{}` with key `{}`",
            word("user_name")?,
            word("tier")?,
            word("model")?,
            word("key_id")?
        ),
        requests: number("requests")?,
        failures: number("failures")?,
        prompt_tokens: number("prompt_tokens")?,
        cached_tokens: number("cached_tokens")?,
        completion_tokens: number("completion_tokens")?,
        cost_nano_usd: number("cost_nano_usd")?,
    })
}

pub(super) async fn totals(pool: &SqlitePool) -> Result<Sums, StoreError> {
    let select = sqlx::query(
        "SELECT CAST(COALESCE(SUM(requests), 0) AS BIGINT) AS requests, \
         CAST(COALESCE(SUM(prompt_tokens), 0) AS BIGINT) AS prompt_tokens, \
         CAST(COALESCE(SUM(completion_tokens), 0) AS BIGINT) AS completion_tokens, \
         CAST(COALESCE(SUM(cost_nano_usd), 0) AS BIGINT) AS cost_nano_usd FROM usage_rollups WHERE bucket = '1d'",
    );
    let row = select.fetch_one(pool).await.map_err(failed("add up the roll-ups"))?;
    Ok(Sums {
        requests: rows::count(&row, WHAT, "requests")?,
        prompt_tokens: rows::count(&row, WHAT, "prompt_tokens")?,
        completion_tokens: rows::count(&row, WHAT, "completion_tokens")?,
        cost_nano_usd: rows::count(&row, WHAT, "cost_nano_usd")?,
    })
}
