//! A governor over a real SQLite store and a clock that the test moves: the stage for the governance tests.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use millgate::governance::ports::{Records, UsageQuery};
use millgate::governance::{
    Ask, Clock, CompletionCap, Config, Credential, DeclaredModel, FirstStart, Governor, Limit, ManualClock, NewKey,
    NewTier, NewUser, Principal, Secret, TierPatch, Usage, UserId,
};
use millgate::store::{Config as StoreConfig, MemoryCounters, SqliteRecords};
use tempfile::TempDir;
use uuid::Uuid;

/// 2026-11-23 12:00:00 UTC, a Monday.
pub(crate) const NOON_US: i64 = 1_795_435_200_000_000;
pub(crate) const MINUTE_US: i64 = 60_000_000;
pub(crate) const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
pub(crate) const MODEL: &str = "demo";

/// A server's governance, without the server.
pub(crate) struct House {
    pub(crate) governor: Governor,
    pub(crate) clock: Arc<ManualClock>,
    pub(crate) records: Arc<dyn Records>,
    pub(crate) counters: Arc<MemoryCounters>,
    pub(crate) first: FirstStart,
    dir: PathBuf,
    owned: Option<Arc<TempDir>>,
    secrets: Mutex<HashMap<UserId, Secret>>,
}

impl House {
    /// A fresh one, with the default tiers and one model for all of them.
    pub(crate) async fn new() -> Self {
        Self::with(Config::default()).await
    }

    pub(crate) async fn with(config: Config) -> Self {
        let dir = Arc::new(TempDir::new().expect("a temporary directory"));
        Self::open(dir, Arc::new(ManualClock::at(NOON_US)), config).await
    }

    pub(crate) async fn open(dir: Arc<TempDir>, clock: Arc<ManualClock>, config: Config) -> Self {
        let house = Self::on(dir.path().to_owned(), clock, config).await;
        Self { owned: Some(dir), ..house }
    }

    /// On a directory that somebody else removes.
    pub(crate) async fn on(dir: PathBuf, clock: Arc<ManualClock>, config: Config) -> Self {
        let records: Arc<dyn Records> = Arc::new(open_store(&dir).await);
        let counters = Arc::new(MemoryCounters::new(clock.clone()));
        let (governor, first) =
            Governor::start(records.clone(), counters.clone(), clock.clone(), config).await.expect("governance starts");
        let model =
            DeclaredModel { name: MODEL.into(), display_name: None, source: "builtin:demo".into(), published: None };
        governor.declare_models(&[model]).await.expect("the model is declared");
        Self { governor, clock, records, counters, first, dir, owned: None, secrets: Mutex::default() }
    }

    /// Ends everything cleanly and starts again on the same data.
    pub(crate) async fn restart(self) -> Self {
        self.restart_with(Config::default()).await
    }

    pub(crate) async fn restart_with(self, config: Config) -> Self {
        let (dir, clock) = (self.owned.clone().expect("a directory of its own"), self.clock.clone());
        self.close().await;
        Self::open(dir, clock, config).await
    }

    pub(crate) async fn close(self) {
        self.governor.shutdown().await;
        self.records.close().await;
    }

    /// What the disk would hold if the power failed now: the files as they are, without any clean-up.
    pub(crate) fn crash_image(&self) -> Arc<TempDir> {
        let image = TempDir::new().expect("a temporary directory");
        for entry in std::fs::read_dir(&self.dir).expect("the data directory") {
            let path = entry.expect("an entry").path();
            std::fs::copy(&path, image.path().join(path.file_name().expect("a file name"))).expect("a copy");
        }
        Arc::new(image)
    }

    pub(crate) async fn authenticate(&self, secret: &Secret) -> Option<Principal> {
        self.governor.authenticate(&Credential::parse(secret.reveal()), HERE).await.ok()
    }

    /// The administrator of the first start.
    pub(crate) async fn admin(&self) -> Principal {
        let key = self.first.admin_key.as_ref().expect("the first start tells the admin key");
        self.authenticate(key).await.expect("the admin key works")
    }

    /// A user in `groups` with a key.
    pub(crate) async fn user(&self, name: &str, groups: &[&str]) -> (Principal, Secret) {
        let operator = self.governor.operator();
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self.governor.create_user(&operator, NewUser { name: name.into(), groups }).await.expect("a user");
        let new = NewKey { name: "test".into(), ..NewKey::default() };
        let issued = self.governor.create_key_for(&operator, name, new).await.expect("a key");
        let who = self.authenticate(&issued.secret).await.expect("the key works");
        self.secrets.lock().expect("no panic").insert(who.user, issued.secret.clone());
        (who, issued.secret)
    }

    /// What the next request of `who` is allowed to do.
    pub(crate) async fn again(&self, who: &Principal) -> Principal {
        let secret = self.secrets.lock().expect("no panic")[&who.user].clone();
        self.authenticate(&secret).await.expect("still valid")
    }

    /// A user whose tier has exactly these limits.
    pub(crate) async fn limited(&self, limits: &[&str]) -> Principal {
        self.limited_with_key(limits).await.0
    }

    pub(crate) async fn limited_with_key(&self, limits: &[&str]) -> (Principal, Secret) {
        let tier = NewTier {
            name: Some("tight".into()),
            level: 9,
            groups: vec!["tight".into()],
            limits: Some(parse(limits)),
            ..NewTier::default()
        };
        self.governor.create_tier(&self.governor.operator(), tier).await.expect("a tier");
        self.user("ann", &["tight"]).await
    }

    pub(crate) async fn set_limits(&self, tier: &str, limits: &[&str]) {
        let patch = TierPatch { limits: Some(parse(limits)), ..TierPatch::default() };
        self.governor.update_tier(&self.governor.operator(), tier, patch).await.expect("the tier changes");
    }

    /// Requests and tokens on the ledger, over everybody.
    pub(crate) async fn ledger(&self) -> (u64, Usage) {
        let query = UsageQuery { start_us: 0, end_us: i64::MAX, ..UsageQuery::default() };
        let sums = self.records.usage(&query).await.expect("usage");
        (sums[0].requests, sums[0].usage)
    }

    /// Used and held of each limit of `who`, in order.
    pub(crate) async fn standing(&self, who: &Principal) -> Vec<(u64, u64)> {
        let standing = self.governor.standing(who, Some(MODEL)).await.expect("standing");
        standing.iter().map(|limit| (limit.used, limit.held)).collect()
    }

    /// True when no reservation is open.
    pub(crate) fn counters_are_at_rest(&self) -> bool {
        self.counters.open_holds() == 0
    }

    pub(crate) fn clock_us(&self) -> i64 {
        self.clock.now_us()
    }
}

pub(crate) async fn open_store(dir: &Path) -> SqliteRecords {
    let config = StoreConfig { data_dir: dir.to_owned(), ..StoreConfig::default() };
    SqliteRecords::open(&config).await.expect("the store opens")
}

pub(crate) fn parse(limits: &[&str]) -> Vec<Limit> {
    limits.iter().map(|text| text.parse().expect("a limit")).collect()
}

/// One prompt, one answer of at most `max_tokens`.
pub(crate) fn ask(prompt_tokens: u64, max_tokens: u64) -> Ask {
    with_cap(prompt_tokens, 1, CompletionCap::Explicit(max_tokens))
}

pub(crate) fn with_cap(prompt_tokens: u64, sequences: u64, cap: CompletionCap) -> Ask {
    Ask {
        request_id: Uuid::now_v7(),
        client_request_id: None,
        model: MODEL.into(),
        endpoint: "/v1/chat/completions",
        prompt_tokens,
        sequences,
        cap,
    }
}

pub(crate) fn used(prompt_tokens: u64, completion_tokens: u64) -> Usage {
    Usage { prompt_tokens, cached_tokens: 0, completion_tokens }
}
