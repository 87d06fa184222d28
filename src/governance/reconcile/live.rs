//! The counts since the start of the process, read at a quiet moment and compared.

use std::time::Duration;

use uuid::Uuid;

use super::durable::{DurableReport, OnDisk, check_books};
use super::meter::{Reading, Sums};
use crate::governance::error::ServiceError;
use crate::governance::governor::{Core, Governor};
use crate::governance::policy::Principal;
use crate::governance::ports::{JournalEntry, LimiterTotals, StoreError};

/// Times a quiet moment is looked for; a settlement takes microseconds, so one is found at once.
const ATTEMPTS: u32 = 10_000;

/// Times an engine is waited for that has not told its totals yet.
const BEHIND: u32 = 500;
const STEP: Duration = Duration::from_millis(1);

/// Two figures that must be the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Comparison {
    /// Between what: `limiter`, `disk`, `engine`, `told`, each against the ledger rows of this process.
    pub between: &'static str,
    /// What it says.
    pub theirs: Sums,
    /// What the ledger says it must be.
    pub ours: Sums,
    /// Tokens by which they differ; 0 is the only good value.
    pub tokens_apart: u64,
    /// True when requests and money are the same, too.
    pub is_equal: bool,
}

impl Comparison {
    fn new(between: &'static str, theirs: Sums, ours: Sums) -> Self {
        Self { between, theirs, ours, tokens_apart: theirs.tokens_apart(ours), is_equal: theirs == ours }
    }
}

/// What was found since the start of the process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LiveReport {
    /// Each figure against the ledger rows of this process.
    pub comparisons: Vec<Comparison>,
    /// Requests that were being answered.
    pub open: u64,
    /// What the engines had made for them.
    pub in_flight: Sums,
    /// What they had reserved.
    pub held: Sums,
    /// Answers that were told something else than the ledger has: which, what they were told, what it has.
    pub wrong: Vec<(Uuid, Sums, Sums)>,
    /// How many of them there are.
    pub wrong_count: u64,
}

impl LiveReport {
    /// True when nothing differs.
    pub fn is_equal(&self) -> bool {
        self.wrong_count == 0 && self.comparisons.iter().all(|one| one.is_equal)
    }
}

/// What was read at one quiet moment.
struct Moment {
    meter: Reading,
    limiter: LimiterTotals,
    engine: Sums,
}

impl Governor {
    /// Compares what engines, limiter, disk and clients have seen since the start of the process; `engine` adds up the prompt
    /// and completion tokens of all engines.
    ///
    /// # Errors
    /// The store, or counters that cannot be reached.
    pub async fn reconcile(&self, engine: &(dyn Fn() -> (u64, u64) + Sync)) -> Result<LiveReport, ServiceError> {
        let core = &self.0;
        let moment = core.quiet_moment(engine).await?;
        // Everything counted so far is on the disk after this, and rows counted later may be.
        core.records.submit(JournalEntry::Refused(Vec::new())).await?;
        let on_disk = core.records.totals().await?.since(core.totals_at_start());
        let possible = core.meter.sums_since(&moment.meter).unwrap_or_else(|| vec![moment.meter.ledger]);
        let ours = possible.iter().copied().find(|sums| *sums == on_disk).unwrap_or(moment.meter.ledger);
        let Moment { meter, limiter, engine } = moment;
        let in_flight = engine.since(meter.reported);
        // What the engines made beyond what is settled belongs to open requests and lies within what these have reserved.
        let made = Sums { requests: 0, ..meter.reported };
        let expected = Sums {
            prompt_tokens: made.prompt_tokens + in_flight.prompt_tokens.min(limiter.held.prompt_tokens),
            completion_tokens: made.completion_tokens + in_flight.completion_tokens.min(limiter.held.completion_tokens),
            ..made
        };
        // A client that left during admission spent its request without a row, if it had come so far.
        let spent_alone = limiter.settled.requests.saturating_sub(meter.ledger.requests).min(meter.abandoned);
        let spent = Sums { requests: meter.ledger.requests + spent_alone, ..meter.ledger };
        Ok(LiveReport {
            comparisons: vec![
                Comparison::new("limiter", limiter.settled, spent),
                Comparison::new("disk", on_disk, ours),
                Comparison::new("engine", engine, expected),
                Comparison::new("told", meter.told, meter.told_ledger),
            ],
            open: limiter.open,
            in_flight: Sums { requests: limiter.open, ..in_flight },
            held: limiter.held,
            wrong: meter.wrong,
            wrong_count: meter.wrong_count,
        })
    }

    /// Checks what is on the disk about requests admitted in `[from_us, to_us)`.
    ///
    /// # Errors
    /// `Forbidden`, the store.
    pub async fn check_books(
        &self,
        actor: &Principal,
        from_us: i64,
        to_us: i64,
    ) -> Result<DurableReport, ServiceError> {
        let prices = self.prices(actor).await?;
        Ok(check_books(&OnDisk(self.0.records.as_ref()), &prices, from_us, to_us).await?)
    }
}

impl Core {
    /// Reads everything while no settlement is half done and none comes between.
    async fn quiet_moment(&self, engine: &(dyn Fn() -> (u64, u64) + Sync)) -> Result<Moment, ServiceError> {
        for attempt in 0..ATTEMPTS {
            let meter = self.meter.read();
            // Before the limiter: what an open request has made by now, it has reserved by then.
            let (prompt_tokens, completion_tokens) = engine();
            let limiter = self.counters.totals().await.map_err(|error| {
                ServiceError::Unavailable(StoreError::Unavailable {
                    operation: "read the counters",
                    message: error.message,
                })
            })?;
            let after = self.meter.read();
            if meter.settled == after.settled
                && meter.passing == 0
                && after.passing == 0
                && meter.abandoned == after.abandoned
            {
                let engine = Sums { prompt_tokens, completion_tokens, ..Sums::default() };
                // An engine tells its totals after a step, the ends of requests within it.
                let is_behind = Sums { requests: 0, ..meter.reported }.since(engine) != Sums::default();
                if is_behind && attempt < BEHIND {
                    tokio::time::sleep(STEP).await;
                    continue;
                }
                return Ok(Moment { meter, limiter, engine });
            }
            tokio::task::yield_now().await;
        }
        Err(ServiceError::Conflict("requests end so fast that no quiet moment was found: try again".into()))
    }
}
