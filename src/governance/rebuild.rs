//! Before anything is admitted: requests the last process left open are charged, and the counters are filled from the ledger.

use std::collections::{HashMap, HashSet};

use super::calendar;
use super::clock::Clock;
use super::error::StartError;
use super::identity::LINEAGE_MAX;
use super::limits::{Limit, Resource, Scope, Window};
use super::permit::{Outcome, ledger_row};
use super::ports::{
    CounterKey, Counters, Extent, JournalEntry, KeyCursor, KeyFilter, PolicyTables, Records, Restored, StoreError,
    WindowKind,
};
use super::pricing::PriceList;
use super::records::{KeyId, LedgerRecord, RequestRecord, Status, UserId};

/// Charges every open reservation with what was journalled for it, exactly once.
pub(super) async fn recover(records: &dyn Records, prices: &PriceList, clock: &dyn Clock) -> Result<(), StartError> {
    let open = records.open_reservations().await?;
    if open.is_empty() {
        return Ok(());
    }
    tracing::warn!(requests = open.len(), "the last process ended with requests open; they are charged as journalled");
    let commits: Vec<_> = open
        .into_iter()
        .map(|row| {
            // Versions are never deleted: the price is the one of the admission.
            let price =
                row.request.price_version.and_then(|version| prices.version(version)).map(|record| record.price);
            let price = price.unwrap_or_default();
            ledger_row(
                row.request,
                &row.extents,
                Outcome { usage: row.progress, status: Status::Recovered, price },
                clock.now_us(),
            )
        })
        .map(|row| records.submit(JournalEntry::Close(row)))
        .collect();
    for commit in commits {
        commit.await?;
    }
    Ok(())
}

/// Fills windows from rows younger than their length and calendar counters from the sums of their period.
pub(super) async fn restore(
    records: &dyn Records,
    counters: &dyn Counters,
    tables: &PolicyTables,
    clock: &dyn Clock,
) -> Result<(), StartError> {
    let mut limits = Limits::new(tables);
    let now_us = clock.now_us();
    // Limits of single keys are few; all keys that have any are read once.
    limits.read_keys(records).await?;
    let rows = windows(records, &limits, now_us, clock.steady_us()).await?;
    counters.restore(rows).await?;
    let rows = calendars(records, &limits, now_us).await?;
    counters.restore(rows).await?;
    Ok(())
}

/// Every limit that could count a request, whoever's it is.
struct Limits<'a> {
    tables: &'a PolicyTables,
    of_keys: HashMap<KeyId, Vec<Limit>>,
    /// Which key made a key: what the one uses counts on the limits of the other.
    parents: HashMap<KeyId, KeyId>,
}

impl<'a> Limits<'a> {
    fn new(tables: &'a PolicyTables) -> Self {
        Self { tables, of_keys: HashMap::new(), parents: HashMap::new() }
    }

    async fn read_keys(&mut self, records: &dyn Records) -> Result<(), StoreError> {
        const PAGE: u32 = 1000;
        let mut after = None;
        loop {
            let filter = KeyFilter { after: after.take(), with_ephemeral: true, limit: PAGE, ..KeyFilter::default() };
            let page = records.keys(&filter).await?;
            let is_last = page.len() < PAGE as usize;
            after = page.last().map(|key| KeyCursor::at(key, filter.sort));
            for key in page {
                if let Some(parent) = key.parent {
                    self.parents.insert(key.id.clone(), parent);
                }
                if !key.limits.is_empty() {
                    self.of_keys.insert(key.id, key.limits);
                }
            }
            if is_last {
                return Ok(());
            }
        }
    }

    /// A key and those it comes from.
    fn lineage<'k>(&'k self, key: Option<&'k KeyId>) -> impl Iterator<Item = &'k KeyId> {
        std::iter::successors(key, |key| self.parents.get(*key)).take(LINEAGE_MAX + 1)
    }

    fn all(&self) -> impl Iterator<Item = &Limit> {
        let of_tiers = self.tables.tiers.iter().flat_map(|tier| &tier.limits);
        of_tiers.chain(self.of_keys.values().flatten())
    }

    /// The counters that requests of this kind are counted on, once each.
    ///
    /// Limits of other tiers count too: moving a user to another tier keeps their usage. A tier pool counts its own only.
    fn counters_of(&self, request: &RequestRecord) -> Vec<(CounterKey, &Limit)> {
        let mut seen = HashSet::new();
        let mut found = Vec::new();
        let own = |tier: &str, limit: &Limit| limit.scope != Scope::Tier || tier == request.tier;
        let of_tiers =
            self.tables.tiers.iter().flat_map(|tier| tier.limits.iter().filter(|limit| own(&tier.name, limit)));
        let of_keys = self.lineage(request.key.as_ref()).flat_map(|key| {
            let limits = self.of_keys.get(key).into_iter().flatten();
            limits.map(move |limit| (limit, Some(key)))
        });
        for (limit, key) in of_tiers.map(|limit| (limit, request.key.as_ref())).chain(of_keys) {
            if let Some(key) = CounterKey::of(limit, request, key)
                && seen.insert(key.clone())
            {
                found.push((key, limit));
            }
        }
        found
    }
}

async fn windows(
    records: &dyn Records,
    limits: &Limits<'_>,
    now_us: i64,
    steady_us: i64,
) -> Result<Vec<Restored>, StoreError> {
    let length = |limit: &Limit| match limit.window {
        Window::Sliding(rate) => Some(rate.length_us()),
        _ => None,
    };
    let Some(longest_us) = limits.all().filter_map(length).max() else {
        return Ok(Vec::new());
    };
    // A sixtieth more: the oldest sub-window counts until all of it has left.
    let since_us = now_us.saturating_sub(longest_us).saturating_sub(longest_us / 60 + 1);
    let mut restored = Vec::new();
    for row in records.ledger_since(since_us).await? {
        let shift_us = shift(&row);
        for (key, _) in limits.counters_of(&row.request) {
            if !matches!(key.window, WindowKind::Sliding(_)) {
                continue;
            }
            restored.extend(row.charged.iter().map(|extent| Restored {
                key: key.clone(),
                used: charged(extent, key.resource),
                at_us: extent.at_us.saturating_add(shift_us).min(steady_us),
                bounds: None,
            }));
        }
    }
    restored.retain(|one| one.used > 0);
    Ok(restored)
}

/// How far the steady clock of the process that charged a row had come apart from the wall clock, by which this process
/// counts on: the machine slept, or its clock was set. Less than a second is the clocks' own drift.
pub(super) fn shift(row: &LedgerRecord) -> i64 {
    const DRIFT_US: i64 = 1_000_000;
    let shift_us = row.charged.first().map_or(0, |first| row.request.admitted_at_us.saturating_sub(first.at_us));
    if shift_us.saturating_abs() <= DRIFT_US { 0 } else { shift_us }
}

async fn calendars(records: &dyn Records, limits: &Limits<'_>, now_us: i64) -> Result<Vec<Restored>, StoreError> {
    let mut kinds = HashMap::new();
    for limit in limits.all() {
        if let Window::Calendar(period, zone) = &limit.window {
            let kind = WindowKind::Calendar(*period, zone.clone());
            kinds.entry(kind).or_insert_with(|| calendar::bounds(*period, zone, now_us));
        }
    }
    let mut restored = Vec::new();
    for (kind, bounds) in kinds {
        for sum in records.charged_between(bounds.start_us, bounds.end_us).await? {
            let extent = Extent {
                at_us: bounds.start_us,
                requests: sum.requests,
                prompt_tokens: sum.usage.prompt_tokens,
                completion_tokens: sum.usage.completion_tokens,
                cost_nano_usd: sum.cost_nano_usd,
            };
            let request = subject(sum.user, sum.key, sum.tier, sum.model);
            for (key, _) in limits.counters_of(&request).into_iter().filter(|(key, _)| key.window == kind) {
                restored.push(Restored {
                    used: charged(&extent, key.resource),
                    key,
                    at_us: bounds.start_us,
                    bounds: Some(bounds),
                });
            }
        }
    }
    Ok(restored)
}

fn subject(user: UserId, key: Option<KeyId>, tier: String, model: String) -> RequestRecord {
    RequestRecord {
        id: uuid::Uuid::nil(),
        client_request_id: None,
        user,
        user_name: String::new(),
        key,
        tier,
        model,
        endpoint: String::new(),
        admitted_at_us: 0,
        price_version: None,
        attribution: std::sync::Arc::default(),
    }
}

/// What an extent charges on a counter of `resource`.
pub(super) fn charged(extent: &Extent, resource: Resource) -> u64 {
    match resource {
        Resource::Requests => extent.requests,
        Resource::Tokens => extent.prompt_tokens.saturating_add(extent.completion_tokens),
        Resource::PromptTokens => extent.prompt_tokens,
        Resource::CompletionTokens => extent.completion_tokens,
        Resource::Cost => extent.cost_nano_usd,
        // Nothing of an earlier process is in flight any more.
        Resource::Concurrent => 0,
    }
}
