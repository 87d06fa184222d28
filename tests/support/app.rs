//! Builds the server for a test and takes it down again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millgate::api::{
    self, Api, ApiParts, ApplyFilter, Lifecycle, LiveSettings, ModelOrder, ModelOrders, ModelState, Models, ReadyModel,
    ServedModel, StartSettings,
};
use millgate::app::{ApiServer, HttpDocuments};
use millgate::engine::fake::{FakeModel, FakeOptions};
use millgate::engine::{self, EngineHandle};
use millgate::governance::ports::Records;
use millgate::governance::records::{LedgerRecord, Published};
use millgate::governance::{
    self, Clock, DeclaredModel, Governor, ManualClock, NewKey, NewTier, NewUser, NoReviews, Principal, SystemClock,
    TokenReviews,
};
use millgate::store::{self, MemoryCounters, SqliteRecords};
use millgate::telemetry::{Metrics, Tracer};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::actor::Actor;

/// The model every test server has.
pub(crate) const MODEL: &str = "fake";
/// Where a manual clock starts: 2023-11-14 22:13:20 UTC, in microseconds.
const START_US: i64 = 1_700_000_000_000_000;
/// Where the models of a test are configured.
const PLACE: &str = "the test";
const ADMIN_KEY: &str = "an-admin-secret-for-tests-only";

/// A tier of a test.
#[derive(Debug, Default)]
pub(crate) struct TierSpec {
    limits: Vec<String>,
}

impl TierSpec {
    /// Adds a limit in text form, like `100 tokens / 1m`.
    pub(crate) fn limit(mut self, text: &str) -> Self {
        self.limits.push(text.to_owned());
        self
    }

    /// Adds a limit on all tokens of a day.
    pub(crate) fn tokens_per_day(self, amount: u64) -> Self {
        self.limit(&format!("{amount} tokens / day"))
    }
}

/// What a test server should be like.
pub(crate) struct Builder {
    tiers: Vec<(String, TierSpec)>,
    fake: FakeOptions,
    model: Option<Box<dyn millgate_models::Model>>,
    engine: engine::Config,
    api: api::Config,
    governance: governance::Config,
    hidden_models: Vec<String>,
    store: store::Config,
    has_system_clock: bool,
    tracer: Tracer,
}

/// A server that runs for one test.
pub(crate) struct TestApp {
    pub(crate) address: SocketAddr,
    pub(crate) governor: Governor,
    pub(crate) records: Arc<SqliteRecords>,
    pub(crate) engine: EngineHandle,
    pub(crate) lifecycle: Arc<Lifecycle>,
    /// The log filters that were put into effect, in order.
    pub(crate) log_filters: Arc<Mutex<Vec<String>>>,
    clock: Option<Arc<ManualClock>>,
    users: AtomicU32,
    stop: CancellationToken,
    tasks: TaskTracker,
    data: TempDir,
}

impl TestApp {
    /// A server with the default tiers and one fake model, on a manual clock.
    #[expect(clippy::new_ret_no_self, reason = "reads as a sentence: TestApp::new().tier(..).start()")]
    pub(crate) fn new() -> Builder {
        Builder {
            tiers: Vec::new(),
            fake: FakeOptions::default(),
            model: None,
            engine: engine::Config::default(),
            api: api::Config::default(),
            governance: governance::Config::default(),
            hidden_models: Vec::new(),
            store: store::Config::default(),
            has_system_clock: false,
            tracer: Tracer::off(),
        }
    }
}

impl Builder {
    /// Adds a tier whose members are the users that [`TestApp::key`] makes for it; it takes the place of a default tier of
    /// that name.
    pub(crate) fn tier(mut self, name: &str, describe: impl FnOnce(TierSpec) -> TierSpec) -> Self {
        self.tiers.push((name.to_owned(), describe(TierSpec::default())));
        self
    }

    /// Changes the fake model.
    pub(crate) fn fake(mut self, change: impl FnOnce(&mut FakeOptions)) -> Self {
        change(&mut self.fake);
        self
    }

    /// Serves this model in the place of the fake one; its tokens are spelled as the fake model's.
    #[cfg(feature = "cuda")]
    pub(crate) fn model(mut self, model: Box<dyn millgate_models::Model>) -> Self {
        self.model = Some(model);
        self
    }

    /// Changes the engine's settings.
    pub(crate) fn engine(mut self, change: impl FnOnce(&mut engine::Config)) -> Self {
        change(&mut self.engine);
        self
    }

    /// Changes the settings of the HTTP side.
    pub(crate) fn api(mut self, change: impl FnOnce(&mut api::Config)) -> Self {
        change(&mut self.api);
        self
    }

    /// Changes the settings of the store; its directory is always the test's own.
    pub(crate) fn store(mut self, change: impl FnOnce(&mut store::Config)) -> Self {
        change(&mut self.store);
        self
    }

    /// Changes the settings of governance.
    pub(crate) fn governance(mut self, change: impl FnOnce(&mut governance::Config)) -> Self {
        change(&mut self.governance);
        self
    }

    /// Adds a second model that no tier may use.
    pub(crate) fn hidden_model(mut self, name: &str) -> Self {
        self.hidden_models.push(name.to_owned());
        self
    }

    /// Sends traces with `tracer`.
    pub(crate) fn tracer(mut self, tracer: Tracer) -> Self {
        self.tracer = tracer;
        self
    }

    /// Lets real time pass, for clients that wait by themselves.
    pub(crate) fn system_clock(mut self) -> Self {
        self.has_system_clock = true;
        self
    }

    /// Starts the server on a free port of the loopback address.
    pub(crate) async fn start(mut self) -> TestApp {
        let data = tempfile::tempdir().unwrap();
        let manual = (!self.has_system_clock).then(|| Arc::new(ManualClock::at(START_US)));
        let clock: Arc<dyn Clock> = match &manual {
            Some(manual) => manual.clone(),
            None => Arc::new(SystemClock::new()),
        };
        let store = store::Config { data_dir: data.path().to_owned(), ..self.store.clone() };
        let records = Arc::new(SqliteRecords::open(&store).await.unwrap());
        let counters = Arc::new(MemoryCounters::new(clock.clone()));
        let admin_key = Some(governance::Secret::new(ADMIN_KEY));
        let config = governance::Config { admin_key, ..self.governance.clone() };
        let documents = Arc::new(HttpDocuments::new().unwrap());
        let reviews: Arc<dyn TokenReviews> = match &config.kubernetes {
            Some(cluster) => Arc::new(ApiServer::new(cluster).unwrap()),
            None => Arc::new(NoReviews),
        };
        let (governor, _) =
            Governor::start_with(records.clone(), counters, clock.clone(), config, documents, reviews).await.unwrap();
        self.declare(&governor).await;

        let (stop, tasks) = (CancellationToken::new(), TaskTracker::new());
        let models = Models::default();
        let engine = match self.model.take() {
            Some(model) => engine::spawn(MODEL, model, FakeModel::text(), self.engine.clone()).unwrap(),
            None => spawn_fake(MODEL, &self.fake, &self.engine),
        };
        models.put(served(MODEL, &engine));
        for name in &self.hidden_models {
            models.put(served(name, &spawn_fake(name, &self.fake, &self.engine)));
        }
        let (orders, desk) = ModelOrders::channel();
        tasks.spawn(obey(desk, models.clone(), engine.clone()));
        let lifecycle = Arc::new(Lifecycle::default());
        let api_config = self.api.clone();
        let log_filters = Arc::new(Mutex::new(Vec::new()));
        let metrics = Arc::new(Metrics::new());
        let api = Api::new(ApiParts {
            governor: governor.clone(),
            models,
            orders,
            config: self.api,
            settings: LiveSettings::new(fixed_settings(log_filters.clone(), tasks.clone())),
            clock,
            metrics: Arc::clone(&metrics),
            tracer: self.tracer,
            lifecycle: lifecycle.clone(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (router, token) = (api::router(&api), stop.clone());
        tasks.spawn(async move { api::serve(listener, router, &api_config, metrics, token).await });
        lifecycle.set_ready();
        TestApp {
            address,
            governor,
            records,
            engine,
            lifecycle,
            log_filters,
            clock: manual,
            users: AtomicU32::new(0),
            stop,
            tasks,
            data,
        }
    }

    async fn declare(&self, governor: &Governor) {
        let operator = governor.operator();
        for (level, (name, spec)) in (100..).zip(&self.tiers) {
            if governor.tier(&operator, name).await.is_ok() {
                governor.delete_tier(&operator, name).await.unwrap();
            }
            let tier = NewTier {
                name: Some(name.clone()),
                level,
                groups: vec![group_of(name)],
                limits: Some(spec.limits.iter().map(|text| text.parse().unwrap()).collect()),
                ..NewTier::default()
            };
            governor.create_tier(&operator, tier).await.unwrap();
        }
        let declare = |name: &str, published| DeclaredModel {
            name: name.to_owned(),
            display_name: None,
            source: "builtin:fake".to_owned(),
            published: Some(published),
        };
        let mut models = vec![declare(MODEL, Published::All)];
        models.extend(self.hidden_models.iter().map(|name| declare(name, Published::Tiers(Vec::new()))));
        governor.declare_models(&models).await.unwrap();
    }
}

fn spawn_fake(name: &str, options: &FakeOptions, config: &engine::Config) -> EngineHandle {
    let model = Box::new(FakeModel::new(options.clone()));
    engine::spawn(name, model, FakeModel::text(), config.clone()).unwrap()
}

fn served(name: &str, engine: &EngineHandle) -> ServedModel {
    ServedModel {
        name: name.to_owned(),
        owned_by: "llm".to_owned(),
        created: START_US / 1_000_000,
        url: None,
        fingerprint: "fp_fake".to_owned(),
        configured_in: Some(PLACE),
        env: serde_json::Map::new(),
        needs_reload: false,
        past: millgate::engine::EngineTotals::default(),
        state: ModelState::Ready(Arc::new(ReadyModel::new(engine.clone(), FakeModel::text()))),
    }
}

/// The simplest owner of models: whatever is to be loaded is the fake model, at once. `models_at_run_time` has the real one.
async fn obey(mut desk: mpsc::Receiver<ModelOrder>, models: Models, engine: EngineHandle) {
    while let Some(order) = desk.recv().await {
        let answer = match order {
            ModelOrder::Check(_, answer) | ModelOrder::Replace(_, answer) => answer,
            ModelOrder::Load(name, spec, answer) => {
                let place = models.get(&name).map_or_else(|| spec.is_none().then_some(PLACE), |old| old.configured_in);
                models.put(ServedModel { configured_in: place, ..served(&name, &engine) });
                answer
            }
            ModelOrder::Unload(name, answer) => {
                if let Some(old) = models.get(&name) {
                    models.put(ServedModel { state: ModelState::Unloaded, ..ServedModel::clone(&old) });
                }
                answer
            }
            ModelOrder::Forget(name, answer) => {
                models.remove(&name);
                answer
            }
        };
        // Whoever asked may have gone.
        drop(answer.send(Ok(())));
    }
}

/// Settings that say nothing about the test server; the log filters go to `applied`, and `wrong` is a wrong one.
fn fixed_settings(applied: Arc<Mutex<Vec<String>>>, tasks: TaskTracker) -> StartSettings {
    StartSettings {
        document: serde_json::json!({
            "server": {"listen": "127.0.0.1:8080", "ops_listen": null},
            "hub": {"endpoint": "https://ann:hush-hush@hub.example.com"},
            "log": {"level": "info", "format": "text"},
        }),
        keys: vec![
            ("server", "listen"),
            ("server", "ops_listen"),
            ("hub", "endpoint"),
            ("log", "level"),
            ("log", "format"),
            ("models", "name"),
        ],
        secrets: vec![("MILLGATE_ADMIN_KEY", true), ("HF_TOKEN", false)],
        check_filter: Box::new(move |filter| {
            let (applied, filter) = (applied.clone(), filter.to_owned());
            if filter == "wrong" {
                return Err("is wrong".to_owned());
            }
            Ok(Box::new(move || applied.lock().unwrap().push(filter)) as ApplyFilter)
        }),
        tasks,
    }
}

/// The group whose members a test tier has.
fn group_of(tier: &str) -> String {
    match tier {
        "premium" | "enterprise" => format!("{tier}-users"),
        other => format!("{other}-members"),
    }
}

impl TestApp {
    /// Nobody: no credential.
    pub(crate) fn anonymous(&self) -> Actor {
        Actor::new(self.address, None)
    }

    /// The administrator of the first start.
    pub(crate) fn admin(&self) -> Actor {
        Actor::new(self.address, Some(ADMIN_KEY.to_owned()))
    }

    /// A new user of that tier, with a key.
    pub(crate) async fn key(&self, tier: &str) -> Actor {
        let number = self.users.fetch_add(1, Ordering::Relaxed);
        self.user(&format!("{tier}-user-{number}"), &[&group_of(tier)]).await
    }

    /// A new user in these groups, with a key.
    pub(crate) async fn user(&self, name: &str, groups: &[&str]) -> Actor {
        let operator = self.operator();
        let groups = groups.iter().map(|group| (*group).to_owned()).collect();
        self.governor.create_user(&operator, NewUser { name: name.to_owned(), groups }).await.unwrap();
        self.key_of(name, NewKey::default()).await
    }

    /// A further key of a user.
    pub(crate) async fn key_of(&self, user: &str, new: NewKey) -> Actor {
        let new = NewKey { name: "test".to_owned(), ..new };
        let issued = self.governor.create_key_for(&self.operator(), user, new).await.unwrap();
        Actor::new(self.address, Some(issued.secret.reveal().to_owned()))
    }

    /// The one who may do everything, without a request.
    pub(crate) fn operator(&self) -> Principal {
        self.governor.operator()
    }

    /// Lets time pass.
    pub(crate) fn advance(&self, by: Duration) {
        self.clock.as_ref().expect("the test runs on a manual clock").advance(by);
    }

    /// Where the store keeps its files.
    pub(crate) fn data_dir(&self) -> &std::path::Path {
        self.data.path()
    }

    /// The ledger, oldest row first.
    pub(crate) async fn ledger(&self) -> Vec<LedgerRecord> {
        self.records.ledger_since(0).await.unwrap()
    }

    /// Waits until `is_true`, at most a minute; for what happens on another thread.
    pub(crate) async fn eventually(&self, what: &str, mut is_true: impl AsyncFnMut(&Self) -> bool) {
        for _ in 0..12_000 {
            if is_true(self).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("it never came true that {what}");
    }

    /// Stops in order: no new work, generations settled, connections closed, stores flushed.
    pub(crate) async fn stop(self) {
        self.lifecycle.start_draining();
        assert!(self.lifecycle.drained(Duration::from_secs(10)).await, "a generation never settled");
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.engine.shutdown().await;
        self.governor.shutdown().await;
        self.records.close().await;
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}
