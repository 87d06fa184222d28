//! From the settings to running engines: open every checkpoint, divide the memory, load one after another.

use std::sync::Arc;

use anyhow::Context;
use millgate_kernels::Pool;
use millgate_models::text::ModelText;
use millgate_models::{
    BLOCK_TOKENS, CacheError, Checkpoint, ChosenDevice, Device, DeviceChoice, GpuReserve, LoadOptions, Progress,
};
use tracing::info;

use tracing::warn;

use super::memory::available_bytes;
use super::plan::{Bytes, Share, Wish};
use super::summary::LoadedModel;
use crate::config::{MemoryBound, ModelSettings, Settings};
use crate::engine::{self, EngineHandle};

/// What is assumed free where the system does not tell: enough for the bundled model.
const UNTOLD_BYTES: u64 = 2 << 30;
/// Memory of the host that a model on a GPU takes: staging buffers, and the engine's books for each block of its cache.
const HOST_BYTES: u64 = 64 << 20;
const HOST_BYTES_A_BLOCK: u64 = 64;
/// Sequences computed at the same time where nobody set a number.
const OUTPUT_ROWS: usize = 256;
/// Folder of the data directory that keeps weights quantised by an earlier start.
const QUANTIZED: &str = "quantized";

/// A checkpoint that was opened and checked; where it will compute is still to be seen.
pub(super) struct Unplaced {
    settings: ModelSettings,
    checkpoint: Checkpoint,
    text: ModelText,
    choice: DeviceChoice,
    device: ChosenDevice,
}

/// A checkpoint that has its place; its weights are not read yet.
pub(super) struct Opened {
    settings: ModelSettings,
    checkpoint: Checkpoint,
    text: ModelText,
    device: ChosenDevice,
    wish: Wish,
    /// What it needs of its GPU at least.
    claim: GpuReserve,
}

/// A model that answers.
pub(super) struct Loaded {
    pub(super) engine: EngineHandle,
    pub(super) text: ModelText,
    pub(super) facts: LoadedModel,
}

/// Opens a model's files, downloading them first if need be.
///
/// # Errors
/// What is wrong with the files, named, or that the device it must go to is not there.
pub(super) fn open(model: &ModelSettings, settings: &Settings, progress: &dyn Progress) -> anyhow::Result<Unplaced> {
    // First of all: a device that is not there is no reason to download anything.
    let choice = model.device.unwrap_or(settings.device);
    let device = choice.choose().with_context(|| format!("cannot place model `{}`", model.name))?;
    let checkpoint = Checkpoint::open(&model.source, &settings.hub.options(), progress)
        .with_context(|| format!("cannot open model `{}` from {}", model.name, model.source))?;
    let checkpoint = match model.quantize {
        Some(to) => checkpoint.quantized(to).with_context(|| format!("cannot quantize model `{}`", model.name))?,
        None => checkpoint,
    };
    let text = checkpoint.text().with_context(|| format!("cannot read the tokenizer of model `{}`", model.name))?;
    Ok(Unplaced { settings: model.clone(), checkpoint, text, choice, device })
}

impl Unplaced {
    /// Whether a GPU's memory decides about its place.
    pub(super) fn may_use_gpu(&self) -> bool {
        self.device.device != Device::Cpu
    }

    /// Finds out where the model will compute and what it needs there.
    ///
    /// `promised`: what models that are opened and not loaded yet need of a GPU. Whoever is being loaded onto one must
    /// have taken what it takes before.
    pub(super) fn place(
        self,
        settings: &Settings,
        pool: &Arc<Pool>,
        promised: &dyn Fn(Device) -> GpuReserve,
    ) -> Opened {
        let Self { settings: model, checkpoint, text, choice, device } = self;
        let options = load_options(&model, settings, pool, usize::MAX, device.device);
        let (device, claim) = match choice {
            DeviceChoice::Auto => claim_or_cpu(&checkpoint, device, &options, promised),
            // One that was named is asked again when the model is loaded, and answers with its figures.
            _ => (device.clone(), claim(&checkpoint, &device, &options).unwrap_or_default()),
        };
        if let Some(why) = &device.why_cpu {
            info!(model = model.name, "model `{}` will compute on the CPU: {why}", model.name);
        }
        let footprint = checkpoint.footprint(&load_options(&model, settings, pool, 0, Device::Cpu));
        let is_on_host = device.device == Device::Cpu;
        let on_host = |bytes, else_bytes| if is_on_host { bytes } else { else_bytes };
        let own_window = checkpoint.summary().context_window;
        let wish = Wish {
            name: model.name.clone(),
            weight_bytes: on_host(footprint.weight_bytes, 0),
            workspace_bytes: on_host(footprint.workspace_bytes, HOST_BYTES),
            block_bytes: on_host(footprint.kv_bytes_per_block, HOST_BYTES_A_BLOCK),
            context_window: model.context_window.map_or(own_window, |set| set.min(own_window)),
            max_running: output_rows(settings),
            kv_bytes: cache_bytes(&model, settings).filter(|_| is_on_host),
        };
        Opened { settings: model, checkpoint, text, device, wish, claim }
    }
}

/// What a model needs of its GPU at least; nothing of the CPU.
fn claim(checkpoint: &Checkpoint, device: &ChosenDevice, options: &LoadOptions) -> anyhow::Result<GpuReserve> {
    if device.device == Device::Cpu {
        return Ok(GpuReserve::default());
    }
    let caches = u64::from(options.kv_bytes.is_none());
    Ok(GpuReserve { bytes: checkpoint.gpu_footprint(options)?.bytes(), caches })
}

/// The GPU if the model fits there beside what is promised to others, else the CPU and why.
fn claim_or_cpu(
    checkpoint: &Checkpoint,
    device: ChosenDevice,
    options: &LoadOptions,
    promised: &dyn Fn(Device) -> GpuReserve,
) -> (ChosenDevice, GpuReserve) {
    let taken = promised(device.device).bytes;
    let found = claim(checkpoint, &device, options).and_then(|claim| Ok((claim, device.room_bytes()?)));
    let why = match found {
        Ok((claim, Some(free))) if claim.bytes > free.saturating_sub(taken) => {
            let (need, free) = (Bytes(claim.bytes), Bytes(free.saturating_sub(taken)));
            format!("it needs {need} of `{}`, which has {free} left for it", device.device)
        }
        Ok((claim, _)) => return (device, claim),
        Err(error) => format!("`{}` cannot take it: {error:#}", device.device),
    };
    (ChosenDevice { device: Device::Cpu, description: None, why_cpu: Some(why) }, GpuReserve::default())
}

impl Opened {
    /// What it needs.
    pub(super) fn wish(&self) -> &Wish {
        &self.wish
    }

    /// What it needs of this GPU at least; nothing of any other.
    pub(super) fn claim_on(&self, device: Device) -> GpuReserve {
        if self.device.device == device { self.claim } else { GpuReserve::default() }
    }

    /// Where it will compute.
    pub(super) fn device(&self) -> Device {
        self.device.device
    }
}

/// What all of these models need of a GPU.
pub(super) fn claims<'a>(models: impl Iterator<Item = &'a Opened>, device: Device) -> GpuReserve {
    models.map(|opened| opened.claim_on(device)).fold(GpuReserve::default(), |sum, claim| GpuReserve {
        bytes: sum.bytes.saturating_add(claim.bytes),
        caches: sum.caches + claim.caches,
    })
}

/// What all models may take together, in bytes.
pub(super) fn bound_bytes(bound: MemoryBound) -> u64 {
    match bound {
        MemoryBound::Bytes(size) => size.0,
        MemoryBound::Percent(percent) => {
            let available = available_bytes().unwrap_or(UNTOLD_BYTES);
            u64::try_from(u128::from(available) * u128::from(percent) / 100).unwrap_or(u64::MAX)
        }
    }
}

/// Reads the weights and starts the model's engine. A GPU's memory must have `reserve` left for others.
///
/// # Errors
/// What is wrong with the files, named.
pub(super) fn load(
    opened: Opened,
    share: &Share,
    reserve: GpuReserve,
    settings: &Settings,
    pool: &Arc<Pool>,
    progress: &dyn Progress,
) -> anyhow::Result<Loaded> {
    let Opened { settings: model_settings, mut checkpoint, text, device, .. } = opened;
    let name = model_settings.name.as_str();
    let options = load_options(&model_settings, settings, pool, share.num_blocks, device.device);
    let options = LoadOptions { reserve, ..options };
    let description = checkpoint.summary().to_string();
    // What is wrong with the weights themselves the load will say.
    if let Err(error @ CacheError::Write { .. }) =
        checkpoint.keep_quantized(&settings.data_dir.join(QUANTIZED), progress)
    {
        warn!(model = name, "the next start quantizes again: {:#}", anyhow::Error::new(error));
    }
    let model = checkpoint.load(&options, progress).with_context(|| format!("cannot load model `{name}`"))?;
    let spec = model.spec().clone();
    let revision = format!("{}/{description}", model_settings.source);
    let engine = engine::spawn(name, model, text.clone(), engine::Config { revision, ..settings.engine.clone() })
        .with_context(|| format!("cannot start the engine of model `{name}`"))?;
    let facts = LoadedModel {
        description,
        device: device
            .description
            .map_or_else(|| device.device.to_string(), |name| format!("{}: {name}", device.device)),
        memory_bytes: spec.gpu_memory.map_or(share.total_bytes, |memory| memory.used_bytes),
        weight_bytes: spec.weight_bytes,
        free_bytes: spec.gpu_memory.map(|memory| memory.free_bytes),
        kv_bytes: spec.kv_bytes_per_block as u64 * spec.num_blocks as u64,
        kv_tokens: spec.num_blocks * BLOCK_TOKENS,
        context_window: spec.context_window,
    };
    Ok(Loaded { engine, text, facts })
}

fn load_options(
    model: &ModelSettings,
    settings: &Settings,
    pool: &Arc<Pool>,
    num_blocks: usize,
    device: Device,
) -> LoadOptions {
    // A GPU is busy only with many rows at once.
    let step_tokens = if device == Device::Cpu { 512 } else { 4096 };
    LoadOptions {
        device,
        kv_bytes: cache_bytes(model, settings),
        reserve: GpuReserve::default(),
        deterministic: settings.deterministic,
        pool: Arc::clone(pool),
        num_blocks,
        // A step must have room for one token of every sequence.
        max_step_tokens: settings.step_tokens.unwrap_or(step_tokens).max(output_rows(settings)),
        max_output_rows: output_rows(settings),
        kv_dtype: model.kv_dtype,
        context_window: model.context_window,
    }
}

/// The size of a model's cache, if anybody set it.
fn cache_bytes(model: &ModelSettings, settings: &Settings) -> Option<u64> {
    model.kv_memory.or(settings.kv_cache).map(|size| size.0)
}

fn output_rows(settings: &Settings) -> usize {
    settings.engine.max_running.unwrap_or(OUTPUT_ROWS)
}

/// Runs what reads files on a thread of its own; a panic in it becomes an error.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    tokio::task::spawn_blocking(work).await.context("the loading thread ended early")?
}
