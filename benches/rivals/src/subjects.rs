//! The four limiters behind one face: admit before, settle after.

use std::collections::HashMap;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::FutureExt;
use governor::{DefaultKeyedRateLimiter, Quota, RateLimiter};
use limitador::limit::{Context, Limit, Namespace};
use limitador::reservation::ReservationId;
use millgate::governance::ports::{Charge, Counters, Need, Reserved};
use millgate::governance::{SystemClock, Usage};
use millgate::store::MemoryCounters;
use uuid::Uuid;

use crate::decision::Decider;
use crate::stage::{self, Stage};

/// The limit of the load: so many tokens...
pub const LIMIT_TOKENS: u32 = 20_000;
/// ... in such a window.
pub const WINDOW: Duration = Duration::from_secs(2);
/// The limit in our words.
const LIMIT: &str = "20000 tokens / 2s";
/// Windows of the six limits of the decisions, in seconds: a minute, an hour, a day, a month and two more.
const WINDOWS_S: [u64; 6] = [60, 3600, 86_400, 2_592_000, 120, 7200];
const ROOMY: u32 = 4_000_000_000;
/// The user everybody asks for.
const USER: u64 = 7;

/// Which limiter.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ours: reserve the maximum, settle exactly. With authentication.
    Millgate,
    /// `limitador` as a gateway uses it for tokens: check before, add what was used after.
    LimitadorClassic,
    /// `limitador` 0.14's reservations: hold the maximum, commit what was used.
    LimitadorReserve,
    /// `governor`: a cell before, the rest after.
    Governor,
}

impl Kind {
    /// All of them, in the order of the table.
    pub const ALL: [Self; 4] = [Self::Millgate, Self::LimitadorClassic, Self::LimitadorReserve, Self::Governor];

    /// Its line in the table.
    pub fn name(self) -> &'static str {
        match self {
            Self::Millgate => "millgate (authenticate + reserve)",
            Self::LimitadorClassic => "limitador 0.14, check then update",
            Self::LimitadorReserve => "limitador 0.14, reserve then commit",
            Self::Governor => "governor 0.10, check then charge",
        }
    }
}

/// A limiter, with many limits or with the one of the load.
pub enum Subject {
    Millgate { stage: Option<Arc<Stage>>, counters: Arc<MemoryCounters>, charges: Arc<[Charge]> },
    Limitador { limiter: limitador::RateLimiter, namespace: Namespace, is_reserving: bool },
    Governor(Vec<DefaultKeyedRateLimiter<u64>>),
}

/// An admitted request.
pub enum Ticket {
    Ours(Uuid),
    Reserved(Option<ReservationId>),
    Nothing,
}

impl Subject {
    /// Six limits that never refuse.
    pub fn roomy(kind: Kind, stage: &Arc<Stage>) -> Self {
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970").as_micros() as i64;
        let limits = WINDOWS_S.map(|seconds| (ROOMY, Duration::from_secs(seconds)));
        Self::new(kind, Some(stage), stage::charges(&stage::LIMITS, USER.into(), now_us), &limits)
    }

    /// The one limit of the load.
    pub fn limited(kind: Kind) -> Self {
        Self::new(kind, None, stage::charges(&[LIMIT], USER.into(), 0), &[(LIMIT_TOKENS, WINDOW)])
    }

    fn new(kind: Kind, stage: Option<&Arc<Stage>>, charges: Arc<[Charge]>, limits: &[(u32, Duration)]) -> Self {
        match kind {
            Kind::Millgate => {
                let counters = Arc::new(MemoryCounters::new(Arc::new(SystemClock::new())));
                Self::Millgate { stage: stage.cloned(), counters, charges }
            }
            Kind::LimitadorClassic | Kind::LimitadorReserve => {
                let limiter = limitador::RateLimiter::new(10_000);
                for (amount, window) in limits {
                    let by_user = vec!["user".try_into().expect("an expression")];
                    limiter.add_limit(Limit::new("llm", (*amount).into(), window.as_secs(), vec![], by_user));
                }
                let is_reserving = kind == Kind::LimitadorReserve;
                Self::Limitador { limiter, namespace: "llm".into(), is_reserving }
            }
            Kind::Governor => Self::Governor(
                limits
                    .iter()
                    .map(|(amount, window)| {
                        let burst = NonZeroU32::new(*amount).expect("above zero");
                        // A window shorter than a nanosecond a token cannot be said in a period: take its nearest.
                        let period = (*window / *amount).max(Duration::from_nanos(1));
                        let quota = Quota::with_period(period).expect("above zero").allow_burst(burst);
                        RateLimiter::keyed(quota)
                    })
                    .collect(),
            ),
        }
    }

    /// Decides about a request of 100 prompt tokens and at most 200 more.
    pub fn admit(&self, context: &Context<'_>) -> Option<Ticket> {
        match self {
            Self::Millgate { counters, charges, .. } => {
                let id = Uuid::now_v7();
                let need = Need { ..stage::NEED };
                let answer = counters.reserve(id, charges, need).now_or_never().expect("in memory").expect("an answer");
                matches!(answer, Reserved::Granted { .. }).then_some(Ticket::Ours(id))
            }
            Self::Limitador { limiter, namespace, is_reserving: true } => {
                let answer = limiter.reserve(namespace, context, 300, None).expect("an answer");
                (!answer.limited).then_some(Ticket::Reserved(answer.reservation_id))
            }
            Self::Limitador { limiter, namespace, is_reserving: false } => {
                let answer = limiter.is_rate_limited(namespace, context, 1).expect("an answer");
                (!answer.limited).then_some(Ticket::Nothing)
            }
            Self::Governor(limiters) => {
                limiters.iter().all(|limiter| limiter.check_key(&USER).is_ok()).then_some(Ticket::Nothing)
            }
        }
    }

    /// Tells what it used in the end.
    pub fn settle(&self, context: &Context<'_>, ticket: Ticket, completion_tokens: u64) {
        let total = 100 + completion_tokens;
        match (self, ticket) {
            (Self::Millgate { counters, .. }, Ticket::Ours(id)) => {
                let used = Usage { prompt_tokens: 100, cached_tokens: 0, completion_tokens };
                counters.settle(id, used.into()).now_or_never().expect("in memory").expect("settled");
            }
            (Self::Limitador { limiter, namespace, .. }, Ticket::Reserved(id)) => {
                limiter.commit_reservation(namespace, context, id.as_ref(), total).expect("committed");
            }
            (Self::Limitador { limiter, namespace, .. }, _) => {
                limiter.update_counters(namespace, context, total).expect("updated");
            }
            (Self::Governor(limiters), _) => {
                let rest = NonZeroU32::new(u32::try_from(total - 1).expect("small")).expect("above zero");
                for limiter in limiters {
                    // What does not fit any more is not charged: there is no debt.
                    let _ = limiter.check_key_n(&USER, rest);
                }
            }
            (Self::Millgate { .. }, _) => unreachable!("our tickets are ours"),
        }
    }

    /// One thread that decides as this limiter.
    pub fn decider(self: Arc<Self>) -> Box<dyn Decider> {
        if let Self::Millgate { stage: Some(stage), counters, charges } = &*self {
            return Box::new(stage::InMemory::new(stage, counters, charges.clone()));
        }
        Box::new(Deciding { subject: self, open: None })
    }
}

/// Whose request it is, as the others are told: a server makes it for every request.
pub fn context() -> Context<'static> {
    HashMap::from([("user".to_owned(), USER.to_string())]).into()
}

struct Deciding {
    subject: Arc<Subject>,
    open: Option<Ticket>,
}

impl Decider for Deciding {
    fn decide(&mut self) {
        self.open = Some(self.subject.admit(&context()).expect("plenty left"));
    }

    fn finish(&mut self) {
        if let Some(ticket) = self.open.take() {
            self.subject.settle(&context(), ticket, 150);
        }
    }
}
