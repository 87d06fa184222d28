//! The models this process serves: names to engines, changed while requests run.
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use millgate_models::text::ModelText;
use serde_json::{Map, Value};

use super::load_progress::LoadProgress;
use crate::engine::{EngineHandle, EngineTotals};

/// Short texts that go to the pool for each that held up others: a machine that was busy is forgiven, a slow template is not.
const SLOW_PENALTY: u32 = 100;

/// What a client may know about a model, and the engine behind it.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// The name requests use.
    pub name: String,
    /// Who the model list says owns it.
    pub owned_by: String,
    /// When it was first declared, in seconds since the Unix epoch; a restart does not change it.
    pub created: i64,
    /// Its own base URL, if it has one to tell.
    pub url: Option<String>,
    /// Changes whenever answers could: weights, quantisation, program version.
    pub fingerprint: String,
    /// Where it is configured, in words; `None` for a model that was created through the API.
    pub configured_in: Option<&'static str>,
    /// Its own settings, as the API shows them.
    pub env: Map<String, Value>,
    /// True when source or settings changed since it was loaded.
    pub needs_reload: bool,
    /// Counts of its engines that have ended, so that counters survive a reload.
    pub past: EngineTotals,
    /// Whether it answers.
    pub state: ModelState,
}

/// How far a model is.
#[derive(Clone, Debug)]
pub enum ModelState {
    /// Being fetched or loaded.
    Loading(Arc<LoadProgress>),
    /// It could not be loaded.
    Failed {
        /// Why, for an administrator.
        reason: String,
    },
    /// It answers.
    Ready(Arc<ReadyModel>),
    /// It takes nothing new; what runs may finish.
    Unloading(EngineHandle),
    /// It is known, takes no memory and does not answer.
    Unloaded,
}

/// A model that answers.
#[derive(Debug)]
pub struct ReadyModel {
    /// Where requests go.
    pub engine: EngineHandle,
    /// Text to tokens and back.
    pub text: ModelText,
    /// Short texts that go to the pool because its template or tokenizer took long over one.
    slow_to_read: AtomicU32,
}

impl ServedModel {
    /// The engine and the tokenizer, once the model is ready.
    pub fn ready(&self) -> Option<&Arc<ReadyModel>> {
        match &self.state {
            ModelState::Ready(ready) => Some(ready),
            _ => None,
        }
    }

    /// Gauges of its engine, if it has one, and counts over all its engines since the start of the process.
    pub fn totals(&self) -> EngineTotals {
        self.engine().map(|engine| engine.status().totals).unwrap_or_default().after(&self.past)
    }

    /// False while something is wrong with it: it could not be loaded, or its engine makes no progress.
    pub fn is_healthy(&self) -> bool {
        match &self.state {
            ModelState::Failed { .. } => false,
            _ => self.engine().is_none_or(|engine| engine.status().is_healthy),
        }
    }

    fn engine(&self) -> Option<&EngineHandle> {
        match &self.state {
            ModelState::Ready(ready) => Some(&ready.engine),
            ModelState::Unloading(engine) => Some(engine),
            ModelState::Loading(_) | ModelState::Failed { .. } | ModelState::Unloaded => None,
        }
    }

    /// Prompt and completion tokens that fit together; `None` until the model is loaded.
    pub fn context_window(&self) -> Option<usize> {
        self.ready().map(|ready| ready.context_window())
    }
}

impl ReadyModel {
    /// A model whose engine runs.
    pub fn new(engine: EngineHandle, text: ModelText) -> Self {
        Self { engine, text, slow_to_read: AtomicU32::new(0) }
    }

    /// Whether a short text can be read where it arrives, without holding up others. One that did is paid for by the next.
    pub(crate) fn is_quick_to_read(&self) -> bool {
        let pay = |left: u32| left.checked_sub(1);
        self.slow_to_read.load(Ordering::Relaxed) == 0
            || self.slow_to_read.fetch_update(Ordering::Relaxed, Ordering::Relaxed, pay).is_err()
    }

    /// Remembers that a short text has held up others.
    pub(crate) fn note_slow_to_read(&self) {
        self.slow_to_read.store(SLOW_PENALTY, Ordering::Relaxed);
    }

    /// Prompt and completion tokens that fit together: what the model knows and its cache can hold.
    pub fn context_window(&self) -> usize {
        let spec = self.engine.spec();
        spec.context_window.min(spec.cache_tokens)
    }
}

/// All models of the process; cheap to clone, read without a lock.
#[derive(Clone, Debug, Default)]
pub struct Models(Arc<ArcSwap<BTreeMap<String, Arc<ServedModel>>>>);

impl Models {
    /// Adds a model or replaces the one of that name.
    pub fn put(&self, model: ServedModel) {
        let model = Arc::new(model);
        self.0.rcu(|models| {
            let mut models = BTreeMap::clone(models);
            models.insert(model.name.clone(), Arc::clone(&model));
            models
        });
    }

    /// Forgets a model; requests it is answering go on.
    pub fn remove(&self, name: &str) {
        self.0.rcu(|models| {
            let mut models = BTreeMap::clone(models);
            models.remove(name);
            models
        });
    }

    /// The model of that name.
    pub fn get(&self, name: &str) -> Option<Arc<ServedModel>> {
        self.0.load().get(name).cloned()
    }

    /// All models, by name.
    pub fn all(&self) -> Vec<Arc<ServedModel>> {
        self.0.load().values().cloned().collect()
    }
}
