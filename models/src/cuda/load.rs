//! From checked files to a decoder on a GPU: number format, weights, a rehearsal, and the rest of the memory as cache.

use half::{bf16, f16};
use millgate_kernels::WeightFormat;
use millgate_kernels::cuda::{Activation, Fp8, Gpu, KvCache, KvElement};

use super::decoder::Decoder;
use super::memory::cache_blocks;
use super::model::CudaModel;
use super::weights::{DeviceWeights, memory};
use crate::arch::{DecoderConfig, workspace_shape};
use crate::device::Device;
use crate::error::LoadError;
use crate::model::{GpuMemory, Model, ModelSpec};
use crate::options::{KvDtypeChoice, LoadOptions};
use crate::weights::Loader;

/// What is loaded, and where to.
pub(crate) struct DeviceLoad<'a> {
    pub(crate) ordinal: usize,
    pub(crate) config: &'a DecoderConfig,
    pub(crate) loader: &'a Loader<'a>,
    pub(crate) is_tied: bool,
    /// Formats of the matrices.
    pub(crate) formats: &'a [WeightFormat],
    /// Bytes of all weights when a number that is not in blocks takes as many as this.
    pub(crate) weight_bytes: &'a dyn Fn(u64) -> u64,
    /// What is known of the model; cache and memory are filled in here.
    pub(crate) spec: ModelSpec,
    pub(crate) options: &'a LoadOptions,
}

/// Loads a decoder onto a GPU in the number format of its files: f32 or f16 where all matrices are, else bf16.
///
/// # Errors
/// [`LoadError`] naming the tensor, or what the device has not enough of.
pub(crate) fn load(load: DeviceLoad<'_>) -> Result<Box<dyn Model>, LoadError> {
    let all = |format| load.formats.iter().all(|&found| found == format);
    let weights = match () {
        () if all(WeightFormat::F32) => "f32",
        () if all(WeightFormat::F16) => "f16",
        () => "bf16",
    };
    match (weights, load.options.kv_dtype) {
        ("f32", KvDtypeChoice::Auto | KvDtypeChoice::F32) => load_as::<f32, f32>(load),
        ("f16", KvDtypeChoice::Auto) => load_as::<f16, f16>(load),
        ("bf16", KvDtypeChoice::Auto | KvDtypeChoice::Bf16) => load_as::<bf16, bf16>(load),
        ("bf16", KvDtypeChoice::Fp8) if !load.config.head_dim.is_multiple_of(16) => {
            Err(LoadError::GpuFp8Heads { head_dim: load.config.head_dim })
        }
        ("bf16", KvDtypeChoice::Fp8) => load_as::<bf16, Fp8>(load),
        _ => Err(LoadError::GpuKvDtype { weights }),
    }
}

fn load_as<T: Activation, C: KvElement>(load: DeviceLoad<'_>) -> Result<Box<dyn Model>, LoadError> {
    let DeviceLoad { config, options, mut spec, .. } = load;
    let gpu = Gpu::open(load.ordinal).map_err(memory)?;
    if options.deterministic {
        gpu.make_deterministic();
    }
    let free_before = gpu.memory().map_err(memory)?.free_bytes as u64;
    let shape = workspace_shape(config, options.max_step_tokens, options.max_output_rows);
    let block_bytes = (KvCache::<C>::bytes_per_block(config.num_kv_heads, config.head_dim) * config.num_layers) as u64;
    let weights = (load.weight_bytes)(size_of::<T>() as u64);
    let activations = super::space::space_bytes(&shape, size_of::<T>() as u64);
    let too_small = |cache| LoadError::GpuTooSmall {
        device: Device::Cuda(load.ordinal),
        free: free_before,
        weights,
        activations,
        cache,
    };
    let least = block_bytes.saturating_mul(16.min(options.num_blocks) as u64);
    if weights.saturating_add(activations).saturating_add(least) > free_before {
        return Err(too_small(least));
    }
    let weights = DeviceWeights::<T>::load(&gpu, load.loader, config, load.is_tied)?;
    spec.weight_bytes = weights.bytes() as u64;
    spec.kv_bytes_per_block = block_bytes as usize;
    let decoder = Decoder::<T, C>::new(&gpu, config, weights, &shape, spec.context_window).map_err(memory)?;
    let buffer_bytes = decoder.buffer_bytes(&shape);
    let mut model = CudaModel::new(spec, decoder).map_err(memory)?;
    model.decoder().allocate_cache(1).map_err(memory)?;
    model.rehearse().map_err(memory)?;
    let now = gpu.memory().map_err(memory)?;
    let (free, total) = (now.free_bytes as u64, now.total_bytes as u64);
    let num_blocks = cache_blocks(free, total, block_bytes, options.kv_bytes, options.num_blocks).map_err(too_small)?;
    model.decoder().allocate_cache(num_blocks).map_err(memory)?;
    model.record().map_err(memory)?;
    let free_bytes = gpu.memory().map_err(memory)?.free_bytes as u64;
    let spec = model.spec_mut();
    spec.num_blocks = num_blocks;
    let used_bytes = spec.weight_bytes + buffer_bytes + block_bytes * num_blocks as u64;
    spec.gpu_memory = Some(GpuMemory { used_bytes, free_bytes });
    Ok(Box::new(model))
}
