//! A permit: the right to generate so many tokens, settled exactly once with what was really used.
//!
//! Settling is a method that can be awaited; a permit that is dropped instead hands itself to the [`settler`](super::settler),
//! which shutdown joins. Either way exactly one ledger row is written.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use uuid::Uuid;

use super::error::{Denied, LimitStanding, Refusal};
use super::governor::Core;
use super::policy::{Plan, Principal};
use super::ports::{Commit, Extent, JournalEntry, Need, Records, Reserved, StoreError, Writing};
use super::pricing::Price;
use super::reconcile::Receipt;
use super::records::{Bill, LedgerRecord, RequestRecord, ReservationRecord, Status, Usage, spend};
use super::reservation::{self, CompletionCap};
use super::settler::Unsettled;

/// A request over a soft limit has this fraction of its tier's weight.
const SOFT_DIVISOR: u32 = 8;

/// What a request asks for.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Our own id (UUIDv7); the ledger row's.
    pub request_id: Uuid,
    /// The client's id: a label, never a key.
    pub client_request_id: Option<String>,
    /// For which model.
    pub model: String,
    /// Through which endpoint.
    pub endpoint: &'static str,
    /// Tokens of all prompts together.
    pub prompt_tokens: u64,
    /// Prompts x n.
    pub sequences: u64,
    /// How long an answer may get.
    pub cap: CompletionCap,
}

/// How the engine should treat the request; it learns neither key nor tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scheduling {
    /// Requests of one user share one flow.
    pub flow: u64,
    /// Share relative to other flows, in eighths of a tier's weight.
    pub weight: u32,
    /// Higher goes first.
    pub priority: u8,
    /// Separates cached prefixes of different users.
    pub cache_salt: [u8; 16],
}

/// The right to generate [`Permit::allowance`] completion tokens.
///
/// # Cancel
/// Dropping it settles with what was last reported, as [`Status::Aborted`].
#[must_use = "dropping a permit settles the request as aborted"]
pub struct Permit {
    core: Arc<Core>,
    /// `None` once settled.
    open: Option<Open>,
    plan: Arc<Plan>,
    scheduling: Scheduling,
    standing: Vec<LimitStanding>,
    reservation: Arc<Reservation>,
    progress: Mutex<Progress>,
}

struct Open {
    request: Arc<RequestRecord>,
    extents: Vec<Extent>,
    sequences: u64,
    /// Fixed at admission.
    price: Price,
    /// How it ends if it is dropped while settling.
    status: Status,
    /// True once its settlement has begun.
    is_settling: bool,
}

/// The reservation in the journal: written when somebody must know that it is, so that an answer that is settled before
/// needs its ledger row only.
struct Reservation {
    records: Arc<dyn Records>,
    stage: Mutex<Stage>,
}

enum Stage {
    /// Nobody has waited for it.
    Unwritten(ReservationRecord),
    /// It was given to the store.
    Submitted(Commit),
    /// The request is settled: its row says everything, and a reservation would outlive it.
    Over,
}

impl Reservation {
    /// Gives it to the store unless that was done.
    fn submit(&self) -> Commit {
        let mut stage = self.lock();
        if let Stage::Submitted(commit) = &*stage {
            return commit.clone();
        }
        let Stage::Unwritten(row) = std::mem::replace(&mut *stage, Stage::Over) else {
            return Writing::default().commit();
        };
        let commit = self.records.submit(JournalEntry::Open(row));
        *stage = Stage::Submitted(commit.clone());
        commit
    }

    /// From here on nothing of it is written.
    fn end(&self) {
        *self.lock() = Stage::Over;
    }

    fn lock(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Default)]
struct Progress {
    usage: Usage,
    journalled: u64,
}

impl std::fmt::Debug for Permit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Permit").field("allowance", &self.allowance()).finish_non_exhaustive()
    }
}

/// Gives a reservation back if admission is cancelled between charging and handing out the permit.
struct Abandoned<'a>(&'a Core, Option<Uuid>);

impl Drop for Abandoned<'_> {
    fn drop(&mut self) {
        if let Some(id) = self.1 {
            self.0.meter.begin();
            self.0.settler.enqueue(Unsettled::Abandoned(id));
        }
    }
}

impl Permit {
    pub(super) async fn admit(core: &Arc<Core>, who: &Principal, ask: Ask) -> Result<Self, Refusal> {
        let policy = &who.policy;
        let tier = policy.tier.as_ref().ok_or(Refusal::NoTier)?;
        if !policy.allows(&ask.model) {
            return Err(Refusal::ModelForbidden);
        }
        let now_us = core.clock.now_us();
        let plan = policy.plan(Some(&ask.model), now_us);
        let priced = policy.price(&ask.model, now_us);
        let price = priced.map_or_else(Price::default, |record| record.price);
        let tokens = reservation::admission(ask.prompt_tokens, ask.sequences, ask.cap, core.config.block_tokens);
        let need = Need { price, ..tokens };
        let mut abandoned = Abandoned(core, Some(ask.request_id));
        let answer = core.counters.reserve(ask.request_id, &plan.charges, need).await;
        let (at_us, completion_tokens, counts) = match answer {
            Ok(Reserved::Granted { at_us, completion_tokens, counts }) => (at_us, completion_tokens, counts),
            Ok(Reserved::Refused { refusing, counts }) => {
                abandoned.1 = None;
                let denied = plan.denied(&refusing, &counts, now_us);
                core.refusals.note(who, Some(&ask.model), &denied, now_us);
                return Err(Refusal::Denied(Box::new(denied)));
            }
            Err(error) => {
                tracing::error!(%error, "cannot admit a request");
                return Err(Refusal::Unavailable { retry_after: Duration::from_secs(1) });
            }
        };
        abandoned.1 = None;
        let request = Arc::new(RequestRecord {
            id: ask.request_id,
            client_request_id: ask.client_request_id,
            user: who.user,
            user_name: who.name.to_string(),
            key: who.key.clone(),
            tier: tier.name.clone(),
            model: ask.model,
            endpoint: ask.endpoint.to_owned(),
            admitted_at_us: now_us,
            price_version: priced.map(|record| record.version),
            attribution: who.attribution.clone(),
        });
        let extent = need.extent(at_us, completion_tokens);
        let row = ReservationRecord { request: request.clone(), extents: vec![extent], progress: Usage::default() };
        let stage = Mutex::new(Stage::Unwritten(row));
        let standing = plan.standing(&counts, now_us);
        let is_over_soft = standing.iter().any(LimitStanding::is_over_soft);
        Ok(Self {
            core: core.clone(),
            open: Some(Open {
                request,
                extents: vec![extent],
                sequences: ask.sequences,
                price,
                status: Status::Aborted,
                is_settling: false,
            }),
            scheduling: Scheduling {
                flow: flow_of(who),
                // In eighths, so that the lightest tier has one to lose, too; only the ratios count.
                weight: if is_over_soft { tier.weight } else { tier.weight * SOFT_DIVISOR },
                priority: policy.priority,
                cache_salt: who.cache_salt,
            },
            standing,
            plan,
            reservation: Arc::new(Reservation { records: core.records.clone(), stage }),
            progress: Mutex::default(),
        })
    }

    /// Completion tokens granted so far, over all sequences.
    pub fn allowance(&self) -> u64 {
        self.open.as_ref().map_or(0, |open| open.extents.iter().map(|extent| extent.completion_tokens).sum())
    }

    /// Asks for up to `want` more completion tokens and returns how many were granted: what every limit has left, at least
    /// one a sequence.
    ///
    /// # Errors
    /// [`Denied`] when a limit has less than that left; nothing is charged anywhere then.
    pub async fn extend(&mut self, want: u64) -> Result<u64, Denied> {
        let open = self.open.as_mut().expect("a permit is open until it is settled, and settling consumes it");
        let need = Need { price: open.price, ..reservation::extension(want, open.sequences) };
        let now_us = self.core.clock.now_us();
        let sequence = u32::try_from(open.extents.len()).unwrap_or(u32::MAX);
        match self.core.counters.extend(open.request.id, sequence, need).await {
            Ok(Reserved::Granted { at_us, completion_tokens, counts }) => {
                open.extents.push(need.extent(at_us, completion_tokens));
                drop(self.reservation.submit());
                // Nobody waits for this one: it tells recovery when the tokens were charged, not how many.
                drop(
                    self.core
                        .records
                        .submit(JournalEntry::Extend { id: open.request.id, extents: open.extents.clone() }),
                );
                self.standing = self.plan.standing(&counts, now_us);
                Ok(completion_tokens)
            }
            Ok(Reserved::Refused { refusing, counts }) => Err(self.plan.denied(&refusing, &counts, now_us)),
            Err(error) => {
                tracing::error!(%error, "cannot extend a request");
                Err(Plan::unreachable())
            }
        }
    }

    /// Waits until the reservation is on the disk, and has it written from the first poll on; await it before the first
    /// byte of content leaves.
    ///
    /// # Errors
    /// The store could not write it, and the request must end with an error; or the request is settled already.
    ///
    /// # Cancel
    /// Safe: what was begun goes on.
    pub fn durable(&self) -> impl Future<Output = Result<(), StoreError>> + use<> {
        let reservation = self.reservation.clone();
        async move { reservation.submit().await }
    }

    /// Reports what has been used so far, in all; journalled in the background, at most 64 tokens behind.
    pub fn progress(&self, usage: Usage) {
        let Some(open) = &self.open else { return };
        let mut progress = self.progress.lock().unwrap_or_else(PoisonError::into_inner);
        progress.usage = usage;
        if usage.total_tokens() >= progress.journalled.saturating_add(self.core.config.journal_every_tokens) {
            progress.journalled = usage.total_tokens();
            drop(self.reservation.submit());
            drop(self.core.records.submit(JournalEntry::Progress { id: open.request.id, usage }));
        }
    }

    /// Ends the request: gives back what was not used and returns when the ledger row is on the disk, with what it says.
    ///
    /// # Errors
    /// The row is not on the disk yet; the answer must end with an error. The row is still owed and will be written.
    ///
    /// # Cancel
    /// Safe at any point: the request is settled exactly once with these values.
    pub async fn settle(mut self, usage: Usage, status: Status) -> Result<Receipt, StoreError> {
        self.report(usage);
        self.reservation.end();
        let open = self.open.as_mut().expect("a permit is open until it is settled, and settling consumes it");
        open.status = status;
        open.is_settling = true;
        self.core.meter.begin();
        let (id, row) = (open.request.id, self.core.row(open, usage));
        if let Err(error) = self.core.counters.settle(id, row.bill()).await {
            // The settler, reached through drop, tries again; the row is written there as well.
            tracing::error!(%error, request.id = %id, "cannot settle a request yet");
            return Err(StoreError::Unavailable { operation: "settle a request", message: error.message });
        }
        let receipt = Receipt::new(id, row.usage, self.core.clone());
        let core = &self.core;
        let commit = core.meter.finish(row, usage, |row| core.records.submit(JournalEntry::Close(row)));
        if let Some(open) = self.open.take() {
            self.core.notice(&self.plan, &open.request).await;
        }
        commit.await.map(|()| receipt)
    }

    fn report(&self, usage: Usage) {
        self.progress.lock().unwrap_or_else(PoisonError::into_inner).usage = usage;
    }

    /// Where every limit stands that applies, for the headers of the answer.
    pub fn standing(&self) -> &[LimitStanding] {
        &self.standing
    }

    /// How the engine should treat it.
    pub fn scheduling(&self) -> Scheduling {
        self.scheduling
    }
}

impl Core {
    fn row(&self, open: &Open, usage: Usage) -> LedgerRecord {
        let outcome = Outcome { usage, status: open.status, price: open.price };
        ledger_row(open.request.clone(), &open.extents, outcome, self.clock.now_us())
    }
}

/// How a request ended, and what its tokens cost.
pub(super) struct Outcome {
    pub(super) usage: Usage,
    pub(super) status: Status,
    pub(super) price: Price,
}

/// The ledger row of a request: charged is what was used, nothing for a failed answer, never more than was reserved.
pub(super) fn ledger_row(
    request: Arc<RequestRecord>,
    extents: &[Extent],
    outcome: Outcome,
    now_us: i64,
) -> LedgerRecord {
    let Outcome { usage: reported, status, price } = outcome;
    let asked = if status.is_charged() { reported } else { Usage::default() };
    let prompt_tokens = asked.prompt_tokens.min(extents.iter().map(|extent| extent.prompt_tokens).sum());
    let completion_tokens = asked.completion_tokens.min(extents.iter().map(|extent| extent.completion_tokens).sum());
    if (prompt_tokens, completion_tokens) != (asked.prompt_tokens, asked.completion_tokens) {
        tracing::error!(request.id = %request.id, "a request used more than it was allowed; charged is what it was allowed");
    }
    let usage = Usage { prompt_tokens, completion_tokens, cached_tokens: asked.cached_tokens.min(prompt_tokens) };
    // INVARIANT: reservations are rounded up, so the cost never exceeds what the extents hold together.
    let cost_nano_usd = price.cost_nano_usd(usage);
    let bill = Bill { requests: u64::from(status.is_charged()), usage, cost_nano_usd };
    let charged = spend(extents, bill).filter(|extent| !extent.is_empty()).collect();
    LedgerRecord { request, usage, cost_nano_usd, status, settled_at_us: now_us, charged }
}

fn flow_of(who: &Principal) -> u64 {
    let (high, low) = who.user.0.as_u64_pair();
    high ^ low
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(open) = self.open.take() {
            self.reservation.end();
            let usage = self.progress.lock().unwrap_or_else(PoisonError::into_inner).usage;
            let row = Box::new(self.core.row(&open, usage));
            if !open.is_settling {
                self.core.meter.begin();
            }
            self.core.settler.enqueue(Unsettled::Row { row, reported: usage, plan: self.plan.clone() });
        }
    }
}
