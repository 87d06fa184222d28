//! Counts who was refused by which limit: added up in memory, written now and then, never a write for a refused request.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::error::Denied;
use super::policy::Principal;
use super::ports::{JournalEntry, Records};
use super::records::{KeyId, UserId};
use super::usage::{MINUTE_US, RefusalCount};

/// Different counts kept between two writes; beyond it refusals are only counted as lost.
const KEPT_MAX: usize = 16_384;

#[derive(Debug, PartialEq, Eq, Hash)]
struct Slot {
    start_us: i64,
    user: UserId,
    key: Option<KeyId>,
    tier: String,
    model: String,
    limit: Arc<str>,
}

/// What was refused since the last write.
#[derive(Debug, Default)]
pub(super) struct Refusals(Mutex<Unwritten>);

#[derive(Debug, Default)]
struct Unwritten {
    counts: HashMap<Slot, RefusalCount>,
    lost: u64,
}

impl Refusals {
    /// Counts one refusal in the minute of `now_us`; the model is not known when nothing was read yet.
    pub(super) fn note(&self, who: &Principal, model: Option<&str>, denied: &Denied, now_us: i64) {
        let count = RefusalCount {
            start_us: now_us.div_euclid(MINUTE_US) * MINUTE_US,
            user: who.user,
            user_name: who.name.to_string(),
            key: who.key.clone(),
            tier: who.policy.tier_name().unwrap_or_default().to_owned(),
            model: model.unwrap_or_default().to_owned(),
            attribution: who.attribution.clone(),
            limit: denied.limit.clone(),
            reason: denied.reason.to_owned(),
            refusals: 1,
        };
        self.lock().add(count);
    }

    /// Writes what has come together and returns when it, and everything an earlier call took, is on the disk; what cannot be
    /// written is kept.
    pub(super) async fn flush(&self, records: &dyn Records) {
        let (counts, commit) = {
            let mut unwritten = self.lock();
            let lost = std::mem::take(&mut unwritten.lost);
            if lost > 0 {
                tracing::warn!(
                    refusals = lost,
                    "too many different refusals at once; these are missing from usage reports"
                );
            }
            let counts: Vec<RefusalCount> = std::mem::take(&mut unwritten.counts).into_values().collect();
            // Under the lock, so that a later flush is queued behind this one.
            let commit = records.submit(JournalEntry::Refused(counts.clone()));
            (counts, commit)
        };
        if let Err(error) = commit.await
            && !counts.is_empty()
        {
            tracing::warn!(%error, "cannot write who was refused yet");
            let mut unwritten = self.lock();
            counts.into_iter().for_each(|count| unwritten.add(count));
        }
    }

    /// True when there is nothing to write.
    pub(super) fn is_empty(&self) -> bool {
        let unwritten = self.lock();
        unwritten.counts.is_empty() && unwritten.lost == 0
    }

    fn lock(&self) -> MutexGuard<'_, Unwritten> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Unwritten {
    fn add(&mut self, count: RefusalCount) {
        let slot = Slot {
            start_us: count.start_us,
            user: count.user,
            key: count.key.clone(),
            tier: count.tier.clone(),
            model: count.model.clone(),
            limit: count.limit.clone(),
        };
        if let Some(known) = self.counts.get_mut(&slot) {
            known.refusals += count.refusals;
        } else if self.counts.len() < KEPT_MAX {
            self.counts.insert(slot, count);
        } else {
            self.lost += count.refusals;
        }
    }
}
