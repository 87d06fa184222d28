//! The owner of all models of this process: takes orders, runs loads and unloads, and gives out memory.
//!
//! One task holds every model's slot. Loads and drains run beside it and report back, so orders are answered at once.
//! `slot` decides what follows from what; this file does it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use millgate_kernels::Pool;
use millgate_models::{GpuReserve, Silent};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use super::load::{self, Loaded, Opened};
use super::model_spec::{check_place, env_of, settings_of};
use super::plan::share_of_rest;
use super::slot::{Job, Serving, Slot, Stage, Step, Want};
use super::turns::{Turn, Turns};
use super::watched::Watched;
use crate::api::{Answer, ModelOrder, ModelSpec, Models, OrderError, ReadyModel};
use crate::config::{ModelSettings, Settings};
use crate::engine::{EngineHandle, EngineTotals};

/// How long loads may take to notice that the server ends. A file that is being downloaded is not interrupted; what
/// arrived of it is kept for the next attempt.
const LAST_WAIT: Duration = Duration::from_secs(5);

/// What all loads share.
#[derive(Clone)]
pub(super) struct House {
    pub(super) settings: Arc<Settings>,
    pub(super) pool: Arc<Pool>,
    /// Where the API looks models up.
    pub(super) models: Models,
    /// What all models may take together, fixed at the start.
    pub(super) bound_bytes: u64,
}

/// The running owner.
pub(super) struct Fleet {
    phase: watch::Sender<Phase>,
    task: JoinHandle<()>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Phase {
    Open,
    Draining,
    Ending,
}

impl Fleet {
    /// Starts the owner with the models of the start; those that are wanted and not loaded begin to load.
    pub(super) fn start(house: House, orders: mpsc::Receiver<ModelOrder>, slots: Vec<Slot>) -> Self {
        let (phase, seen) = watch::channel(Phase::Open);
        let slots: BTreeMap<_, _> = slots.into_iter().map(|slot| (slot.settings.name.clone(), slot)).collect();
        let turns = Turns::new();
        let owner = Owner { house, slots, jobs: JoinSet::new(), turns, is_closing: false };
        Self { phase, task: TaskTracker::new().spawn(owner.run(orders, seen)) }
    }

    /// Takes no orders from now on, gives loads up, and lets no engine take new requests.
    pub(super) fn drain(&self) {
        self.phase.send_replace(Phase::Draining);
    }

    /// Ends every engine and waits for their threads, and a bounded time for loads.
    pub(super) async fn end(self) {
        self.phase.send_replace(Phase::Ending);
        if let Err(error) = self.task.await {
            error!(%error, "the owner of the models ended early");
        }
    }
}

/// A model's settings as a slot that nothing is loaded for yet.
pub(super) fn slot(settings: ModelSettings, created: i64, want: Want) -> Slot {
    Slot { env: env_of(&settings), settings, created, past: EngineTotals::default(), want, stage: Stage::Resting }
}

/// The slot of a model that was created through the API; one whose settings are no longer possible fails at once.
pub(super) fn slot_of(spec: ModelSpec, want: Want) -> Result<Slot, OrderError> {
    let settings = settings_of(&spec)?;
    Ok(Slot { env: spec.env, created: spec.created_at_us / 1_000_000, ..slot(settings, 0, want) })
}

struct Owner {
    house: House,
    slots: BTreeMap<String, Slot>,
    jobs: JoinSet<Ended>,
    turns: Turns,
    is_closing: bool,
}

/// What a job reports.
enum Ended {
    Opened(String, Box<anyhow::Result<(Opened, Turn)>>),
    Loaded(String, anyhow::Result<Loaded>),
    Drained(String),
    Checked,
}

impl Owner {
    async fn run(mut self, mut orders: mpsc::Receiver<ModelOrder>, mut phase: watch::Receiver<Phase>) {
        let names: Vec<String> = self.slots.keys().cloned().collect();
        names.iter().for_each(|name| self.advance(name));
        loop {
            tokio::select! {
                Some(ended) = self.jobs.join_next() => self.heed(ended),
                Some(order) = orders.recv() => self.obey(order),
                changed = phase.changed() => {
                    let phase = if changed.is_ok() { *phase.borrow_and_update() } else { Phase::Ending };
                    if phase != Phase::Open {
                        orders.close();
                        self.close();
                    }
                    if phase == Phase::Ending {
                        break;
                    }
                }
            }
        }
        self.end().await;
    }

    fn obey(&mut self, order: ModelOrder) {
        // Whoever asked may have gone; the order stands all the same.
        let reply = |answer: Answer, result| drop(answer.send(result));
        if self.is_closing {
            let (ModelOrder::Check(_, answer)
            | ModelOrder::Load(_, _, answer)
            | ModelOrder::Replace(_, answer)
            | ModelOrder::Unload(_, answer)
            | ModelOrder::Forget(_, answer)) = order;
            return reply(answer, Err(OrderError::Closed));
        }
        match order {
            ModelOrder::Check(spec, answer) => self.check(spec, answer),
            ModelOrder::Load(name, spec, answer) => reply(answer, self.load(&name, spec)),
            ModelOrder::Replace(spec, answer) => reply(answer, self.replace(spec)),
            ModelOrder::Unload(name, answer) => reply(answer, self.want(&name, Want::Rest)),
            ModelOrder::Forget(name, answer) => reply(answer, self.want(&name, Want::Gone)),
        }
    }

    fn check(&mut self, spec: ModelSpec, answer: Answer) {
        let folders = self.house.settings.model_folders.clone();
        self.jobs.spawn(async move {
            let settings = settings_of(&spec);
            // Following links may take long where the folder is on a network.
            let look = move || settings.and_then(|settings| check_place(&settings.source, &folders));
            let result = tokio::task::spawn_blocking(look).await.unwrap_or(Err(OrderError::Closed));
            drop(answer.send(result));
            Ended::Checked
        });
    }

    fn load(&mut self, name: &str, spec: Option<ModelSpec>) -> Result<(), OrderError> {
        if let Some(spec) = spec {
            let fresh = slot_of(spec, Want::Serve)?;
            match self.slots.get_mut(name) {
                Some(slot) => (slot.settings, slot.env, slot.created) = (fresh.settings, fresh.env, fresh.created),
                None => drop(self.slots.insert(name.to_owned(), fresh)),
            }
        }
        let slot = self.slots.get_mut(name).ok_or(OrderError::Unknown)?;
        slot.want = Want::Serve;
        if slot.needs_reload() {
            self.drain(name);
        } else {
            self.advance(name);
        }
        Ok(())
    }

    fn replace(&mut self, spec: ModelSpec) -> Result<(), OrderError> {
        let fresh = slot_of(spec, Want::Serve)?;
        let slot = self.slots.get_mut(&fresh.settings.name).ok_or(OrderError::Unknown)?;
        (slot.settings, slot.env) = (fresh.settings, fresh.env);
        // A load under way begins again; a model that rests, failed or answers waits for an order.
        match slot.next_step() {
            Step::Open | Step::Wait => slot.publish(&self.house.models),
            _ => {
                let name = slot.settings.name.clone();
                self.advance(&name);
            }
        }
        Ok(())
    }

    fn want(&mut self, name: &str, want: Want) -> Result<(), OrderError> {
        let slot = self.slots.get_mut(name).ok_or(OrderError::Unknown)?;
        slot.want = want;
        if want == Want::Rest && matches!(slot.stage, Stage::Failed(_)) {
            slot.stage = Stage::Resting;
        }
        self.advance(name);
        Ok(())
    }

    /// Does what follows for a model, and shows it as it is then.
    fn advance(&mut self, name: &str) {
        let Some(slot) = self.slots.get(name).filter(|_| !self.is_closing) else { return };
        match slot.next_step() {
            Step::Wait => slot.publish(&self.house.models),
            Step::Open => self.open(name),
            Step::Drain => self.drain(name),
            Step::Remove => {
                self.house.models.remove(name);
                self.slots.remove(name);
                info!("model `{name}` is forgotten");
            }
            Step::Cancel => {
                if let Stage::Opening(job) | Stage::Loading(job, _) = &slot.stage {
                    job.cancelled.cancel();
                    job.progress.begin("cancelling", None);
                }
                slot.publish(&self.house.models);
            }
        }
    }

    fn open(&mut self, name: &str) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let job = Job::new(slot.settings.clone());
        let (work, house, watched) = (job.settings.clone(), self.house.clone(), watched(&job));
        slot.stage = Stage::Opening(job);
        slot.publish(&self.house.models);
        let (name, turns) = (name.to_owned(), self.turns.clone());
        self.jobs.spawn(async move { Ended::Opened(name, Box::new(turns.open(work, house, watched).await)) });
    }

    fn drain(&mut self, name: &str) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let Some(engine) = slot.engine().cloned() else { return };
        slot.stage = Stage::Draining(engine.clone(), slot.held_bytes());
        slot.publish(&self.house.models);
        let (name, longest) = (name.to_owned(), self.house.settings.drain_timeout);
        self.jobs.spawn(async move {
            engine.drain();
            if tokio::time::timeout(longest, engine.drained()).await.is_err() {
                warn!(
                    "model `{name}` is unloaded although requests still ran after {longest:?}; they end with an error"
                );
            }
            engine.shutdown().await;
            Ended::Drained(name)
        });
    }

    fn heed(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        match ended {
            Ok(Ended::Opened(name, result)) => self.opened(&name, *result),
            Ok(Ended::Loaded(name, result)) => self.loaded(&name, result),
            Ok(Ended::Drained(name)) => self.drained(&name),
            Ok(Ended::Checked) => {}
            // Jobs catch the panics of what they run; one of their own leaves its model in the stage it had.
            Err(error) => error!(%error, "a job of the owner of the models ended early"),
        }
    }

    fn opened(&mut self, name: &str, result: anyhow::Result<(Opened, Turn)>) {
        let held = self.held();
        let Some(slot) = self.slots.get_mut(name) else { return };
        let Stage::Opening(job) = std::mem::replace(&mut slot.stage, Stage::Resting) else { return };
        let share = result.and_then(|(opened, turn)| {
            let share = share_of_rest(opened.wish(), self.house.bound_bytes, &held)?;
            Ok((opened, share, turn))
        });
        let (opened, share, turn) = match share {
            Ok(ready) if !job.cancelled.is_cancelled() => ready,
            Ok(_) => return self.advance(name),
            Err(error) => return self.failed(name, &job, &error),
        };
        let (house, watched) = (self.house.clone(), watched(&job));
        slot.stage = Stage::Loading(job, share.clone());
        slot.publish(&self.house.models);
        let name = name.to_owned();
        self.jobs.spawn(async move {
            let load =
                move || load::load(opened, &share, GpuReserve::default(), &house.settings, &house.pool, &watched);
            let result = load::blocking(load).await;
            drop(turn);
            Ended::Loaded(name, result)
        });
    }

    fn loaded(&mut self, name: &str, result: anyhow::Result<Loaded>) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        let bytes = slot.held_bytes();
        let Stage::Loading(job, _) = std::mem::replace(&mut slot.stage, Stage::Resting) else { return };
        let Loaded { engine, text, facts } = match result {
            Ok(loaded) => loaded,
            Err(error) => return self.failed(name, &job, &error),
        };
        let is_wanted = slot.want == Want::Serve && job.settings == slot.settings;
        let ready = Arc::new(ReadyModel::new(engine, text));
        slot.stage = Stage::Serving(Serving { settings: job.settings, ready, bytes });
        if is_wanted && !self.is_closing {
            info!(model = name, "model `{name}` is ready: {}", facts.description);
            self.advance(name);
        } else {
            self.drain(name);
        }
    }

    fn failed(&mut self, name: &str, job: &Job, error: &anyhow::Error) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        if job.cancelled.is_cancelled() {
            info!("the load of model `{name}` was given up");
            return self.advance(name);
        }
        let reason = format!("{error:#}");
        error!(model = name, "{reason}");
        slot.stage = Stage::Failed(reason);
        // It is not tried again by itself: what failed once, with the same files, fails again.
        slot.publish(&self.house.models);
    }

    fn drained(&mut self, name: &str) {
        let Some(slot) = self.slots.get_mut(name) else { return };
        if let Some(engine) = slot.engine() {
            slot.past = engine.status().totals.counts().after(&slot.past);
        }
        slot.stage = Stage::Resting;
        info!("model `{name}` is unloaded, its memory is free");
        self.advance(name);
    }

    /// Models and the memory they hold.
    fn held(&self) -> Vec<(String, u64)> {
        let held = self.slots.iter().map(|(name, slot)| (name.clone(), slot.held_bytes()));
        held.filter(|(_, bytes)| *bytes > 0).collect()
    }

    fn close(&mut self) {
        self.is_closing = true;
        for slot in self.slots.values() {
            if let Stage::Opening(job) | Stage::Loading(job, _) = &slot.stage {
                job.cancelled.cancel();
            }
            if let Some(engine) = slot.engine() {
                engine.drain();
            }
        }
    }

    async fn end(mut self) {
        let engines: Vec<EngineHandle> = self.slots.values().filter_map(|slot| slot.engine().cloned()).collect();
        for engine in engines {
            engine.shutdown().await;
        }
        let rest = async {
            while let Some(ended) = self.jobs.join_next().await {
                self.heed(ended);
            }
        };
        if tokio::time::timeout(LAST_WAIT, rest).await.is_err() {
            warn!("a model is still being fetched or read; it is left, what was downloaded is kept");
        }
    }
}

fn watched(job: &Job) -> Watched {
    Watched { shown: Arc::clone(&job.progress), terminal: Arc::new(Silent), cancelled: job.cancelled.clone() }
}
