//! Who may fetch and load a model now: two at a time, and one at a time onto a GPU.

use std::sync::Arc;

use anyhow::Context;
use millgate_models::{Device, GpuReserve};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use super::fleet::House;
use super::load::{self, Opened};
use super::model_spec::check_place;
use super::watched::Watched;
use crate::config::{ModelOrigin, ModelSettings};

/// Models fetched or loaded at the same time; more would only slow each other and those that answer.
const LOADS_AT_ONCE: usize = 2;
/// Models that look for room on a GPU, or are loaded there, at the same time: what one takes is known when it has it.
const GPU_LOADS_AT_ONCE: usize = 1;

/// Turns that are given to models loaded at run time.
#[derive(Clone)]
pub(super) struct Turns {
    any: Arc<Semaphore>,
    gpu: Arc<Semaphore>,
}

/// A model's turn, which ends when this is dropped.
pub(super) struct Turn {
    _any: OwnedSemaphorePermit,
    _gpu: Option<OwnedSemaphorePermit>,
}

impl Turns {
    pub(super) fn new() -> Self {
        Self { any: Arc::new(Semaphore::new(LOADS_AT_ONCE)), gpu: Arc::new(Semaphore::new(GPU_LOADS_AT_ONCE)) }
    }

    /// Opens a model when it is its turn, and finds its place when nobody else is on the way to a GPU.
    ///
    /// # Errors
    /// What is wrong with the files, named, or that the load was given up.
    pub(super) async fn open(
        self,
        model: ModelSettings,
        house: House,
        watched: Watched,
    ) -> anyhow::Result<(Opened, Turn)> {
        let cancelled = watched.cancelled.clone();
        let any = next(self.any, &cancelled).await?;
        watched.shown.begin("open", None);
        let settings = Arc::clone(&house.settings);
        let open = move || {
            if model.origin == ModelOrigin::Api {
                check_place(&model.source, &settings.model_folders)?;
            }
            load::open(&model, &settings, &watched)
        };
        let unplaced = load::blocking(open).await?;
        let gpu = if unplaced.may_use_gpu() { Some(next(self.gpu, &cancelled).await?) } else { None };
        let place = move || Ok(unplaced.place(&house.settings, &house.pool, &|_| GpuReserve::default()));
        let opened = load::blocking(place).await?;
        // One that goes to the CPU after all keeps nobody waiting.
        let gpu = gpu.filter(|_| opened.device() != Device::Cpu);
        Ok((opened, Turn { _any: any, _gpu: gpu }))
    }
}

/// Waits for a turn, as long as the load is wanted.
async fn next(turns: Arc<Semaphore>, cancelled: &CancellationToken) -> anyhow::Result<OwnedSemaphorePermit> {
    let turn = tokio::select! {
        turn = turns.acquire_owned() => turn.ok(),
        () = cancelled.cancelled() => None,
    };
    turn.context("the load was cancelled")
}
