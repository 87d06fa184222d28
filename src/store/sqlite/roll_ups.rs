//! Roll-ups: sums by minute, hour and day (UTC) of admission, kept in the transaction that writes the rows they sum up.

use std::collections::BTreeMap;

use sqlx::{QueryBuilder, SqliteConnection};
use uuid::Uuid;

use super::journal::chunks;
use super::rows::to_i64;
use crate::governance::ports::RefusalCount;
use crate::governance::records::{KeyId, LedgerRecord, Usage, UserId};
use crate::governance::usage::{BucketLength, MINUTE_US};

const BUCKETS: [(BucketLength, i64); 3] =
    [(BucketLength::Minute, MINUTE_US), (BucketLength::Hour, 60 * MINUTE_US), (BucketLength::Day, 24 * 60 * MINUTE_US)];

/// What one roll-up is the sum of.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Slot<'a> {
    bucket: &'static str,
    start_us: i64,
    user: UserId,
    key: &'a str,
    tier: &'a str,
    model: &'a str,
    attribution: Uuid,
}

#[derive(Debug, Default)]
struct Sums<'a> {
    user_name: &'a str,
    requests: u64,
    failures: u64,
    usage: Usage,
    cost_nano_usd: u64,
    refusals: u64,
}

/// Adds ledger rows and refusals to their roll-ups, and refusals to the table that names the limits.
pub(super) async fn write(
    connection: &mut SqliteConnection,
    rows: impl Iterator<Item = &LedgerRecord>,
    refusals: &[RefusalCount],
) -> Result<(), sqlx::Error> {
    let mut sums: BTreeMap<Slot<'_>, Sums<'_>> = BTreeMap::new();
    for row in rows {
        for (bucket, length_us) in BUCKETS {
            let sum = sums.entry(slot_of_row(row, bucket.as_str(), length_us)).or_default();
            sum.add_row(row);
        }
    }
    for count in refusals {
        for (bucket, length_us) in BUCKETS {
            let sum = sums.entry(slot_of_refusal(count, bucket.as_str(), length_us)).or_default();
            sum.user_name = &count.user_name;
            sum.refusals += count.refusals;
        }
    }
    let sums: Vec<_> = sums.into_iter().collect();
    for chunk in chunks(&sums) {
        add(connection, chunk).await?;
    }
    for chunk in chunks(refusals) {
        name_refusals(connection, chunk).await?;
    }
    Ok(())
}

fn slot_of_row<'a>(row: &'a LedgerRecord, bucket: &'static str, length_us: i64) -> Slot<'a> {
    let request = &row.request;
    Slot {
        bucket,
        start_us: request.admitted_at_us.div_euclid(length_us) * length_us,
        user: request.user,
        key: request.key.as_ref().map_or("", KeyId::as_str),
        tier: &request.tier,
        model: &request.model,
        attribution: request.attribution.id,
    }
}

fn slot_of_refusal<'a>(count: &'a RefusalCount, bucket: &'static str, length_us: i64) -> Slot<'a> {
    Slot {
        bucket,
        start_us: count.start_us.div_euclid(length_us) * length_us,
        user: count.user,
        key: count.key.as_ref().map_or("", KeyId::as_str),
        tier: &count.tier,
        model: &count.model,
        attribution: count.attribution.id,
    }
}

impl<'a> Sums<'a> {
    fn add_row(&mut self, row: &'a LedgerRecord) {
        self.user_name = &row.request.user_name;
        if row.status.is_charged() {
            self.requests += 1;
        } else {
            self.failures += 1;
        }
        self.usage.prompt_tokens += row.usage.prompt_tokens;
        self.usage.cached_tokens += row.usage.cached_tokens;
        self.usage.completion_tokens += row.usage.completion_tokens;
        self.cost_nano_usd += row.cost_nano_usd;
    }
}

async fn add(connection: &mut SqliteConnection, sums: &[(Slot<'_>, Sums<'_>)]) -> Result<(), sqlx::Error> {
    let mut query = QueryBuilder::new(
        "INSERT INTO usage_rollups (bucket, start_us, user_id, user_name, key_id, tier, model, attribution_id, requests, \
         failures, prompt_tokens, cached_tokens, completion_tokens, cost_nano_usd, refusals) ",
    );
    query.push_values(sums, |mut values, (slot, sum)| {
        values
            .push_bind(slot.bucket)
            .push_bind(slot.start_us)
            .push_bind(slot.user.to_string())
            .push_bind(sum.user_name.to_owned())
            .push_bind(slot.key.to_owned())
            .push_bind(slot.tier.to_owned())
            .push_bind(slot.model.to_owned())
            .push_bind(slot.attribution.to_string())
            .push_bind(to_i64(sum.requests))
            .push_bind(to_i64(sum.failures))
            .push_bind(to_i64(sum.usage.prompt_tokens))
            .push_bind(to_i64(sum.usage.cached_tokens))
            .push_bind(to_i64(sum.usage.completion_tokens))
            .push_bind(to_i64(sum.cost_nano_usd))
            .push_bind(to_i64(sum.refusals));
    });
    query.push(
        " ON CONFLICT (bucket, start_us, user_id, key_id, tier, model, attribution_id) DO UPDATE SET \
         user_name = excluded.user_name, requests = usage_rollups.requests + excluded.requests, \
         failures = usage_rollups.failures + excluded.failures, \
         prompt_tokens = usage_rollups.prompt_tokens + excluded.prompt_tokens, \
         cached_tokens = usage_rollups.cached_tokens + excluded.cached_tokens, \
         completion_tokens = usage_rollups.completion_tokens + excluded.completion_tokens, \
         cost_nano_usd = usage_rollups.cost_nano_usd + excluded.cost_nano_usd, \
         refusals = usage_rollups.refusals + excluded.refusals",
    );
    query.build().execute(connection).await.map(drop)
}

async fn name_refusals(connection: &mut SqliteConnection, counts: &[RefusalCount]) -> Result<(), sqlx::Error> {
    // One by one: a statement must not meet the same row twice, and there are few.
    for count in counts {
        sqlx::query(
            "INSERT INTO refusals (start_us, user_id, key_id, tier, model, limit_name, reason, refusals) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
             ON CONFLICT (start_us, user_id, key_id, tier, model, limit_name) DO UPDATE SET \
             refusals = refusals.refusals + excluded.refusals",
        )
        .bind(count.start_us)
        .bind(count.user.to_string())
        .bind(count.key.as_ref().map_or("", KeyId::as_str))
        .bind(&count.tier)
        .bind(&count.model)
        .bind(&*count.limit)
        .bind(&count.reason)
        .bind(to_i64(count.refusals))
        .execute(&mut *connection)
        .await?;
    }
    Ok(())
}
