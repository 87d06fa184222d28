//! A running server: started in order, stopped in reverse, nothing forgotten.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow};
use millgate_kernels::Pool;
use millgate_models::Progress;
use tokio::net::TcpListener;
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::api_server::ApiServer;
use super::declare::declared;
use super::documents::HttpDocuments;
use super::first_models::{created_before, load_configured};
use super::fleet::{Fleet, House};
use super::live_settings::live_settings;
use super::load;
use super::slot::Slot;
use super::summary::{ModelLine, Summary};
use super::tier_folder::TierFolder;
use super::webhook::Webhook;
use crate::api::{self, Api, ApiParts, Lifecycle, ModelOrder, ModelOrders, Models};
use crate::config::{Settings, effective_document};
use crate::governance::ports::Records;
use crate::governance::{Clock, Governor, NoReviews, Secret, SystemClock, TokenReviews};
use crate::store::{self, MemoryCounters, SqliteRecords};
use crate::telemetry::{Metrics, Tracer};

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
    /// Absent until the models of the start are loaded.
    fleet: Option<Fleet>,
    /// What follows files; ends before the stores do.
    followers: TaskTracker,
    stop_following: CancellationToken,
    governor: Governor,
    records: Arc<dyn Records>,
    tracer: Tracer,
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
        let (api, mut parts, orders) = found(settings, tell_key).await?;
        let listen = local_address(&listener)?;
        let ops_listen = ops_listener.as_ref().map(local_address).transpose()?;
        parts.listen(listener, ops_listener, &api);

        let pool = Arc::new(settings.threads.map_or_else(Pool::for_this_machine, Pool::new));
        let house = House {
            settings: Arc::new(settings.clone()),
            pool: Arc::clone(&pool),
            models: api.models.clone(),
            bound_bytes: load::bound_bytes(settings.memory_limit),
        };
        let (lines, slots) = match first_models(&house, &api.governor, &progress).await {
            Ok(loaded) => loaded,
            Err(error) => {
                parts.stop().await;
                return Err(error);
            }
        };
        parts.fleet = Some(Fleet::start(house, orders, slots));
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
            let (metrics, stop) = (api.metrics.clone(), self.stop_listening.clone());
            self.listeners.spawn(async move { api::serve(listener, router, &config, metrics, stop).await });
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
        if let Some(fleet) = &self.fleet {
            fleet.drain();
        }
        if !self.lifecycle.drained(self.drain_timeout).await {
            warn!("the drain time is over; what still runs ends with an error now and is charged nothing");
        }
        if let Some(fleet) = self.fleet {
            fleet.end().await;
        }
        // With their engines gone, generations get their terminal events and settle.
        if !self.lifecycle.drained(CLOSE_WAIT).await {
            error!("some requests did not settle; they are recovered from the journal at the next start");
        }
        self.stop_listening.cancel();
        if tokio::time::timeout(CLOSE_WAIT, self.listeners.wait()).await.is_err() {
            warn!("some connections did not close in time");
        }
        self.stop_following.cancel();
        self.followers.wait().await;
        self.governor.shutdown().await;
        self.records.close().await;
        self.tracer.shutdown(CLOSE_WAIT).await;
        info!("stopped: the ledger is written");
    }
}

/// Store, governance and the API's state, without models and listeners.
async fn found(
    settings: &Settings,
    tell_key: &(dyn Fn(&Secret) + Sync),
) -> anyhow::Result<(Api, Parts, mpsc::Receiver<ModelOrder>)> {
    let store_config = store::Config { data_dir: settings.data_dir.clone(), ..store::Config::default() };
    let records: Arc<dyn Records> = SqliteRecords::open(&store_config)
        .await
        .map(Arc::new)
        .with_context(|| format!("cannot open the data directory `{}`", settings.data_dir.display()))?;
    let clock: Arc<dyn Clock> = Arc::new(SystemClock::new());
    let counters = Arc::new(MemoryCounters::new(Arc::clone(&clock)));
    let config = settings.governance();
    let documents = Arc::new(HttpDocuments::new()?);
    let reviews: Arc<dyn TokenReviews> = match &config.kubernetes {
        Some(cluster) => {
            Arc::new(ApiServer::new(cluster).context("cannot ask the Kubernetes API server about tokens")?)
        }
        None => Arc::new(NoReviews),
    };
    let (records_too, clock_too) = (Arc::clone(&records), Arc::clone(&clock));
    let (governor, first) = Governor::start_with(records_too, counters, clock_too, config, documents, reviews)
        .await
        .context("cannot start governance")?;
    if let Some(key) = &first.admin_key {
        tell_key(key);
    }
    governor.note_config(&effective_document(settings)).await.context("cannot note the configuration")?;
    let metrics = Arc::new(Metrics::new());
    let (followers, stop_following) = (TaskTracker::new(), CancellationToken::new());
    if let Some(folder) = &settings.tier_folder {
        // Before the models: they may be published to tiers that only the folder declares.
        let mut folder = TierFolder::new(folder.clone(), governor.clone(), metrics.clone());
        folder.look().await;
        followers.spawn(folder.follow(settings.tier_poll, stop_following.clone()));
    }
    followers.close();
    let models: Vec<_> = settings.models.iter().map(declared).collect();
    governor.declare_models(&models).await.context("cannot make the configured models known")?;
    let now = Duration::from_micros(u64::try_from(clock.now_us()).unwrap_or(0));
    let tracer = Tracer::start(&settings.traces, now, &Handle::current()).context("cannot start traces")?;
    let lifecycle = Arc::new(Lifecycle::default());
    let (orders, desk) = ModelOrders::channel();
    let api = Api::new(ApiParts {
        governor: governor.clone(),
        models: Models::default(),
        orders,
        config: settings.api(),
        settings: live_settings(settings, followers.clone()),
        clock,
        metrics,
        tracer: tracer.clone(),
        lifecycle: Arc::clone(&lifecycle),
    });
    if let Some(webhook) = &settings.notices.webhook {
        let secret = webhook.secret.read().map_err(|problem| anyhow!(problem)).context("cannot sign quota notices")?;
        let (url, records) = (webhook.url.clone(), Arc::clone(&records));
        followers.spawn(Webhook::new(url, secret, records, Arc::clone(&api.clock))?.follow(stop_following.clone()));
    }
    followers.spawn(api::watch_books(api.clone(), stop_following.clone()));
    let parts = Parts {
        lifecycle,
        drain_timeout: settings.drain_timeout,
        stop_listening: CancellationToken::new(),
        listeners: TaskTracker::new(),
        fleet: None,
        followers,
        stop_following,
        governor,
        records,
        tracer,
    };
    Ok((api, parts, desk))
}

/// The configured models, loaded, and those of the store, known.
async fn first_models(
    house: &House,
    governor: &Governor,
    progress: &Arc<dyn Progress>,
) -> anyhow::Result<(Vec<ModelLine>, Vec<Slot>)> {
    let records = governor.models(&governor.operator()).await.context("cannot read the known models")?;
    let (lines, mut slots) = load_configured(house, &records, progress).await?;
    slots.extend(created_before(house, &records));
    Ok((lines, slots))
}

async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; if another program has it, choose another with `--listen 127.0.0.1:8081`")
    })
}

fn local_address(listener: &TcpListener) -> anyhow::Result<SocketAddr> {
    listener.local_addr().context("cannot tell the listener's address")
}
