//! The replay itself: rows become events in the order of their charge times, and each is put to the counters.
//!
//! Held is what was charged in truth, from the charge to the settlement. In truth at least as much was held for at least as
//! long, so under the very limits that were in force nobody is refused who was admitted. Memory holds the requests that run
//! at one moment and a line for each user, however long the ledger is.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use uuid::Uuid;

use super::report::{Amounts, Report, Tally, Verdict};
use super::stage::Stage;
use crate::governance::calendar;
use crate::governance::identity::LINEAGE_MAX;
use crate::governance::limits::{Limit, Window};
use crate::governance::policy::{AUTHENTICATED, Plan, Policy};
use crate::governance::ports::{
    Bill, CounterError, Extent, Need, PolicyTables, Records, Reserved, Restored, StoreError, WindowKind,
};
use crate::governance::pricing::Price;
use crate::governance::rebuild::{charged, shift};
use crate::governance::records::{KeyId, KeyRecord, LedgerRecord, TierRecord, Usage, UserId};
use crate::governance::tier_files::TierPlan;
use crate::governance::tiers;

/// Rows read at a time.
const CHUNK: u32 = 1000;
/// Charge times and admission times come from two clocks; so far apart they may be without the order suffering.
const SLACK_US: i64 = 2_000_000;
/// An answer that began so long before the first row that counts is not looked for.
const LONGEST_ANSWER_US: i64 = 3_600_000_000;
/// Callers whose rules are kept; beyond it all are worked out again, so memory stays bounded.
const POLICIES_MAX: usize = 10_000;

/// Which rows of the ledger, by admission.
#[derive(Debug, Clone, Copy)]
pub struct RowRange {
    /// From here on.
    pub from_us: i64,
    /// Up to here, exclusive.
    pub to_us: i64,
    /// After this row of the page before.
    pub after: Option<(i64, Uuid)>,
    /// At most so many.
    pub limit: u32,
}

/// What a replay reads: a store, or a data directory beside a running server.
#[async_trait]
pub trait Past: Send + Sync {
    /// A key; `None` when it is forgotten.
    async fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError>;
    /// Every limit that a key has.
    async fn limits_of_keys(&self) -> Result<Vec<Limit>, StoreError>;
    /// Ledger rows by admission and id.
    async fn rows(&self, range: RowRange) -> Result<Vec<LedgerRecord>, StoreError>;
}

/// A store as the past.
pub struct Recorded<'a>(pub &'a dyn Records);

#[async_trait]
impl Past for Recorded<'_> {
    async fn key(&self, id: &KeyId) -> Result<Option<KeyRecord>, StoreError> {
        Ok(self.0.key(id).await?.map(|(key, _)| key))
    }

    async fn limits_of_keys(&self) -> Result<Vec<Limit>, StoreError> {
        self.0.limits_of_keys().await
    }

    async fn rows(&self, range: RowRange) -> Result<Vec<LedgerRecord>, StoreError> {
        self.0.ledger_between(range).await
    }
}

/// What to play.
#[derive(Debug, Clone)]
pub struct Question {
    /// Tiers, models and prices as they are.
    pub tables: PolicyTables,
    /// All tiers as they would be.
    pub tiers: Vec<TierRecord>,
    /// The new tiers are in force from here on; what was used before counts on their limits.
    pub from_us: i64,
    /// Up to here, exclusive.
    pub to_us: i64,
    /// Single requests told at most.
    pub cases: usize,
    /// Whose service accounts' namespaces belong to tiers.
    pub instance: Arc<str>,
}

/// The tiers as they are once a plan is carried out.
pub fn tiers_after(existing: &[TierRecord], plan: TierPlan) -> Vec<TierRecord> {
    let changed: Vec<TierRecord> = plan.create.into_iter().chain(plan.update).collect();
    let is_replaced = |tier: &&TierRecord| !changed.iter().chain(&plan.delete).any(|other| other.name == tier.name);
    existing
        .iter()
        .filter(is_replaced)
        .cloned()
        .collect::<Vec<_>>()
        .into_iter()
        .chain(changed.iter().cloned())
        .collect()
}

/// Why a replay could not be played.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The ledger cannot be read.
    #[error("cannot read the ledger")]
    Store(#[from] StoreError),
    /// The counters failed.
    #[error("cannot count")]
    Counters(#[from] CounterError),
}

/// Plays the ledger under other tiers.
///
/// # Errors
/// The ledger cannot be read.
///
/// # Cancel
/// Safe at any point: nothing is written anywhere.
pub async fn simulate(past: &dyn Past, stage: Stage, question: Question) -> Result<Report, ReplayError> {
    let reads_from_us = reads_from(&question, &past.limits_of_keys().await?);
    let mut replay = Replay::new(past, stage, question);
    let mut after = None;
    loop {
        let range = RowRange { from_us: reads_from_us, to_us: replay.to_us, after, limit: CHUNK };
        let rows = past.rows(range).await?;
        let is_last = rows.len() < CHUNK as usize;
        after = rows.last().map(|row| (row.request.admitted_at_us, row.request.id));
        for row in rows {
            replay.take(row).await?;
        }
        if is_last {
            replay.run_until(i64::MAX).await?;
            return Ok(replay.tally.finish());
        }
    }
}

/// The admission of the oldest row that may still count when the new tiers come into force.
fn reads_from(question: &Question, of_keys: &[Limit]) -> i64 {
    let limits = question.tiers.iter().flat_map(|tier| &tier.limits).chain(of_keys);
    let oldest = limits.map(|limit| match &limit.window {
        // A sixtieth more: the oldest sub-window counts until all of it has left.
        Window::Sliding(rate) => question.from_us.saturating_sub(rate.length_us() + rate.length_us() / 60 + 1),
        Window::Calendar(period, zone) => calendar::bounds(*period, zone, question.from_us).start_us,
        Window::Now => question.from_us,
    });
    oldest.min().unwrap_or(question.from_us).saturating_sub(LONGEST_ANSWER_US)
}

/// What happens next to a request; at one instant answers end before others begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    End,
    Charge,
}

/// A request between its first charge and its end.
struct Running {
    row: LedgerRecord,
    /// From the clock of its charges to the time line of the replay.
    shift_us: i64,
    next: usize,
    plan: Arc<Plan>,
    policy: Arc<Policy>,
    price: Price,
    is_slowed: bool,
}

type PolicyKey = (UserId, Option<KeyId>, Uuid, String);

struct Replay<'a> {
    past: &'a dyn Past,
    stage: Stage,
    /// As they were.
    before: Vec<TierRecord>,
    /// As they would be.
    tables: PolicyTables,
    instance: Arc<str>,
    from_us: i64,
    to_us: i64,
    policies: HashMap<PolicyKey, Arc<Policy>>,
    due: BinaryHeap<Reverse<(i64, Step, u64)>>,
    running: HashMap<u64, Running>,
    taken: u64,
    tally: Tally,
}

impl<'a> Replay<'a> {
    fn new(past: &'a dyn Past, stage: Stage, question: Question) -> Self {
        let Question { mut tables, tiers, from_us, to_us, cases, instance } = question;
        let before = std::mem::replace(&mut tables.tiers, tiers);
        Self {
            past,
            stage,
            before,
            tables,
            instance,
            from_us,
            to_us,
            policies: HashMap::new(),
            due: BinaryHeap::new(),
            running: HashMap::new(),
            taken: 0,
            tally: Tally::new(from_us, to_us, cases),
        }
    }

    /// Plays what comes surely before this row, and queues it. Rows come by admission.
    async fn take(&mut self, mut row: LedgerRecord) -> Result<(), ReplayError> {
        let is_before = row.request.admitted_at_us < self.from_us;
        if !row.status.is_charged() {
            self.tally.report.failed += u64::from(!is_before);
            return Ok(());
        }
        if row.charged.is_empty() {
            row.charged = vec![whole(&row)];
        }
        self.run_until(row.request.admitted_at_us.saturating_sub(SLACK_US)).await?;
        let shift_us = shift(&row);
        let policy = self.policy(&row).await?;
        let version = row.request.price_version.and_then(|version| self.tables.prices.version(version));
        let running = Running {
            shift_us,
            next: 0,
            plan: policy.plan(Some(&row.request.model), row.request.admitted_at_us),
            policy,
            price: version.map_or_else(Price::default, |record| record.price),
            is_slowed: false,
            row,
        };
        self.taken += 1;
        self.due.push(Reverse((running.charged_at(0), Step::Charge, self.taken)));
        self.running.insert(self.taken, running);
        Ok(())
    }

    /// The rules for the caller of a row under the new tiers.
    async fn policy(&mut self, row: &LedgerRecord) -> Result<Arc<Policy>, StoreError> {
        let request = &row.request;
        let key = (request.user, request.key.clone(), request.attribution.id, request.tier.clone());
        let is_unknown = request.attribution.groups.is_empty()
            && tiers::resolve(&self.before, &[AUTHENTICATED], &self.instance)
                .is_none_or(|tier| tier.name != request.tier);
        self.tally.report.unknown_groups += u64::from(is_unknown && request.admitted_at_us >= self.from_us);
        if let Some(policy) = self.policies.get(&key) {
            return Ok(policy.clone());
        }
        let mut groups = request.attribution.groups.clone();
        groups.push(AUTHENTICATED.to_owned());
        if is_unknown && let Some(tier) = self.tables.tiers.iter().find(|tier| tier.name == request.tier) {
            let leads_to = |group: &str| tiers::resolve(&self.tables.tiers, &[group], &self.instance);
            let leads_there = |group: &&String| leads_to(group) == Some(tier);
            groups.extend(tier.groups.iter().find(leads_there).cloned());
        }
        let lineage = lineage(self.past, request.key.clone()).await?;
        let policy = Arc::new(Policy::new(&self.tables, request.user, &groups, &lineage, &self.instance));
        if self.policies.len() >= POLICIES_MAX {
            self.policies.clear();
        }
        self.policies.insert(key, policy.clone());
        Ok(policy)
    }

    /// Plays everything due up to and with `until_us`.
    async fn run_until(&mut self, until_us: i64) -> Result<(), ReplayError> {
        while let Some(Reverse((at_us, step, number))) =
            self.due.peek().copied().filter(|Reverse(next)| next.0 <= until_us)
        {
            self.due.pop();
            let Some(running) = self.running.remove(&number) else { continue };
            match step {
                Step::End => self.stage.counters.settle(running.row.request.id, running.row.bill()).await?,
                Step::Charge if running.row.request.admitted_at_us < self.from_us => {
                    self.remember(running, at_us, number).await?;
                }
                Step::Charge => self.charge(running, at_us, number).await?,
            }
        }
        Ok(())
    }

    /// Counts one charge of before the new tiers, without a question.
    async fn remember(&mut self, mut one: Running, at_us: i64, number: u64) -> Result<(), ReplayError> {
        self.stage.clock.set(one.row.request.admitted_at_us, at_us);
        let extent = one.row.charged[one.next];
        let counted = one.plan.charges.iter().filter(|charge| charge.key.window != WindowKind::Now);
        let restored = counted.map(|charge| Restored {
            key: charge.key.clone(),
            used: charged(&extent, charge.key.resource),
            at_us,
            bounds: charge.bounds,
        });
        self.stage.counters.restore(restored.filter(|one| one.used > 0).collect()).await?;
        self.tally.report.counted_before += u64::from(one.next == 0);
        one.next += 1;
        if one.next < one.row.charged.len() {
            self.due.push(Reverse((one.charged_at(one.next).max(at_us), Step::Charge, number)));
            self.running.insert(number, one);
        }
        Ok(())
    }

    /// Puts one charge to the counters.
    async fn charge(&mut self, mut one: Running, at_us: i64, number: u64) -> Result<(), ReplayError> {
        let (id, index) = (one.row.request.id, one.next);
        if let Some(why) = self.shut_out(&one).filter(|_| index == 0) {
            let verdict = Verdict::Refused { limit: why, retry_after: None };
            self.tally.note(&one.row, one.policy.tier_name(), false, verdict);
            return Ok(());
        }
        let wall_us = if index == 0 { one.row.request.admitted_at_us } else { at_us };
        self.stage.clock.set(wall_us, at_us);
        let need = one.need();
        let answer = if index == 0 {
            self.stage.counters.reserve(id, &one.plan.charges, need).await?
        } else {
            let sequence = u32::try_from(index).unwrap_or(u32::MAX);
            self.stage.counters.extend(id, sequence, need).await?
        };
        let granted = match answer {
            Reserved::Granted { completion_tokens, counts, .. } => {
                one.is_slowed |= one.plan.is_over_soft(&counts);
                if completion_tokens == need.completion_most {
                    return self.proceed(one, at_us, number).await;
                }
                completion_tokens
            }
            Reserved::Refused { .. } => 0,
        };
        // What is missing of this block would be asked for next, and refused: that names the limit.
        let rest = Need { requests: 0, prompt_tokens: 0, sequences: 0, completion_least: 1, ..need };
        let asked = if granted > 0 { rest } else { need };
        let (limit, retry_after) = match self.stage.counters.probe(&one.plan.charges, asked).await? {
            Reserved::Refused { refusing, counts } => {
                let denied = one.plan.denied(&refusing, &counts, wall_us);
                (denied.limit, denied.retry_after)
            }
            // The period of the admission is over: the new one has room, but is not its own.
            Reserved::Granted { .. } => ("a calendar limit whose period has ended".into(), None),
        };
        if index == 0 && granted == 0 {
            let verdict = Verdict::Refused { limit, retry_after };
            self.tally.note(&one.row, one.policy.tier_name(), false, verdict);
            return Ok(());
        }
        let usage = one.served(granted);
        let cost_nano_usd = one.price.cost_nano_usd(usage).min(one.row.cost_nano_usd);
        let saved = Amounts {
            requests: 0,
            tokens: one.row.usage.total_tokens() - usage.total_tokens(),
            cost_nano_usd: one.row.cost_nano_usd - cost_nano_usd,
        };
        self.stage.counters.settle(id, Bill { requests: 1, usage, cost_nano_usd }).await?;
        let verdict = Verdict::Cut { limit, retry_after, at_us, saved };
        self.tally.note(&one.row, one.policy.tier_name(), one.is_slowed, verdict);
        Ok(())
    }

    /// After a granted charge: the next one, or the end.
    async fn proceed(&mut self, mut one: Running, at_us: i64, number: u64) -> Result<(), ReplayError> {
        one.next += 1;
        let next = if one.next < one.row.charged.len() {
            (one.charged_at(one.next).max(at_us), Step::Charge, number)
        } else {
            self.tally.note(&one.row, one.policy.tier_name(), one.is_slowed, Verdict::Served);
            (one.ends_at().max(at_us), Step::End, number)
        };
        self.due.push(Reverse(next));
        self.running.insert(number, one);
        Ok(())
    }

    /// Why somebody could not even ask: no tier, or a model that their new tier does not have and their old one has.
    fn shut_out(&self, one: &Running) -> Option<Arc<str>> {
        let request = &one.row.request;
        let Some(tier) = one.policy.tier_name() else {
            return Some("no tier holds any of their groups".into());
        };
        let model = self.tables.models.iter().find(|model| model.name == request.model)?;
        let is_lost = model.published.includes(&request.tier) && !model.published.includes(tier);
        is_lost.then(|| format!("model `{}` is not published to tier `{tier}`", model.name).into())
    }
}

impl Running {
    fn charged_at(&self, index: usize) -> i64 {
        self.row.charged[index].at_us.saturating_add(self.shift_us)
    }

    /// When it let go of what it held, on the time line of the replay.
    fn ends_at(&self) -> i64 {
        let ahead_us = self.row.request.admitted_at_us.saturating_sub(self.charged_at(0)).max(0);
        self.row.settled_at_us.saturating_sub(ahead_us)
    }

    /// What the next charge asks for: what it took in truth.
    fn need(&self) -> Need {
        let extent = &self.row.charged[self.next];
        // Only an answer without a maximum of its own is granted blocks; it takes what is left.
        let is_open = self.row.charged.len() > 1;
        Need {
            requests: extent.requests,
            prompt_tokens: extent.prompt_tokens,
            sequences: u64::from(self.next == 0),
            completion_least: if is_open { extent.completion_tokens.min(1) } else { extent.completion_tokens },
            completion_most: extent.completion_tokens,
            price: self.price,
        }
    }

    /// What is served of it when the next charge is granted only so many tokens.
    fn served(&self, granted: u64) -> Usage {
        let earlier: u64 = self.row.charged[..self.next].iter().map(|extent| extent.completion_tokens).sum();
        let completion_tokens = (earlier + granted).min(self.row.usage.completion_tokens);
        Usage { completion_tokens, ..self.row.usage }
    }
}

/// The charge of a row that does not say when its tokens were charged.
fn whole(row: &LedgerRecord) -> Extent {
    Extent {
        at_us: row.request.admitted_at_us,
        requests: 1,
        prompt_tokens: row.usage.prompt_tokens,
        completion_tokens: row.usage.completion_tokens,
        cost_nano_usd: row.cost_nano_usd,
    }
}

/// A key and the keys that made it, whose terms hold for it too; empty when it is forgotten.
async fn lineage(past: &dyn Past, key: Option<KeyId>) -> Result<Vec<KeyRecord>, StoreError> {
    let (mut lineage, mut next) = (Vec::new(), key);
    while lineage.len() <= LINEAGE_MAX
        && let Some(id) = next.take()
        && let Some(key) = past.key(&id).await?
    {
        next = key.parent.clone();
        lineage.push(key);
    }
    Ok(lineage)
}
