//! Counters and the oracle give equal answers and have equal states, whatever happens; and a small lie would be noticed.

use std::sync::Arc;

use async_trait::async_trait;
use millgate::governance::ports::{
    Bill, Charge, Count, CounterError, Counters, LimiterTotals, Need, Refusing, Reserved, Restored, Retry,
};
use millgate::governance::{Clock, ManualClock, Usage};
use millgate::store::MemoryCounters;
use uuid::Uuid;

use super::history::History;

/// Operations of one history: enough to fill limits, few enough to read a failure.
const HISTORY: u64 = 250;
/// Operations of a usual run; `MILLGATE_ORACLE_OPERATIONS=1000000` plays more.
const OPERATIONS: u64 = 10_000;

#[expect(clippy::disallowed_methods, reason = "a longer run is asked for from outside")]
fn operations() -> u64 {
    match std::env::var("MILLGATE_ORACLE_OPERATIONS") {
        Ok(text) => text.parse().expect("MILLGATE_ORACLE_OPERATIONS is a number"),
        Err(_) => OPERATIONS,
    }
}

/// Plays `operations` in histories of [`HISTORY`], each on new counters; tells the first difference with its seed.
async fn difference(make: impl Fn(Arc<ManualClock>) -> Box<dyn Counters>, operations: u64) -> Option<String> {
    for seed in 0..operations.div_ceil(HISTORY) {
        let clock = Arc::new(ManualClock::at(0));
        let counters = make(clock.clone());
        if let Err(what) = History::new(counters.as_ref(), &clock, seed).play(HISTORY).await {
            return Some(format!("seed {seed}, {what}"));
        }
    }
    None
}

#[tokio::test]
async fn memory_counters_and_the_oracle_agree_on_every_answer_and_every_state() {
    let found = difference(|clock| Box::new(MemoryCounters::new(clock)), operations()).await;
    assert!(found.is_none(), "{}", found.unwrap_or_default());
}

/// What the counters below get wrong.
#[derive(Clone, Copy)]
enum Lie {
    /// Waits are a microsecond short.
    ShortWait,
    /// One token more is granted than is left.
    Generous,
    /// What was not used is not given back.
    NoRefund,
    /// A repeated extension is charged again.
    ChargedTwice,
    /// What is held is told as used.
    HeldIsUsed,
}

/// The real counters with one lie told now and then.
struct Lying {
    inner: MemoryCounters,
    lie: Lie,
}

impl Lying {
    fn twist(&self, answer: Reserved) -> Reserved {
        match (answer, self.lie) {
            (Reserved::Refused { refusing, counts }, Lie::ShortWait) => {
                let short = |one: Refusing| match one.retry {
                    Retry::After(us) => Refusing { retry: Retry::After(us - 1), ..one },
                    _ => one,
                };
                Reserved::Refused { refusing: refusing.into_iter().map(short).collect(), counts }
            }
            (Reserved::Granted { at_us, completion_tokens: 17, counts }, Lie::Generous) => {
                Reserved::Granted { at_us, completion_tokens: 18, counts }
            }
            (answer, _) => answer,
        }
    }
}

#[async_trait]
impl Counters for Lying {
    async fn reserve(&self, id: Uuid, charges: &Arc<[Charge]>, need: Need) -> Result<Reserved, CounterError> {
        self.inner.reserve(id, charges, need).await.map(|answer| self.twist(answer))
    }

    async fn extend(&self, id: Uuid, sequence: u32, need: Need) -> Result<Reserved, CounterError> {
        let answer = self.inner.extend(id, sequence, need).await?;
        if matches!(self.lie, Lie::ChargedTwice) && need.completion_most == 60 {
            // Whether it fits or not: the point is that it is asked again.
            self.inner.extend(id, sequence + 1, need).await.ok();
        }
        Ok(self.twist(answer))
    }

    async fn settle(&self, id: Uuid, bill: Bill) -> Result<(), CounterError> {
        let lost = if matches!(self.lie, Lie::NoRefund) { 1 } else { 0 };
        let usage = Usage { completion_tokens: bill.usage.completion_tokens + lost, ..bill.usage };
        self.inner.settle(id, Bill { usage, ..bill }).await
    }

    async fn peek(&self, charges: &[Charge]) -> Result<Vec<Count>, CounterError> {
        let counts = self.inner.peek(charges).await?;
        if !matches!(self.lie, Lie::HeldIsUsed) {
            return Ok(counts);
        }
        let told = |count: Count| Count { used: count.used + count.held, held: 0, ..count };
        Ok(counts.into_iter().map(told).collect())
    }

    async fn probe(&self, charges: &[Charge], need: Need) -> Result<Reserved, CounterError> {
        self.inner.probe(charges, need).await
    }

    async fn restore(&self, rows: Vec<Restored>) -> Result<(), CounterError> {
        self.inner.restore(rows).await
    }

    async fn totals(&self) -> Result<LimiterTotals, CounterError> {
        self.inner.totals().await
    }

    fn blank(&self, clock: Arc<dyn Clock>) -> Arc<dyn Counters> {
        self.inner.blank(clock)
    }
}

#[tokio::test]
async fn the_oracle_notices_every_small_lie() {
    for lie in [Lie::ShortWait, Lie::Generous, Lie::NoRefund, Lie::ChargedTwice, Lie::HeldIsUsed] {
        let make = |clock: Arc<ManualClock>| -> Box<dyn Counters> {
            Box::new(Lying { inner: MemoryCounters::new(clock), lie })
        };
        assert!(difference(make, 10 * HISTORY).await.is_some(), "lie {} went unnoticed", lie as u8);
    }
}
