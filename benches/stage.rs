//! A governor with one user on six limits, its ledger in a directory of its own: the stage of the governance benchmarks.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use futures::FutureExt;
use millgate::governance::calendar;
use millgate::governance::limits::Window;
use millgate::governance::ports::{Charge, CounterKey, Counters, Need, Reserved};
use millgate::governance::pricing::Price;
use millgate::governance::{
    Ask, CompletionCap, Config, Credential, DeclaredModel, Governor, Limit, NewKey, Permit, Principal, SystemClock,
    TierPatch, Usage, UserId,
};
use millgate::store::{Config as StoreConfig, MemoryCounters, SqliteRecords};
use tempfile::TempDir;
use uuid::Uuid;

use crate::decision::Decider;

/// Limits that never refuse: what is measured is the deciding.
pub(crate) const LIMITS: [&str; 6] = [
    "1000000000 requests / 1m",
    "1000000000000 tokens / 1m",
    "1000000000000 tokens / 1h",
    "1000000000000 tokens / day Europe/Paris",
    "1000000000000 completion_tokens / month",
    "1000000 concurrent",
];
/// Where requests come from.
pub(crate) const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// What each request uses.
pub(crate) const USED: Usage = Usage { prompt_tokens: 100, cached_tokens: 0, completion_tokens: 150 };
/// Tokens cost nothing.
const FREE: Price = Price { prompt_pico_usd: 0, cached_pico_usd: 0, completion_pico_usd: 0 };
/// What each request asks for.
pub(crate) const NEED: Need =
    Need { requests: 1, prompt_tokens: 100, sequences: 1, completion_least: 200, completion_most: 200, price: FREE };

/// Governance at work.
pub(crate) struct Stage {
    /// Decides.
    pub(crate) governor: Governor,
    /// The user's key.
    pub(crate) credential: Credential,
    /// The user.
    pub(crate) who: Principal,
    _dir: TempDir,
}

impl Stage {
    /// Everything set up; the data directory goes with the stage.
    pub(crate) async fn new() -> Self {
        let dir = TempDir::new().expect("a directory");
        let store = StoreConfig { data_dir: dir.path().to_owned(), ..StoreConfig::default() };
        let records = Arc::new(SqliteRecords::open(&store).await.expect("the store"));
        let clock = Arc::new(SystemClock::new());
        let counters = Arc::new(MemoryCounters::new(clock.clone()));
        let (governor, first) =
            Governor::start(records, counters, clock, Config::default()).await.expect("governance starts");
        let key = first.admin_key.expect("a first key");
        let admin = governor.authenticate(&Credential::parse(key.reveal()), HERE).await.expect("the key works");
        let limits = LIMITS.iter().map(|text| text.parse().expect("a limit")).collect();
        let patch = TierPatch { limits: Some(limits), ..TierPatch::default() };
        governor.update_tier(&admin, "enterprise", patch).await.expect("the tier changes");
        let model = DeclaredModel { name: "m".into(), display_name: None, source: "none".into(), published: None };
        governor.declare_models(&[model]).await.expect("a model");
        let issued =
            governor.create_key(&admin, NewKey { name: "bench".into(), ..NewKey::default() }).await.expect("a key");
        let credential = Credential::parse(issued.secret.reveal());
        let who = governor.authenticate(&credential, HERE).await.expect("the key works");
        Self { governor, credential, who, _dir: dir }
    }

    fn authenticate(&self) -> Principal {
        // A cached credential under a fresh policy is answered at once; anything else would be measured as a panic.
        self.governor.authenticate(&self.credential, HERE).now_or_never().expect("cached").expect("the key works")
    }
}

/// A request as the API makes it.
pub(crate) fn ask() -> Ask {
    Ask {
        request_id: Uuid::now_v7(),
        client_request_id: None,
        model: "m".into(),
        endpoint: "/v1/chat/completions",
        prompt_tokens: 100,
        sequences: 1,
        cap: CompletionCap::Explicit(200),
    }
}

/// What a request of `user` charges under these limits.
pub(crate) fn charges(limits: &[&str], user: u128, now_us: i64) -> Arc<[Charge]> {
    let charge = |text: &&str| {
        let limit: Limit = text.parse().expect("a limit");
        let bounds = match &limit.window {
            Window::Calendar(period, zone) => Some(calendar::bounds(*period, zone, now_us)),
            Window::Sliding(_) | Window::Now => None,
        };
        let key = CounterKey::for_subject(&limit, UserId(Uuid::from_u128(user)), None, "free").expect("a counter");
        Charge { key, hard: Some(limit.amount), bounds }
    };
    limits.iter().map(charge).collect()
}

/// Authentication and admission over six limits, in memory.
pub(crate) struct InMemory {
    stage: Arc<Stage>,
    counters: Arc<MemoryCounters>,
    charges: Arc<[Charge]>,
    open: Uuid,
}

impl InMemory {
    /// One thread's: it decides for the given user.
    pub(crate) fn new(stage: &Arc<Stage>, counters: &Arc<MemoryCounters>, charges: Arc<[Charge]>) -> Self {
        Self { stage: stage.clone(), counters: counters.clone(), charges, open: Uuid::nil() }
    }
}

impl Decider for InMemory {
    fn decide(&mut self) {
        std::hint::black_box(self.stage.authenticate());
        self.open = Uuid::now_v7();
        let answer = self.counters.reserve(self.open, &self.charges, NEED).now_or_never().expect("in memory");
        assert!(matches!(answer, Ok(Reserved::Granted { completion_tokens: 200, .. })));
    }

    fn finish(&mut self) {
        self.counters.settle(self.open, USED.into()).now_or_never().expect("in memory").expect("settled");
    }
}

/// The same with everything else an admission does: a permit, the journal, and a ledger row written behind it.
pub(crate) struct WithLedger {
    stage: Arc<Stage>,
    open: Option<Permit>,
}

impl WithLedger {
    /// One thread's.
    pub(crate) fn new(stage: &Arc<Stage>) -> Self {
        Self { stage: stage.clone(), open: None }
    }
}

impl Decider for WithLedger {
    fn decide(&mut self) {
        let who = self.stage.authenticate();
        let permit = self.stage.governor.admit(&who, ask()).now_or_never().expect("nothing waits for the disk");
        self.open = Some(permit.expect("admitted"));
    }

    fn finish(&mut self) {
        if let Some(permit) = self.open.take() {
            permit.progress(USED);
        }
    }
}
