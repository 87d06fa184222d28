//! Roll-ups: sums by minute, hour and day (UTC) of admission, kept in the transaction that writes the rows they sum up.

use std::collections::BTreeMap;

use rusqlite::{Transaction, params};
use uuid::Uuid;

use super::journal::Text;
use super::rows::to_i64;
use crate::governance::ports::RefusalCount;
use crate::governance::records::{KeyId, LedgerRecord, Usage, UserId};
use crate::governance::usage::{BucketLength, MINUTE_US};

const BUCKETS: [(BucketLength, i64); 3] =
    [(BucketLength::Minute, MINUTE_US), (BucketLength::Hour, 60 * MINUTE_US), (BucketLength::Day, 24 * 60 * MINUTE_US)];

/// What one roll-up is the sum of.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Slot<'a> {
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
pub(super) fn write<'a>(
    transaction: &Transaction<'_>,
    rows: impl Iterator<Item = &'a LedgerRecord>,
    refusals: &'a [RefusalCount],
) -> Result<(), rusqlite::Error> {
    let mut minutes: BTreeMap<Slot<'a>, Sums<'a>> = BTreeMap::new();
    for row in rows {
        minutes.entry(Slot::of_row(row)).or_default().add_row(row);
    }
    for count in refusals {
        let sum = minutes.entry(Slot::of_refusal(count)).or_default();
        sum.user_name = &count.user_name;
        sum.refusals += count.refusals;
    }
    for (bucket, length_us) in BUCKETS {
        let mut sums: BTreeMap<Slot<'a>, Sums<'a>> = BTreeMap::new();
        for (slot, sum) in &minutes {
            let start_us = slot.start_us.div_euclid(length_us) * length_us;
            sums.entry(Slot { start_us, ..*slot }).or_default().add(sum);
        }
        add(transaction, bucket.as_str(), &sums)?;
    }
    name_refusals(transaction, refusals)
}

impl<'a> Slot<'a> {
    /// The minute in which a row was admitted.
    fn of_row(row: &'a LedgerRecord) -> Self {
        let request = &row.request;
        Self {
            start_us: request.admitted_at_us.div_euclid(MINUTE_US) * MINUTE_US,
            user: request.user,
            key: request.key.as_ref().map_or("", KeyId::as_str),
            tier: &request.tier,
            model: &request.model,
            attribution: request.attribution.id,
        }
    }

    fn of_refusal(count: &'a RefusalCount) -> Self {
        Self {
            start_us: count.start_us.div_euclid(MINUTE_US) * MINUTE_US,
            user: count.user,
            key: count.key.as_ref().map_or("", KeyId::as_str),
            tier: &count.tier,
            model: &count.model,
            attribution: count.attribution.id,
        }
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

    fn add(&mut self, other: &Self) {
        self.user_name = other.user_name;
        self.requests += other.requests;
        self.failures += other.failures;
        self.usage.prompt_tokens += other.usage.prompt_tokens;
        self.usage.cached_tokens += other.usage.cached_tokens;
        self.usage.completion_tokens += other.usage.completion_tokens;
        self.cost_nano_usd += other.cost_nano_usd;
        self.refusals += other.refusals;
    }
}

fn add(
    transaction: &Transaction<'_>,
    bucket: &'static str,
    sums: &BTreeMap<Slot<'_>, Sums<'_>>,
) -> Result<(), rusqlite::Error> {
    let mut upsert = transaction.prepare_cached(
        "INSERT INTO usage_rollups (bucket, start_us, user_id, user_name, key_id, tier, model, attribution_id, requests, \
         failures, prompt_tokens, cached_tokens, completion_tokens, cost_nano_usd, refusals) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15) \
         ON CONFLICT (bucket, start_us, user_id, key_id, tier, model, attribution_id) DO UPDATE SET \
         user_name = excluded.user_name, requests = usage_rollups.requests + excluded.requests, \
         failures = usage_rollups.failures + excluded.failures, \
         prompt_tokens = usage_rollups.prompt_tokens + excluded.prompt_tokens, \
         cached_tokens = usage_rollups.cached_tokens + excluded.cached_tokens, \
         completion_tokens = usage_rollups.completion_tokens + excluded.completion_tokens, \
         cost_nano_usd = usage_rollups.cost_nano_usd + excluded.cost_nano_usd, \
         refusals = usage_rollups.refusals + excluded.refusals",
    )?;
    for (slot, sum) in sums {
        upsert.execute(params![
            bucket,
            slot.start_us,
            Text::of(slot.user.0).as_str(),
            sum.user_name,
            slot.key,
            slot.tier,
            slot.model,
            Text::of(slot.attribution).as_str(),
            to_i64(sum.requests),
            to_i64(sum.failures),
            to_i64(sum.usage.prompt_tokens),
            to_i64(sum.usage.cached_tokens),
            to_i64(sum.usage.completion_tokens),
            to_i64(sum.cost_nano_usd),
            to_i64(sum.refusals),
        ])?;
    }
    Ok(())
}

fn name_refusals(transaction: &Transaction<'_>, counts: &[RefusalCount]) -> Result<(), rusqlite::Error> {
    for count in counts {
        let mut upsert = transaction.prepare_cached(
            "INSERT INTO refusals (start_us, user_id, key_id, tier, model, limit_name, reason, refusals) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
             ON CONFLICT (start_us, user_id, key_id, tier, model, limit_name) DO UPDATE SET \
             refusals = refusals.refusals + excluded.refusals",
        )?;
        upsert.execute(params![
            count.start_us,
            Text::of(count.user.0).as_str(),
            count.key.as_ref().map_or("", KeyId::as_str),
            count.tier,
            count.model,
            count.limit,
            count.reason,
            to_i64(count.refusals),
        ])?;
    }
    Ok(())
}
