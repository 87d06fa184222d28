//! One model of this process: what is wanted of it, how far it is, and what follows from that.

use std::sync::Arc;

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use tokio_util::sync::CancellationToken;

use super::plan::Share;
use crate::api::{LoadProgress, ModelState, Models, ReadyModel, ServedModel};
use crate::config::ModelSettings;
use crate::engine::{EngineHandle, EngineTotals};

/// Who the model list says owns the models of this server.
const OWNED_BY: &str = "llm";

/// What is wanted of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// It answers.
    Serve,
    /// It is known and takes no memory.
    Rest,
    /// It is forgotten.
    Gone,
}

/// A load under way.
#[derive(Debug)]
pub(super) struct Job {
    /// What it loads; the slot's settings may have changed since.
    pub(super) settings: ModelSettings,
    pub(super) progress: Arc<LoadProgress>,
    pub(super) cancelled: CancellationToken,
}

/// How far a model is.
#[derive(Debug)]
pub(super) enum Stage {
    /// Nothing of it is loaded.
    Resting,
    /// Nothing of it is loaded, because of this.
    Failed(String),
    /// Its files are fetched and checked.
    Opening(Job),
    /// Its weights are read into the share that it was given.
    Loading(Job, Share),
    /// It answers.
    Serving(Serving),
    /// What runs may finish; then its engine ends.
    Draining(EngineHandle, u64),
}

/// A model that answers.
#[derive(Debug)]
pub(super) struct Serving {
    /// What it was loaded with.
    pub(super) settings: ModelSettings,
    pub(super) ready: Arc<ReadyModel>,
    /// Its share of the memory.
    pub(super) bytes: u64,
}

/// What to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing until something happens.
    Wait,
    /// Begin to load.
    Open,
    /// Give the load up.
    Cancel,
    /// Let what runs finish, then free the memory.
    Drain,
    /// Forget the model.
    Remove,
}

/// A model and everything its owner knows about it.
#[derive(Debug)]
pub(super) struct Slot {
    /// What the next load uses.
    pub(super) settings: ModelSettings,
    /// The model's own settings as the API shows them.
    pub(super) env: Map<String, Value>,
    /// When it was first declared, in seconds since the Unix epoch.
    pub(super) created: i64,
    /// Counts of its engines that have ended.
    pub(super) past: EngineTotals,
    pub(super) want: Want,
    pub(super) stage: Stage,
}

impl Job {
    pub(super) fn new(settings: ModelSettings) -> Self {
        let progress = Arc::new(LoadProgress::waiting());
        Self { settings, progress, cancelled: CancellationToken::new() }
    }
}

impl Slot {
    /// What follows from what is wanted and how far it is.
    pub(super) fn next_step(&self) -> Step {
        match (&self.stage, self.want) {
            (Stage::Draining(..), _) => Step::Wait,
            (Stage::Opening(job) | Stage::Loading(job, _), Want::Serve) if job.settings == self.settings => Step::Wait,
            (Stage::Opening(_) | Stage::Loading(..), _) => Step::Cancel,
            (Stage::Serving(_), Want::Serve) => Step::Wait,
            (Stage::Serving(_), Want::Rest | Want::Gone) => Step::Drain,
            (Stage::Resting | Stage::Failed(_), Want::Serve) => Step::Open,
            (Stage::Resting | Stage::Failed(_), Want::Rest) => Step::Wait,
            (Stage::Resting | Stage::Failed(_), Want::Gone) => Step::Remove,
        }
    }

    /// True for a model that answers otherwise than it should, or not at all, until it is loaded again.
    pub(super) fn needs_reload(&self) -> bool {
        match &self.stage {
            Stage::Serving(serving) => serving.settings != self.settings || !serving.ready.engine.status().is_healthy,
            _ => false,
        }
    }

    /// The memory it holds, in bytes.
    pub(super) fn held_bytes(&self) -> u64 {
        match &self.stage {
            Stage::Resting | Stage::Failed(_) | Stage::Opening(_) => 0,
            Stage::Loading(_, share) => share.total_bytes,
            Stage::Serving(serving) => serving.bytes,
            Stage::Draining(_, bytes) => *bytes,
        }
    }

    /// The engine, while there is one.
    pub(super) fn engine(&self) -> Option<&EngineHandle> {
        match &self.stage {
            Stage::Serving(serving) => Some(&serving.ready.engine),
            Stage::Draining(engine, _) => Some(engine),
            _ => None,
        }
    }

    /// Shows the model to the API as it is now; what is to be forgotten does not exist for it any more.
    pub(super) fn publish(&self, models: &Models) {
        if self.want == Want::Gone {
            models.remove(&self.settings.name);
            return;
        }
        let (loaded, state) = match &self.stage {
            Stage::Resting => (&self.settings, ModelState::Unloaded),
            Stage::Failed(reason) => (&self.settings, ModelState::Failed { reason: reason.clone() }),
            Stage::Opening(job) | Stage::Loading(job, _) => {
                (&job.settings, ModelState::Loading(Arc::clone(&job.progress)))
            }
            Stage::Serving(serving) => (&serving.settings, ModelState::Ready(Arc::clone(&serving.ready))),
            Stage::Draining(engine, _) => (&self.settings, ModelState::Unloading(engine.clone())),
        };
        models.put(ServedModel {
            name: self.settings.name.clone(),
            owned_by: OWNED_BY.into(),
            created: self.created,
            url: None,
            fingerprint: fingerprint(loaded),
            configured_in: self.settings.origin.place(),
            env: self.env.clone(),
            needs_reload: matches!(&self.stage, Stage::Serving(serving) if serving.settings != self.settings),
            past: self.past,
            state,
        });
    }
}

/// Changes when the model's source or the program does, as `system_fingerprint` promises.
fn fingerprint(model: &ModelSettings) -> String {
    let ModelSettings { source, kv_dtype, quantize, .. } = model;
    let digest = Sha256::digest(format!("{}\n{source}\n{kv_dtype:?}\n{quantize:?}", env!("CARGO_PKG_VERSION")));
    digest.iter().take(6).fold("fp_".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{ModelOrigin, RawModel, resolve_model};
    use crate::engine::fake::{FakeModel, FakeOptions};

    fn settings(source: &str) -> ModelSettings {
        let raw = RawModel { name: "m".into(), source: source.into(), ..RawModel::default() };
        resolve_model(raw, ModelOrigin::Api).unwrap()
    }

    fn slot(want: Want, stage: Stage) -> Slot {
        Slot {
            settings: settings("builtin:demo"),
            env: Map::new(),
            created: 0,
            past: EngineTotals::default(),
            want,
            stage,
        }
    }

    fn engine() -> EngineHandle {
        let model = Box::new(FakeModel::new(FakeOptions::default()));
        crate::engine::spawn("m", model, FakeModel::text(), crate::engine::Config::default()).unwrap()
    }

    fn serving(source: &str) -> Stage {
        let ready = Arc::new(ReadyModel::new(engine(), FakeModel::text()));
        Stage::Serving(Serving { settings: settings(source), ready, bytes: 7 })
    }

    #[test]
    fn what_follows_from_every_stage_and_wish() {
        use Step::{Cancel, Drain, Open, Remove, Wait};
        let opening = |source: &str| Stage::Opening(Job::new(settings(source)));
        let stages: [(&dyn Fn() -> Stage, [Step; 3]); 6] = [
            (&|| Stage::Resting, [Open, Wait, Remove]),
            (&|| Stage::Failed("broken".into()), [Open, Wait, Remove]),
            (&|| opening("builtin:demo"), [Wait, Cancel, Cancel]),
            (&|| opening("hf:other/model"), [Cancel, Cancel, Cancel]),
            (&|| serving("builtin:demo"), [Wait, Drain, Drain]),
            (&|| Stage::Draining(engine(), 7), [Wait, Wait, Wait]),
        ];
        for (stage, steps) in stages {
            for (want, step) in [Want::Serve, Want::Rest, Want::Gone].into_iter().zip(steps) {
                let slot = slot(want, stage());
                assert_eq!(slot.next_step(), step, "{:?} while {:?}", want, slot.stage);
            }
        }
    }

    #[test]
    fn a_model_with_another_source_than_it_was_loaded_from_needs_a_reload_and_says_so() {
        let models = Models::default();
        let changed = slot(Want::Serve, serving("hf:other/model"));
        changed.publish(&models);
        assert!(changed.needs_reload() && models.get("m").unwrap().needs_reload);
        assert!(models.get("m").unwrap().ready().is_some(), "it goes on answering");
        let same = slot(Want::Serve, serving("builtin:demo"));
        same.publish(&models);
        assert!(!same.needs_reload() && !models.get("m").unwrap().needs_reload);
        slot(Want::Gone, Stage::Draining(engine(), 7)).publish(&models);
        assert!(models.get("m").is_none(), "forgotten at once, although it still drains");
    }

    #[test]
    fn memory_is_held_until_the_engine_has_ended() {
        assert_eq!(slot(Want::Rest, Stage::Draining(engine(), 7)).held_bytes(), 7);
        assert_eq!(slot(Want::Serve, serving("builtin:demo")).held_bytes(), 7);
        assert_eq!(slot(Want::Rest, Stage::Resting).held_bytes(), 0);
    }
}
