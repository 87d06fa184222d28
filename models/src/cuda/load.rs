//! From checked files to a decoder on a GPU: number format, weights, a rehearsal, and the rest of the memory as cache.

use std::sync::{Mutex, PoisonError};

use half::{bf16, f16};
use millgate_kernels::WeightFormat;
use millgate_kernels::cuda::{Activation, CudaError, DeviceMemory, Fp8, Gpu, KvCache, KvElement};

use super::decoder::Decoder;
use super::memory::{CacheWish, Room, cache_blocks};
use super::model::CudaModel;
use super::weights::{DeviceWeights, memory};
use crate::arch::{DecoderConfig, workspace_shape};
use crate::device::Device;
use crate::error::LoadError;
use crate::model::{GpuMemory, Model, ModelSpec};
use crate::options::{GpuFootprint, KvDtypeChoice, LoadOptions};
use crate::weights::Loader;
use crate::workspace::WorkspaceShape;

/// One load at a time: each measures what is free, and takes it.
static LOADING: Mutex<()> = Mutex::new(());

/// A model's files, as far as its place on a GPU depends on them.
pub(crate) struct DeviceModel<'a> {
    pub(crate) config: &'a DecoderConfig,
    /// Formats of the matrices.
    pub(crate) formats: &'a [WeightFormat],
    /// Bytes of all weights when a number that is not in blocks takes as many as this.
    pub(crate) weight_bytes: &'a dyn Fn(u64) -> u64,
    pub(crate) context_window: usize,
    pub(crate) options: &'a LoadOptions,
}

/// What is loaded, and where to.
pub(crate) struct DeviceLoad<'a> {
    pub(crate) ordinal: usize,
    pub(crate) model: DeviceModel<'a>,
    pub(crate) loader: &'a Loader<'a>,
    pub(crate) is_tied: bool,
    /// What is known of the model; cache and memory are filled in here.
    pub(crate) spec: ModelSpec,
}

/// Number formats of activations and cache.
#[derive(Debug, Clone, Copy)]
enum Format {
    F32,
    F16,
    Bf16,
    Bf16Fp8,
}

impl Format {
    /// That of the files: f32 or f16 where all matrices are, else bf16.
    fn of(model: &DeviceModel<'_>) -> Result<Self, LoadError> {
        let all = |format| model.formats.iter().all(|&found| found == format);
        let weights = match () {
            () if all(WeightFormat::F32) => "f32",
            () if all(WeightFormat::F16) => "f16",
            () => "bf16",
        };
        match (weights, model.options.kv_dtype) {
            ("f32", KvDtypeChoice::Auto | KvDtypeChoice::F32) => Ok(Self::F32),
            ("f16", KvDtypeChoice::Auto) => Ok(Self::F16),
            ("bf16", KvDtypeChoice::Auto | KvDtypeChoice::Bf16) => Ok(Self::Bf16),
            ("bf16", KvDtypeChoice::Fp8) if !model.config.head_dim.is_multiple_of(16) => {
                Err(LoadError::GpuFp8Heads { head_dim: model.config.head_dim })
            }
            ("bf16", KvDtypeChoice::Fp8) => Ok(Self::Bf16Fp8),
            _ => Err(LoadError::GpuKvDtype { weights }),
        }
    }
}

impl DeviceModel<'_> {
    /// The least that the model needs on a GPU.
    ///
    /// # Errors
    /// [`LoadError`] for a cache in a format that GPUs do not have.
    pub(crate) fn footprint(&self) -> Result<GpuFootprint, LoadError> {
        Ok(match Format::of(self)? {
            Format::F32 => self.footprint_as::<f32, f32>(),
            Format::F16 => self.footprint_as::<f16, f16>(),
            Format::Bf16 => self.footprint_as::<bf16, bf16>(),
            Format::Bf16Fp8 => self.footprint_as::<bf16, Fp8>(),
        })
    }

    fn footprint_as<T: Activation, C: KvElement>(&self) -> GpuFootprint {
        let width = size_of::<T>() as u64;
        let buffers = super::space::buffer_bytes(&self.shape(), self.config, self.context_window, width);
        GpuFootprint {
            weights: (self.weight_bytes)(width),
            activations: buffers.saturating_add(Gpu::OWN_BYTES),
            cache: self.cache::<C>().least_bytes(),
        }
    }

    fn shape(&self) -> WorkspaceShape {
        workspace_shape(self.config, self.options.max_step_tokens, self.options.max_output_rows)
    }

    fn cache<C: KvElement>(&self) -> CacheWish {
        let DecoderConfig { num_kv_heads, head_dim, num_layers, .. } = *self.config;
        CacheWish {
            block_bytes: (KvCache::<C>::bytes_per_block(num_kv_heads, head_dim) * num_layers) as u64,
            set_bytes: self.options.kv_bytes,
            most: self.options.num_blocks,
        }
    }
}

/// Loads a decoder onto a GPU in the number format of its files.
///
/// # Errors
/// [`LoadError`] naming the tensor, or what the device has not enough of.
pub(crate) fn load(load: DeviceLoad<'_>) -> Result<Box<dyn Model>, LoadError> {
    Ok(match Format::of(&load.model)? {
        Format::F32 => Box::new(load_as::<f32, f32>(load)?),
        Format::F16 => Box::new(load_as::<f16, f16>(load)?),
        Format::Bf16 => Box::new(load_as::<bf16, bf16>(load)?),
        Format::Bf16Fp8 => Box::new(load_as::<bf16, Fp8>(load)?),
    })
}

/// As [`load`], in these formats of activations and cache.
pub(super) fn load_as<T: Activation, C: KvElement>(load: DeviceLoad<'_>) -> Result<CudaModel<T, C>, LoadError> {
    let _alone = LOADING.lock().unwrap_or_else(PoisonError::into_inner);
    let (ordinal, need) = (load.ordinal, load.model.footprint_as::<T, C>());
    let before = free_on(ordinal)?;
    let spare = before.spare();
    let too_small = |free, need| LoadError::GpuTooSmall { device: Device::Cuda(ordinal), free, need, spare };
    if need.bytes().saturating_add(spare) > before.free {
        return Err(too_small(before.free, need));
    }
    fill::<T, C>(load, before).map_err(|error| match error {
        LoadError::Gpu { source: CudaError::OutOfMemory { bytes, free: left } } => {
            // All that the model had is free again, what others took meanwhile is not. Memory that ended before the
            // estimate did is missing from activations and buffers.
            let free = free_on(ordinal).map_or(before.free, |room| room.free);
            let taken = free.saturating_sub(left as u64).saturating_add(bytes as u64);
            let activations = need.activations.max(taken.saturating_sub(need.weights));
            too_small(free, GpuFootprint { activations, ..need })
        }
        error => error,
    })
}

/// Weights, activations and cache into the memory that was free before; nothing stays there after a failure.
fn fill<T: Activation, C: KvElement>(load: DeviceLoad<'_>, before: Room) -> Result<CudaModel<T, C>, LoadError> {
    let DeviceLoad { ordinal, model, loader, is_tied, mut spec } = load;
    let (gpu, mut loaded) = build::<T, C>(ordinal, &model, loader, is_tied, &mut spec)?;
    let now = room_of(&gpu)?;
    let cache = model.cache::<C>();
    let num_blocks = cache_blocks(now, cache, model.options.reserve).map_err(|least| {
        let activations = before.free.saturating_sub(now.free).saturating_sub(spec.weight_bytes);
        let need = GpuFootprint { weights: spec.weight_bytes, activations, cache: least };
        LoadError::GpuTooSmall { device: Device::Cuda(ordinal), free: before.free, need, spare: before.spare() }
    })?;
    loaded.decoder().allocate_cache(num_blocks).map_err(memory)?;
    loaded.record().map_err(memory)?;
    let free_bytes = room_of(&gpu)?.free;
    spec.num_blocks = num_blocks;
    spec.kv_bytes_per_block = cache.block_bytes as usize;
    spec.gpu_memory = Some(GpuMemory { used_bytes: before.free.saturating_sub(free_bytes), free_bytes });
    *loaded.spec_mut() = spec;
    Ok(loaded)
}

/// All but the cache, rehearsed with one block of it.
fn build<T: Activation, C: KvElement>(
    ordinal: usize,
    model: &DeviceModel<'_>,
    loader: &Loader<'_>,
    is_tied: bool,
    spec: &mut ModelSpec,
) -> Result<(Gpu, CudaModel<T, C>), LoadError> {
    let gpu = Gpu::open(ordinal).map_err(memory)?;
    if model.options.deterministic {
        gpu.make_deterministic();
    }
    let weights = DeviceWeights::<T>::load(&gpu, loader, model.config, is_tied)?;
    spec.weight_bytes = weights.bytes() as u64;
    let decoder =
        Decoder::<T, C>::new(&gpu, model.config, weights, &model.shape(), spec.context_window).map_err(memory)?;
    let mut loaded = CudaModel::new(spec.clone(), decoder).map_err(memory)?;
    loaded.decoder().allocate_cache(1).map_err(memory)?;
    loaded.rehearse().map_err(memory)?;
    Ok((gpu, loaded))
}

/// What a model may take of a device.
///
/// # Errors
/// [`CudaError`] when the device is not there or the driver cannot say.
pub(crate) fn room_bytes(ordinal: usize) -> Result<u64, CudaError> {
    DeviceMemory::of(ordinal).map(room).map(|room| room.free.saturating_sub(room.spare()))
}

fn free_on(ordinal: usize) -> Result<Room, LoadError> {
    DeviceMemory::of(ordinal).map_err(memory).map(room)
}

fn room_of(gpu: &Gpu) -> Result<Room, LoadError> {
    gpu.memory().map_err(memory).map(room)
}

fn room(memory: DeviceMemory) -> Room {
    Room { free: memory.free_bytes as u64, total: memory.total_bytes as u64 }
}
