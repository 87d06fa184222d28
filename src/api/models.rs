//! The models this process serves: names to engines, changed while requests run.
use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use millgate_models::text::ModelText;

use crate::engine::EngineHandle;

/// What a client may know about a model, and the engine behind it.
#[derive(Clone, Debug)]
pub struct ServedModel {
    /// The name requests use.
    pub name: String,
    /// Who the model list says owns it.
    pub owned_by: String,
    /// When it was declared, in seconds since the Unix epoch.
    pub created: i64,
    /// Its own base URL, if it has one to tell.
    pub url: Option<String>,
    /// Changes whenever answers could: weights, quantisation, program version.
    pub fingerprint: String,
    /// Whether it answers.
    pub state: ModelState,
}

/// How far a model is.
#[derive(Clone, Debug)]
pub enum ModelState {
    /// Being fetched or loaded.
    Loading {
        /// What is being done, in a word or two.
        phase: String,
        /// Done so far, 0 to 1, when that is known.
        progress: Option<f32>,
    },
    /// It could not be loaded.
    Failed {
        /// Why, for an administrator.
        reason: String,
    },
    /// It answers.
    Ready(Arc<ReadyModel>),
}

/// A model that answers.
#[derive(Debug)]
pub struct ReadyModel {
    /// Where requests go.
    pub engine: EngineHandle,
    /// Text to tokens and back.
    pub text: ModelText,
}

impl ServedModel {
    /// The engine and the tokenizer, once the model is ready.
    pub fn ready(&self) -> Option<&Arc<ReadyModel>> {
        match &self.state {
            ModelState::Ready(ready) => Some(ready),
            ModelState::Loading { .. } | ModelState::Failed { .. } => None,
        }
    }

    /// Prompt and completion tokens that fit together; `None` until the model is loaded.
    pub fn context_window(&self) -> Option<usize> {
        self.ready().map(|ready| ready.context_window())
    }
}

impl ReadyModel {
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
