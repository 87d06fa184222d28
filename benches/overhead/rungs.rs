//! The rungs of the ladder: each a server on loopback with the same model, with one more thing in front of it.

use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures::stream;
use millgate::api::{
    self, Api, ApiParts, Lifecycle, LiveSettings, ModelOrders, ModelState, Models, ReadyModel, ServedModel,
    StartSettings,
};
use millgate::engine::fake::FakeModel;
use millgate::engine::{self, CacheSalt, EngineHandle, Event, EventStream, FlowId, Request, RequestId, SamplingParams};
use millgate::governance::ports::{Charge, CounterKey, Counters, Need, Records};
use millgate::governance::{
    Clock, Config, Credential, DeclaredModel, Governor, Limit, NewKey, SystemClock, TierPatch, Usage, UserId,
};
use millgate::store::{self, MemoryCounters, SqliteRecords};
use millgate::telemetry::{Metrics, Tracer};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use uuid::Uuid;

use super::instant::InstantModel;
use super::load::Target;

const MODEL: &str = "instant";
const LIMITS: [&str; 6] = [
    "1000000000 requests / 1m",
    "1000000000000 tokens / 1m",
    "1000000000000 tokens / 1h",
    "1000000000000 tokens / day",
    "1000000000000 completion_tokens / month",
    "1000000 concurrent",
];

/// All servers, side by side, idle unless measured.
pub(crate) struct Ladder {
    targets: Vec<Target>,
    servers: Vec<Governed>,
    engine: EngineHandle,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// A whole server's parts that must be taken down.
struct Governed {
    governor: Governor,
    records: Arc<SqliteRecords>,
    credential: String,
    _data: TempDir,
}

impl Ladder {
    pub(crate) async fn start() -> Self {
        let config = engine::Config { max_queue_requests: 100_000, prefix_cache: false, ..engine::Config::default() };
        let engine =
            engine::spawn(MODEL, Box::new(InstantModel::new()), FakeModel::text(), config).expect("an engine thread");
        let mut ladder = Self {
            targets: Vec::new(),
            servers: Vec::new(),
            engine,
            stop: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let memory = Path::new("/dev/shm");
        let on_memory = if memory.is_dir() { Some(memory) } else { None };
        let in_memory = Governed::start(on_memory).await;
        for (name, has_auth, has_limits) in
            [("nothing", false, false), ("authentication", true, false), ("authentication, six limits", true, true)]
        {
            let bare = Bare {
                engine: ladder.engine.clone(),
                governor: has_auth.then(|| in_memory.governor.clone()),
                limits: has_limits.then(Limits::new),
            };
            let router = Router::new().route("/v1/chat/completions", post(answer)).with_state(Arc::new(bare));
            ladder.listen(name, router, &in_memory.credential).await;
        }
        ladder.whole("the server, ledger in memory", in_memory).await;
        let on_disk = Governed::start(None).await;
        ladder.whole("the server, ledger on the disk", on_disk).await;
        ladder
    }

    pub(crate) fn targets(&self) -> Vec<Target> {
        self.targets.clone()
    }

    pub(crate) async fn stop(self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
        self.engine.shutdown().await;
        for server in self.servers {
            server.governor.shutdown().await;
            server.records.close().await;
        }
    }

    async fn whole(&mut self, name: &str, governed: Governed) {
        let models = Models::default();
        models.put(ServedModel {
            name: MODEL.to_owned(),
            owned_by: "llm".to_owned(),
            created: 0,
            url: None,
            fingerprint: "fp_instant".to_owned(),
            configured_in: None,
            env: serde_json::Map::new(),
            needs_reload: false,
            past: millgate::engine::EngineTotals::default(),
            state: ModelState::Ready(Arc::new(ReadyModel::new(self.engine.clone(), FakeModel::text()))),
        });
        let lifecycle = Arc::new(Lifecycle::default());
        lifecycle.set_ready();
        let api = Api::new(ApiParts {
            governor: governed.governor.clone(),
            // No model comes or goes during a measurement.
            orders: ModelOrders::channel().0,
            models,
            config: api::Config::default(),
            settings: LiveSettings::new(StartSettings {
                document: json!({}),
                keys: Vec::new(),
                secrets: Vec::new(),
                check_filter: Box::new(|_| Err("there is no log".to_owned())),
                tasks: self.tasks.clone(),
            }),
            clock: Arc::new(SystemClock::new()),
            metrics: Arc::new(Metrics::new()),
            tracer: Tracer::off(),
            lifecycle,
        });
        self.listen(name, api::router(&api), &governed.credential).await;
        self.servers.push(governed);
    }

    async fn listen(&mut self, name: &str, router: Router, credential: &str) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("an address");
        self.targets.push(Target {
            name: name.to_owned(),
            url: format!("http://{address}"),
            key: credential.to_owned(),
            model: MODEL.to_owned(),
        });
        let stop = self.stop.clone();
        let metrics = Arc::new(Metrics::new());
        self.tasks.spawn(async move { api::serve(listener, router, &api::Config::default(), metrics, stop).await });
    }
}

impl Governed {
    /// Governance over a store in a new folder: under `parent`, or where temporary files go.
    async fn start(parent: Option<&Path>) -> Self {
        let data = parent.map_or_else(TempDir::new, TempDir::new_in).expect("a folder");
        let store = store::Config { data_dir: data.path().to_owned(), ..store::Config::default() };
        let records = Arc::new(SqliteRecords::open(&store).await.expect("the store"));
        let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
        let counters = Arc::new(MemoryCounters::new(clock.clone()));
        let (governor, first) =
            Governor::start(records.clone(), counters, clock, Config::default()).await.expect("governance starts");
        let key = first.admin_key.expect("a first key");
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let admin = governor.authenticate(&Credential::parse(key.reveal()), here).await.expect("the key works");
        let limits = LIMITS.iter().map(|text| text.parse().expect("a limit")).collect();
        let patch = TierPatch { limits: Some(limits), ..TierPatch::default() };
        governor.update_tier(&admin, "enterprise", patch).await.expect("the tier changes");
        let model = DeclaredModel { name: MODEL.into(), display_name: None, source: "none".into(), published: None };
        governor.declare_models(&[model]).await.expect("a model");
        let new = NewKey { name: "bench".into(), ..NewKey::default() };
        let issued = governor.create_key(&admin, new).await.expect("a key");
        Self { governor, records, credential: issued.secret.reveal().to_owned(), _data: data }
    }
}

/// The least that answers a chat over HTTP, with governance as far as a rung wants it.
struct Bare {
    engine: EngineHandle,
    governor: Option<Governor>,
    limits: Option<Limits>,
}

struct Limits {
    counters: MemoryCounters,
    charges: Arc<[Charge]>,
}

impl Limits {
    fn new() -> Self {
        let user = UserId(Uuid::from_u128(7));
        let charge = |text: &&str| {
            let limit: Limit = text.parse().expect("a limit");
            let bounds = match &limit.window {
                millgate::governance::limits::Window::Calendar(period, zone) => {
                    Some(millgate::governance::calendar::bounds(*period, zone, SystemClock::new().now_us()))
                }
                _ => None,
            };
            let key = CounterKey::for_subject(&limit, user, None, "free").expect("a counter");
            Charge { key, hard: Some(limit.amount), bounds }
        };
        Self {
            counters: MemoryCounters::new(Arc::new(SystemClock::new())),
            charges: LIMITS.iter().map(charge).collect(),
        }
    }
}

async fn answer(State(bare): State<Arc<Bare>>, request: HttpRequest) -> Response {
    if let Some(governor) = &bare.governor {
        let header = request.headers().get("authorization").and_then(|value| value.to_str().ok());
        let key = header.and_then(|value| value.strip_prefix("Bearer ")).expect("the client sends its key");
        let here = IpAddr::V4(Ipv4Addr::LOCALHOST);
        governor.authenticate(&Credential::parse(key), here).await.expect("the key works");
    }
    let body = axum::body::to_bytes(request.into_body(), 1 << 20).await.expect("a body");
    let body: Value = serde_json::from_slice(&body).expect("JSON");
    let id = Uuid::now_v7();
    let max_tokens = body["max_tokens"].as_u64().and_then(|most| u32::try_from(most).ok()).expect("a maximum");
    let prompt: Vec<u32> = body["messages"][0]["content"].as_str().expect("a message").bytes().map(u32::from).collect();
    if let Some(limits) = &bare.limits {
        let most = u64::from(max_tokens);
        let need = Need {
            requests: 1,
            prompt_tokens: prompt.len() as u64,
            sequences: 1,
            completion_least: most,
            completion_most: most,
            ..Need::default()
        };
        limits.counters.reserve(id, &limits.charges, need).await.expect("plenty left");
    }
    let events = bare.engine.submit(engine_request(id, prompt, max_tokens)).expect("the queue has room");
    if body["stream"] == true {
        let chunks = stream::unfold((bare.clone(), events, id), |(bare, mut events, id)| async move {
            let chunk = next_chunk(&bare, &mut events, id).await?;
            Some((Ok::<_, std::convert::Infallible>(chunk), (bare, events, id)))
        });
        return ([("content-type", "text/event-stream")], Body::from_stream(chunks)).into_response();
    }
    let (mut events, mut text) = (events, String::new());
    while let Some(chunk) = next_chunk(&bare, &mut events, id).await {
        text.push_str(&chunk);
    }
    axum::Json(json!({"choices": [{"message": {"content": text}}]})).into_response()
}

async fn next_chunk(bare: &Bare, events: &mut EventStream, id: Uuid) -> Option<String> {
    loop {
        match events.next().await? {
            Event::Text { text, .. } => {
                return Some(format!("data: {}\n\n", json!({"choices": [{"index": 0, "delta": {"content": text}}]})));
            }
            Event::Done(usage) | Event::Failed(_, usage) => {
                if let Some(limits) = &bare.limits {
                    let used = Usage {
                        prompt_tokens: usage.prompt_tokens.into(),
                        cached_tokens: 0,
                        completion_tokens: usage.completion_tokens.into(),
                    };
                    limits.counters.settle(id, used.into()).await.expect("settled");
                }
                return Some("data: [DONE]\n\n".to_owned());
            }
            _ => {}
        }
    }
}

fn engine_request(id: Uuid, prompt: Vec<u32>, max_tokens: u32) -> Request {
    Request {
        id: RequestId(id),
        prompt,
        sampling: SamplingParams { temperature: 0.0, ..SamplingParams::default() },
        choices: 1,
        max_tokens,
        min_tokens: 0,
        ignore_eos: false,
        stop: Vec::new(),
        prompt_logprobs: None,
        continues_text: false,
        allowance: max_tokens,
        flow: FlowId(1),
        weight: 1,
        priority: 0,
        cache_salt: CacheSalt([0; 16]),
    }
}
