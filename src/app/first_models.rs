//! The models of the configuration at the start: all opened, the memory divided among them, then loaded in order.

use std::collections::VecDeque;
use std::sync::Arc;

use anyhow::bail;
use millgate_models::Progress;
use tracing::{error, info};

use super::fleet::{House, slot, slot_of};
use super::load::{self, Loaded, claims};
use super::plan::share_memory;
use super::slot::{Job, Serving, Slot, Stage, Want};
use super::summary::ModelLine;
use super::watched::Watched;
use crate::api::{KeptSettings, ModelSpec, ReadyModel};
use crate::config::{ModelOrigin, RawModel, resolve_model};
use crate::governance::records::ModelRecord;

/// Loads the configured models one after another. A model that fails is reported and the others go on.
///
/// # Errors
/// They do not fit together, or none could be loaded.
///
/// # Cancel
/// What is being read when the future is dropped is given up.
pub(super) async fn load_configured(
    house: &House,
    records: &[ModelRecord],
    terminal: &Arc<dyn Progress>,
) -> anyhow::Result<(Vec<ModelLine>, Vec<Slot>)> {
    let (mut slots, mut opened) = (Vec::new(), Vec::new());
    let cancelled = tokio_util::sync::CancellationToken::new();
    let _given_up = cancelled.clone().drop_guard();
    for model in &house.settings.models {
        let mut slot = slot(model.clone(), created(records, &model.name), Want::Serve);
        let job = Job { cancelled: cancelled.clone(), ..Job::new(model.clone()) };
        job.progress.begin("open", None);
        let (work, inside, watched) = (model.clone(), house.clone(), watched(&job, terminal));
        slot.stage = Stage::Opening(job);
        slot.publish(&house.models);
        // Where a model has to compute is seen from what those before it will take.
        let before = std::mem::take(&mut opened);
        let (before, ready) = load::blocking(move || {
            let promised = |device| claims(before.iter().map(|(_, opened)| opened), device);
            let ready = load::open(&work, &inside.settings, &watched);
            let ready = ready.map(|unplaced| unplaced.place(&inside.settings, &inside.pool, &promised));
            Ok((before, ready))
        })
        .await?;
        opened = before;
        match ready {
            Ok(ready) => opened.push((slots.len(), ready)),
            Err(error) => fail(&mut slot, &error),
        }
        slot.publish(&house.models);
        slots.push(slot);
    }
    let wishes: Vec<_> = opened.iter().map(|(_, opened)| opened.wish().clone()).collect();
    let shares = share_memory(&wishes, house.bound_bytes)?;
    let mut loaded_facts = Vec::new();
    let mut waiting: VecDeque<_> = opened.into_iter().zip(shares).collect();
    while let Some(((index, opened), share)) = waiting.pop_front() {
        let reserve = claims(waiting.iter().map(|((_, opened), _)| opened), opened.device());
        let (slot, inside) = (&mut slots[index], house.clone());
        let Stage::Opening(job) = std::mem::replace(&mut slot.stage, Stage::Resting) else { continue };
        let (watched, bytes, settings) = (watched(&job, terminal), share.total_bytes, job.settings.clone());
        slot.stage = Stage::Loading(job, share.clone());
        slot.publish(&house.models);
        match load::blocking(move || load::load(opened, &share, reserve, &inside.settings, &inside.pool, &watched))
            .await
        {
            Ok(Loaded { engine, text, facts }) => {
                info!(model = settings.name, "model `{}` is ready: {}", settings.name, facts.description);
                let ready = Arc::new(ReadyModel::new(engine, text));
                slot.stage = Stage::Serving(Serving { settings, ready, bytes });
                loaded_facts.push((index, facts));
            }
            Err(error) => fail(slot, &error),
        }
        slot.publish(&house.models);
    }
    let lines = slots.iter().enumerate().map(|(index, slot)| {
        let facts = loaded_facts.iter().find(|(loaded, _)| *loaded == index).map(|(_, facts)| facts.clone());
        line(slot, facts.ok_or_else(String::new))
    });
    let lines: Vec<ModelLine> = lines.collect();
    if loaded_facts.is_empty() {
        let reasons: Vec<_> = lines.iter().filter_map(|line| line.outcome.as_ref().err().cloned()).collect();
        bail!("no model could be loaded: {}", reasons.join("; "));
    }
    Ok((lines, slots))
}

/// The models that were created through the API and are not configured now; the wanted ones load once the server is up.
pub(super) fn created_before(house: &House, records: &[ModelRecord]) -> Vec<Slot> {
    let is_configured = |name: &str| house.settings.models.iter().any(|model| model.name == name);
    let records = records.iter().filter(|record| !is_configured(&record.name));
    let slots = records.filter_map(|record| {
        let kept = KeptSettings::read(&record.settings);
        kept.is_from_api.then(|| slot_of_record(record, kept))
    });
    slots.inspect(|slot| slot.publish(&house.models)).collect()
}

fn slot_of_record(record: &ModelRecord, kept: KeptSettings) -> Slot {
    let want = if kept.is_wanted { Want::Serve } else { Want::Rest };
    let spec = ModelSpec {
        name: record.name.clone(),
        source: record.source.clone(),
        hardware: kept.hardware,
        env: kept.env,
        created_at_us: record.created_at_us,
    };
    let env = spec.env.clone();
    slot_of(spec, want).unwrap_or_else(|error| {
        // An older version accepted it. It stays known with the reason, and can be changed or deleted.
        error!(model = record.name, "{error}");
        let raw = RawModel { name: "x".into(), source: "builtin:demo".into(), ..RawModel::default() };
        let mut settings = resolve_model(raw, ModelOrigin::Api).expect("the bundled model is always a source");
        settings.name.clone_from(&record.name);
        let unusable = slot(settings, record.created_at_us / 1_000_000, Want::Rest);
        Slot { env, stage: Stage::Failed(error.to_string()), ..unusable }
    })
}

fn created(records: &[ModelRecord], name: &str) -> i64 {
    records.iter().find(|record| record.name == name).map_or(0, |record| record.created_at_us / 1_000_000)
}

fn fail(slot: &mut Slot, error: &anyhow::Error) {
    let reason = format!("{error:#}");
    error!(model = slot.settings.name, "{reason}");
    // A configured model that failed at the start is loaded again only when somebody orders it.
    slot.want = Want::Rest;
    slot.stage = Stage::Failed(reason);
}

fn line(slot: &Slot, outcome: Result<super::summary::LoadedModel, String>) -> ModelLine {
    let reason = match &slot.stage {
        Stage::Failed(reason) => reason.clone(),
        _ => String::new(),
    };
    ModelLine {
        name: slot.settings.name.clone(),
        source: slot.settings.source.to_string(),
        outcome: outcome.map_err(|_| reason),
    }
}

fn watched(job: &Job, terminal: &Arc<dyn Progress>) -> Watched {
    Watched { shown: Arc::clone(&job.progress), terminal: Arc::clone(terminal), cancelled: job.cancelled.clone() }
}
