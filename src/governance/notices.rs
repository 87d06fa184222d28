//! Threshold notices: a share of a quota is used up, told once for each limit, subject, period and threshold, also over restarts.
//!
//! Here they are made and numbered; the store keeps the first of each id, and somebody else delivers them.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::governor::Core;
use super::limits::{AmountSpec, Limit, Mode, Window};
use super::policy::Plan;
use super::ports::{Charge, Count, JournalEntry, Subject};
use super::records::RequestRecord;

/// Ids kept in memory so that the store is not asked again; beyond it all are forgotten, and the store knows them.
const KNOWN_MAX: usize = 65_536;

/// Whether a notice was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoticeState {
    /// There was no receiver.
    Unsent,
    /// It waits for its next attempt.
    Pending,
    /// The receiver took it.
    Delivered,
    /// It was tried too often.
    Failed,
    /// Too many waited already.
    Dropped,
}

impl NoticeState {
    /// The word stored and shown.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Unsent => "unsent",
            Self::Pending => "pending",
            Self::Delivered => "delivered",
            Self::Failed => "failed",
            Self::Dropped => "dropped",
        }
    }
}

impl std::str::FromStr for NoticeState {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        [Self::Unsent, Self::Pending, Self::Delivered, Self::Failed, Self::Dropped]
            .into_iter()
            .find(|state| state.as_str() == text)
            .ok_or(())
    }
}

/// A threshold that was reached, with how its delivery stands.
#[derive(Debug, Clone, PartialEq)]
pub struct Notice {
    /// Made of limit, subject, period and threshold: the same again has the same id.
    pub id: Uuid,
    /// When it was noticed, microseconds since the Unix epoch.
    pub at_us: i64,
    /// What is told, JSON.
    pub body: Value,
    /// How its delivery stands.
    pub state: NoticeState,
    /// Attempts so far.
    pub attempts: u32,
    /// When the next one is due.
    pub next_attempt_us: i64,
    /// Why the last one failed.
    pub last_error: Option<String>,
}

/// How an attempt to deliver a notice ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoticeOutcome {
    /// Which.
    pub id: Uuid,
    /// How its delivery stands now.
    pub state: NoticeState,
    /// Attempts so far.
    pub attempts: u32,
    /// When the next one is due.
    pub next_attempt_us: i64,
    /// Why it failed.
    pub error: Option<String>,
}

/// What was noticed by this process already.
#[derive(Debug, Default)]
pub(super) struct Notices(Mutex<HashSet<Uuid>>);

impl Notices {
    fn is_new(&self, id: Uuid) -> bool {
        let mut known = self.lock();
        if known.len() >= KNOWN_MAX {
            known.clear();
        }
        known.insert(id)
    }

    fn forget(&self, id: Uuid) {
        self.lock().remove(&id);
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<Uuid>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Core {
    /// Looks at the quotas of a request that was just settled, and notes the thresholds they have reached. Nobody waits for it.
    pub(super) async fn notice(self: &Arc<Self>, plan: &Plan, request: &RequestRecord) {
        let thresholds = &self.config.notice_thresholds;
        if thresholds.is_empty() || !plan.has_quotas() {
            return;
        }
        // Counters that cannot be reached are looked at again after the next request.
        let Ok(counts) = self.counters.peek(&plan.charges).await else { return };
        let now_us = self.clock.now_us();
        for (limit, name, charge, count) in plan.quotas(&counts) {
            for threshold in thresholds.iter().copied().filter(|threshold| is_reached(count, limit.amount, *threshold))
            {
                let Some((id, period)) = identify(limit, charge, count, threshold, now_us) else { continue };
                if !self.notices.is_new(id) {
                    continue;
                }
                let body = describe(limit, name, request, count, threshold, period);
                let state = if self.config.has_notice_receiver { NoticeState::Pending } else { NoticeState::Unsent };
                let notice =
                    Notice { id, at_us: now_us, body, state, attempts: 0, next_attempt_us: now_us, last_error: None };
                let commit = self.records.submit(JournalEntry::Notice(notice));
                let core = self.clone();
                self.tasks.spawn(async move {
                    if commit.await.is_err() {
                        // Not on the disk: the next request notices it again.
                        core.notices.forget(id);
                    }
                });
            }
        }
    }
}

/// What is used for good has reached so many percent of the amount.
fn is_reached(count: Count, amount: u64, threshold: u8) -> bool {
    u128::from(count.used) * 100 >= u128::from(amount) * u128::from(threshold)
}

/// The id of a notice and the period it is about; a sliding window of money counts as stretches of its own length.
fn identify(limit: &Limit, charge: &Charge, count: Count, threshold: u8, now_us: i64) -> Option<(Uuid, (i64, i64))> {
    let period = match (&limit.window, charge.bounds) {
        (Window::Calendar(..), Some(bounds)) => bounds.at(now_us),
        (Window::Sliding(rate), _) => {
            let length_us = rate.length_us();
            let start_us = now_us.div_euclid(length_us) * length_us;
            (start_us, start_us + length_us)
        }
        _ => return None,
    };
    debug_assert!(count.used > 0, "thresholds begin at one percent");
    let subject = match &charge.key.subject {
        Subject::User(user) => format!("user {user}"),
        Subject::Key(key) => format!("key {key}"),
        Subject::Tier(tier) => format!("tier {tier}"),
    };
    let mut id = [0; 16];
    id.copy_from_slice(&Sha256::digest(format!("{subject}\n{limit}\n{}\n{threshold}", period.0))[..16]);
    Some((uuid::Builder::from_custom_bytes(id).into_uuid(), period))
}

fn describe(
    limit: &Limit,
    name: &str,
    request: &RequestRecord,
    count: Count,
    threshold: u8,
    period: (i64, i64),
) -> Value {
    let moment = |us: i64| jiff::Timestamp::from_microsecond(us).map(|at| at.to_string()).unwrap_or_default();
    json!({
        "type": "quota.threshold",
        "limit": name,
        "resource": limit.resource,
        "scope": limit.scope,
        "mode": limit.mode,
        "user": request.user_name,
        "user_id": request.user.to_string(),
        "key": request.key.as_ref().map(ToString::to_string),
        "tier": request.tier,
        "model": limit.model.as_deref(),
        "threshold": threshold,
        "used": AmountSpec::of(limit.resource, count.used),
        "amount": AmountSpec::of(limit.resource, limit.amount),
        "period_start": moment(period.0),
        "period_end": moment(period.1),
    })
}

/// True for limits whose thresholds are noticed: calendar periods, and money in any window; what is only metered is not.
pub(super) fn is_quota(limit: &Limit) -> bool {
    limit.mode != Mode::Shadow && limit.is_quota()
}
