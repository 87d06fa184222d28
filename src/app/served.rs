//! A running server: started in order, stopped in reverse, nothing forgotten.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use millgate_kernels::Pool;
use millgate_models::Progress;
use sha2::{Digest, Sha256};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::declare::declared;
use super::load::{self, Loaded};
use super::plan::share_memory;
use super::summary::{ModelLine, Summary};
use crate::api::{self, Api, ApiParts, Lifecycle, ModelState, Models, ReadyModel, ServedModel};
use crate::config::{ModelSettings, Settings, effective_document};
use crate::engine::EngineHandle;
use crate::governance::ports::Records;
use crate::governance::{Clock, Governor, Secret, SystemClock};
use crate::store::{self, MemoryCounters, SqliteRecords};
use crate::telemetry::Metrics;

/// Who the model list says owns the models of this server.
const OWNED_BY: &str = "llm";
/// How long connections may take to notice the end after their answers are complete.
const CLOSE_WAIT: Duration = Duration::from_secs(5);

/// A server that answers.
pub struct Served {
    summary: Summary,
    parts: Parts,
}

/// What must be taken down again.
struct Parts {
    lifecycle: Arc<Lifecycle>,
    drain_timeout: Duration,
    stop_listening: CancellationToken,
    listeners: TaskTracker,
    engines: Vec<EngineHandle>,
    governor: Governor,
    records: Arc<dyn Records>,
}

impl Served {
    /// Builds store, governance, API and engines in this order; probes answer while the models load.
    ///
    /// `tell_key` hears the administrator's key if this is the first start: at once, because it is kept nowhere.
    ///
    /// # Errors
    /// The data directory or an address is in use, the store is unreadable, the models do not fit, or none could be loaded.
    pub async fn start(
        settings: &Settings,
        progress: Arc<dyn Progress>,
        tell_key: &(dyn Fn(&Secret) + Sync),
    ) -> anyhow::Result<Self> {
        let listener = bind(settings.listen).await?;
        let ops_listener = match settings.ops_listen {
            Some(address) => Some(bind(address).await?),
            None => None,
        };
        let (api, mut parts) = found(settings, tell_key).await?;
        let listen = local_address(&listener)?;
        let ops_listen = ops_listener.as_ref().map(local_address).transpose()?;
        parts.listen(listener, ops_listener, &api);

        let pool = Arc::new(settings.threads.map_or_else(Pool::for_this_machine, Pool::new));
        let lines = match load_models(settings, &pool, progress, &api, &mut parts.engines).await {
            Ok(lines) => lines,
            Err(error) => {
                parts.stop().await;
                return Err(error);
            }
        };
        api.lifecycle.set_ready();
        let summary = Summary {
            listen,
            ops_listen,
            data_dir: settings.data_dir.clone(),
            threads: pool.threads(),
            instruction_set: pool.level(),
            models: lines,
        };
        Ok(Self { summary, parts })
    }

    /// What the start has to tell.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Serves until `stop` resolves, then finishes what runs, writes the ledger and ends.
    ///
    /// Generations that still run at the end of the drain time end with an error and are charged nothing.
    ///
    /// # Errors
    /// None so far.
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        stop.await;
        self.parts.stop().await;
        Ok(())
    }
}

impl Parts {
    fn listen(&self, main: TcpListener, ops: Option<TcpListener>, api: &Api) {
        let serve = |listener, router| {
            let config = api.config.clone();
            let stop = self.stop_listening.clone();
            self.listeners.spawn(async move { api::serve(listener, router, &config, stop).await });
        };
        serve(main, api::router(api));
        if let Some(ops) = ops {
            serve(ops, api::ops_router(api));
        }
        self.listeners.close();
    }

    /// Takes everything down in the reverse order of the start.
    async fn stop(self) {
        self.lifecycle.start_draining();
        info!("draining: no new requests, what runs may finish within {:?}", self.drain_timeout);
        for engine in &self.engines {
            engine.drain();
        }
        if !self.lifecycle.drained(self.drain_timeout).await {
            warn!("the drain time is over; what still runs ends with an error now and is charged nothing");
        }
        for engine in &self.engines {
            engine.shutdown().await;
        }
        // With their engines gone, generations get their terminal events and settle.
        if !self.lifecycle.drained(CLOSE_WAIT).await {
            error!("some requests did not settle; they are recovered from the journal at the next start");
        }
        self.stop_listening.cancel();
        if tokio::time::timeout(CLOSE_WAIT, self.listeners.wait()).await.is_err() {
            warn!("some connections did not close in time");
        }
        self.governor.shutdown().await;
        self.records.close().await;
        info!("stopped: the ledger is written");
    }
}

/// Store, governance and the API's state, without models and listeners.
async fn found(settings: &Settings, tell_key: &(dyn Fn(&Secret) + Sync)) -> anyhow::Result<(Api, Parts)> {
    let store_config = store::Config { data_dir: settings.data_dir.clone(), ..store::Config::default() };
    let records: Arc<dyn Records> = SqliteRecords::open(&store_config)
        .await
        .map(Arc::new)
        .with_context(|| format!("cannot open the data directory `{}`", settings.data_dir.display()))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let counters = Arc::new(MemoryCounters::new(Arc::clone(&clock)));
    let config = settings.governance();
    let (governor, first) = Governor::start(Arc::clone(&records), counters, Arc::clone(&clock), config)
        .await
        .context("cannot start governance")?;
    if let Some(key) = &first.admin_key {
        tell_key(key);
    }
    governor.note_config(&effective_document(settings)).await.context("cannot note the configuration")?;
    let models: Vec<_> = settings.models.iter().map(declared).collect();
    governor.declare_models(&models).await.context("cannot make the configured models known")?;
    let lifecycle = Arc::new(Lifecycle::default());
    let api = Api::new(ApiParts {
        governor: governor.clone(),
        models: Models::default(),
        config: settings.api(),
        clock,
        metrics: Arc::new(Metrics::new()),
        lifecycle: Arc::clone(&lifecycle),
    });
    let parts = Parts {
        lifecycle,
        drain_timeout: settings.drain_timeout,
        stop_listening: CancellationToken::new(),
        listeners: TaskTracker::new(),
        engines: Vec::new(),
        governor,
        records,
    };
    Ok((api, parts))
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; if another program has it, choose another with `--listen 127.0.0.1:8081`")
    })
}

fn local_address(listener: &TcpListener) -> anyhow::Result<SocketAddr> {
    listener.local_addr().context("cannot tell the listener's address")
}

/// Opens all models, divides the memory, then loads one after another. A model that fails is reported and the others go on.
async fn load_models(
    settings: &Settings,
    pool: &Arc<Pool>,
    progress: Arc<dyn Progress>,
    api: &Api,
    engines: &mut Vec<EngineHandle>,
) -> anyhow::Result<Vec<ModelLine>> {
    let loading = |phase: &str| ModelState::Loading { phase: phase.into(), progress: None };
    let mut lines = Vec::new();
    let mut opened = Vec::new();
    for model in &settings.models {
        api.models.put(served_model(api, model, loading("opening")));
        let (work, settings, pool, progress) = (model.clone(), settings.clone(), pool.clone(), progress.clone());
        match blocking(move || load::open(&work, &settings, &pool, progress.as_ref())).await {
            Ok(ready) => opened.push((model, ready)),
            Err(error) => lines.push(failed(api, model, &error)),
        }
    }
    let wishes: Vec<_> = opened.iter().map(|(_, opened)| opened.wish().clone()).collect();
    let shares = share_memory(&wishes, load::bound_bytes(settings.memory_limit))?;
    for ((model, opened), share) in opened.into_iter().zip(shares) {
        api.models.put(served_model(api, model, loading("loading")));
        let (settings, pool, progress) = (settings.clone(), pool.clone(), progress.clone());
        match blocking(move || load::load(opened, &share, &settings, &pool, progress.as_ref())).await {
            Ok(loaded) => lines.push(ready(api, model, loaded, engines)),
            Err(error) => lines.push(failed(api, model, &error)),
        }
    }
    if engines.is_empty() {
        let reasons: Vec<_> = lines.iter().filter_map(|line| line.outcome.as_ref().err().cloned()).collect();
        bail!("no model could be loaded: {}", reasons.join("; "));
    }
    // In the order of the settings, whatever failed first.
    lines.sort_by_key(|line| settings.models.iter().position(|model| model.name == line.name));
    Ok(lines)
}

fn ready(api: &Api, model: &ModelSettings, loaded: Loaded, engines: &mut Vec<EngineHandle>) -> ModelLine {
    let Loaded { engine, text, facts } = loaded;
    engines.push(engine.clone());
    api.models.put(served_model(api, model, ModelState::Ready(Arc::new(ReadyModel { engine, text }))));
    info!(model = model.name, "model `{}` is ready: {}", model.name, facts.description);
    ModelLine { name: model.name.clone(), source: model.source.to_string(), outcome: Ok(facts) }
}

fn failed(api: &Api, model: &ModelSettings, error: &anyhow::Error) -> ModelLine {
    let reason = format!("{error:#}");
    error!(model = model.name, "{reason}");
    api.models.put(served_model(api, model, ModelState::Failed { reason: reason.clone() }));
    ModelLine { name: model.name.clone(), source: model.source.to_string(), outcome: Err(reason) }
}

fn served_model(api: &Api, model: &ModelSettings, state: ModelState) -> ServedModel {
    ServedModel {
        name: model.name.clone(),
        owned_by: OWNED_BY.into(),
        created: api.clock.now_us() / 1_000_000,
        url: None,
        fingerprint: fingerprint(model),
        state,
    }
}

/// Changes when the model's source or the program does, as `system_fingerprint` promises.
fn fingerprint(model: &ModelSettings) -> String {
    let digest = Sha256::digest(format!("{}\n{}\n{:?}", env!("CARGO_PKG_VERSION"), model.source, model.kv_dtype));
    digest.iter().take(6).fold("fp_".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> anyhow::Result<T> + Send + 'static) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the loading thread ended early")?
}
