//! A model on disk: opened and checked first, so that what it is and what it takes is known, then loaded.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use millgate_kernels::{KvShape, WeightFormat};

use crate::arch::{
    ConfigError, Decoder, DecoderConfig, DecoderLimits, DecoderWeights, Fields, fields_of_gguf, required_tensors,
    unexpected_tensor, workspace_shape,
};
use crate::builtin::{self, BundledFiles};
use crate::device::Device;
use crate::error::LoadError;
use crate::gguf_text::gguf_tokenizer;
use crate::layers::RopeScaling;
use crate::model::{Model, ModelSpec};
use crate::options::{Footprint, GpuFootprint, KvDtypeChoice, LoadOptions, QuantizeTo};
use crate::progress::{Progress, Silent};
use crate::source::{Demo, Source};
use crate::summary::{FormatCount, Summary};
use crate::text::ModelText;
use crate::weights::{
    AttentionHeads, CacheError, FileBytes, GgufFile, GgufWeights, HubFiles, HubOptions, Loader, QuantizedCache,
    QuantizedWeights, SafetensorsWeights, Targets, Weights, WeightsError, fetch,
};

/// The largest config.json that is read; real ones have a few thousand bytes.
const MAX_CONFIG_BYTES: u64 = 16 << 20;

/// A model whose files are open and checked: config, tensor names, shapes and types. Nothing heavy has been read.
pub struct Checkpoint {
    config: DecoderConfig,
    weights: Box<dyn Weights>,
    tensors: Vec<TensorPlan>,
    is_tied: bool,
    text: TextFiles,
    file_bytes: u64,
    quantization: Option<Quantization>,
}

/// What becomes of dense matrices while they load.
struct Quantization {
    to: QuantizeTo,
    targets: Targets,
    cache: Option<QuantizedCache>,
}

struct TensorPlan {
    shape: Vec<usize>,
    format: WeightFormat,
}

enum TextFiles {
    Folder(PathBuf),
    Gguf(Arc<GgufFile>),
    Bundled(&'static BundledFiles),
}

impl Checkpoint {
    /// Opens a model, downloading it first where its source is the hub.
    ///
    /// # Errors
    /// [`LoadError::Hub`] when the download fails, else as [`Self::open_local`].
    pub fn open(source: &Source, hub: &HubOptions, progress: &dyn Progress) -> Result<Self, LoadError> {
        let Source::Hub { repo, revision } = source else { return Self::open_local(source) };
        match fetch(repo, revision.as_deref(), hub, progress)? {
            HubFiles::Folder(folder) => Self::open_folder(&folder),
            HubFiles::Gguf(file) => Self::open_gguf(&file),
        }
    }

    /// Opens a model whose files are on this machine.
    ///
    /// # Errors
    /// [`LoadError`] naming the file, and the config key or tensor, that is missing, damaged or not supported.
    pub fn open_local(source: &Source) -> Result<Self, LoadError> {
        match source {
            Source::Folder(path) => Self::open_folder(path),
            Source::Gguf(path) => Self::open_gguf(path),
            Source::Builtin(Demo) => Self::open_bundled(&builtin::DEMO),
            Source::Hub { .. } => Err(LoadError::NotLocal { source_text: source.to_string() }),
        }
    }

    fn open_bundled(files: &'static BundledFiles) -> Result<Self, LoadError> {
        let config = config_of_json(&BundledFiles::name("config.json"), files.config)?;
        let weights = files.weights()?;
        let file_bytes = weights.file_bytes();
        Self::check(config, Box::new(weights), TextFiles::Bundled(files), file_bytes)
    }

    fn open_folder(folder: &Path) -> Result<Self, LoadError> {
        let path = folder.join("config.json");
        if !path.exists() {
            return match only_gguf_in(folder) {
                Some(gguf) => Self::open_gguf(&gguf),
                None => Err(LoadError::NoModel { path: folder.to_owned() }),
            };
        }
        let config = config_of_json(&path.display().to_string(), &read_bounded(&path)?)?;
        let weights = SafetensorsWeights::open(folder)?;
        let file_bytes = weights.file_bytes();
        Self::check(config, Box::new(weights), TextFiles::Folder(folder.to_owned()), file_bytes)
    }

    fn open_gguf(path: &Path) -> Result<Self, LoadError> {
        let file = Arc::new(GgufFile::parse(FileBytes::open(path)?)?);
        let named = |source: ConfigError| LoadError::Config { file: file.name().to_owned(), source };
        let fields = fields_of_gguf(&file).map_err(named)?;
        let mut config = DecoderConfig::from_fields(&fields).map_err(named)?;
        let weights = if config.architecture == "llama" {
            let heads = AttentionHeads { query: config.num_heads, key: config.num_kv_heads };
            GgufWeights::with_interleaved_rotary(file.clone(), heads)
        } else {
            GgufWeights::new(file.clone())
        };
        if file.tensors().contains_key(ROPE_FACTORS) {
            config.rope_scaling = rope_factors(&weights, &config, &file)?;
        }
        let file_bytes = file.file_bytes();
        Self::check(config, Box::new(weights), TextFiles::Gguf(file), file_bytes)
    }

    fn check(
        config: DecoderConfig,
        weights: Box<dyn Weights>,
        text: TextFiles,
        file_bytes: u64,
    ) -> Result<Self, LoadError> {
        // Transformers ties where the config says so; where it says nothing, the files show it.
        let is_tied = config.tied_head.unwrap_or_else(|| weights.header("lm_head.weight").is_none());
        let required = required_tensors(&config, is_tied);
        let mut tensors = Vec::with_capacity(required.len());
        for (name, shape) in &required {
            tensors.push(TensorPlan { shape: shape.clone(), format: weights.require(name, shape)? });
        }
        if let Some(name) = unexpected_tensor(weights.as_ref(), &required) {
            let (file, name) = weights.place(&name);
            let architecture = config.architecture.to_owned();
            return Err(WeightsError::Unexpected { name, file, architecture }.into());
        }
        Ok(Self { config, weights, tensors, is_tied, text, file_bytes, quantization: None })
    }

    /// The same model, its dense matrices quantised while they load.
    ///
    /// # Errors
    /// [`LoadError::NothingToQuantize`] when no matrix can be.
    pub fn quantized(mut self, to: QuantizeTo) -> Result<Self, LoadError> {
        let formats = self.summary().format_names();
        let mut targets = Targets::new();
        for ((name, shape), plan) in required_tensors(&self.config, self.is_tied).into_iter().zip(&mut self.tensors) {
            if let Some(target) = to.target(&name, &shape, plan.format) {
                plan.format = target;
                targets.insert(name, target);
            }
        }
        if targets.is_empty() {
            return Err(LoadError::NothingToQuantize { to: to.name(), formats });
        }
        self.quantization = Some(Quantization { to, targets, cache: None });
        Ok(self)
    }

    /// Takes the quantised matrices from a file in `folder`, which is written first unless it is there and fits. Does
    /// nothing for a model that is not quantised.
    ///
    /// # Errors
    /// [`CacheError`]; the model can then still be loaded, and is quantised on the way.
    pub fn keep_quantized(&mut self, folder: &Path, progress: &dyn Progress) -> Result<(), CacheError> {
        let Some(Quantization { to, targets, cache }) = &mut self.quantization else { return Ok(()) };
        let weights = QuantizedWeights { stored: self.weights.as_ref(), targets, cache: None };
        *cache = Some(QuantizedCache::open_or_write(folder, &weights, *to, progress)?);
        Ok(())
    }

    /// The model's tokenizer, chat template and end tokens.
    ///
    /// # Errors
    /// [`LoadError::Text`] naming the file.
    pub fn text(&self) -> Result<ModelText, LoadError> {
        Ok(match &self.text {
            TextFiles::Folder(folder) => ModelText::from_folder(folder)?,
            TextFiles::Gguf(file) => ModelText::from_gguf(file.name(), &gguf_tokenizer(file)?)?,
            TextFiles::Bundled(files) => files.text()?,
        })
    }

    /// What the model is.
    pub fn summary(&self) -> Summary {
        let config = &self.config;
        let matrices = self.tensors.iter().filter(|tensor| tensor.shape.len() > 1);
        let kv_dtype = crate::KvDtypeChoice::Auto.resolve(self.is_f32());
        Summary {
            architecture: config.architecture.to_owned(),
            parameters: self.parameters(),
            formats: FormatCount::count(matrices.map(|tensor| (tensor.format, tensor.elements()))),
            context_window: config.context_window,
            num_layers: config.num_layers,
            hidden_size: config.hidden_size,
            intermediate_size: config.intermediate_size,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            vocab_size: config.vocab_size,
            sliding_window: config.windows.iter().copied().flatten().min(),
            rope: format!("{} (base {})", config.rope_scaling.describe(), config.rope_theta),
            is_head_tied: self.is_tied,
            file_bytes: self.file_bytes,
            kv_bytes_per_token: self.kv_bytes_per_block(self.kv_shape(kv_dtype)) / crate::BLOCK_TOKENS as u64,
        }
    }

    /// What a load with these options will take.
    pub fn footprint(&self, options: &LoadOptions) -> Footprint {
        let config = &self.config;
        let space = workspace_shape(config, options.max_step_tokens, options.max_output_rows);
        let context = options.context_window.unwrap_or(config.context_window).min(config.context_window) as u64;
        let rope = context * config.head_dim as u64 * size_of::<f32>() as u64;
        let kv_shape = self.kv_shape(options.kv_dtype.resolve(self.is_f32()));
        Footprint {
            weight_bytes: self.tensors.iter().map(TensorPlan::memory_bytes).sum(),
            workspace_bytes: space.bytes().unwrap_or(u64::MAX).saturating_add(rope),
            kv_bytes_per_block: self.kv_bytes_per_block(kv_shape),
        }
    }

    /// Reads the weights and allocates cache and activations.
    ///
    /// # Errors
    /// [`LoadError`] naming file and tensor, or what did not fit into memory.
    pub fn load(self, options: &LoadOptions, progress: &dyn Progress) -> Result<Box<dyn Model>, LoadError> {
        match options.device {
            Device::Cuda(ordinal) => self.load_on_gpu(ordinal, options, progress),
            Device::Cpu if options.kv_dtype == KvDtypeChoice::Fp8 => Err(LoadError::CpuKvDtype),
            Device::Cpu => self.read(options, progress, |loader, spec| {
                let weights = DecoderWeights::load(loader, &self.config, self.is_tied)?;
                let spec = ModelSpec { weight_bytes: weights.bytes() as u64, ..spec };
                let kv_shape = self.kv_shape(options.kv_dtype.resolve(self.is_f32()));
                let limits = DecoderLimits { spec, kv_shape };
                let decoder = Decoder::new(&self.config, weights, limits, options.pool.clone());
                Ok(Box::new(decoder.map_err(|source| LoadError::Memory { source })?) as Box<dyn Model>)
            }),
        }
    }

    /// Hands the files to whoever makes a model of them, with what is known of it so far.
    fn read<R>(
        &self,
        options: &LoadOptions,
        progress: &dyn Progress,
        with: impl FnOnce(&Loader<'_>, ModelSpec) -> Result<R, LoadError>,
    ) -> Result<R, LoadError> {
        let config = &self.config;
        let context_window = self.context_window(options)?;
        let kv_shape = self.kv_shape(options.kv_dtype.resolve(self.is_f32()));
        progress.stage("loading weights", self.tensors.iter().map(TensorPlan::file_bytes).sum());
        let stored = self.weights.as_ref();
        let quantized = self.quantization.as_ref().map(|quantization| QuantizedWeights {
            stored,
            targets: &quantization.targets,
            cache: quantization.cache.as_ref(),
        });
        let loader = Loader::new(quantized.as_ref().map_or(stored, |quantized| quantized), progress);
        let spec = ModelSpec {
            architecture: config.architecture.to_owned(),
            device: options.device,
            vocab_size: config.vocab_size,
            context_window,
            num_layers: config.num_layers,
            kv_bytes_per_block: self.kv_bytes_per_block(kv_shape) as usize,
            num_blocks: options.num_blocks,
            max_step_tokens: options.max_step_tokens,
            max_output_rows: options.max_output_rows,
            parameters: self.parameters(),
            weight_bytes: 0,
            gpu_memory: None,
        };
        let made = with(&loader, spec);
        progress.finish();
        made
    }

    #[cfg(feature = "cuda")]
    fn load_on_gpu(
        &self,
        ordinal: usize,
        options: &LoadOptions,
        progress: &dyn Progress,
    ) -> Result<Box<dyn Model>, LoadError> {
        self.read_for_gpu(ordinal, options, progress, crate::cuda::load)
    }

    /// As [`Self::read`], for whoever makes a model on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn read_for_gpu<R>(
        &self,
        ordinal: usize,
        options: &LoadOptions,
        progress: &dyn Progress,
        with: impl FnOnce(crate::cuda::DeviceLoad<'_>) -> Result<R, LoadError>,
    ) -> Result<R, LoadError> {
        self.read(options, progress, |loader, spec| {
            let (context_window, is_tied) = (spec.context_window, self.is_tied);
            self.on_gpu(options, context_window, |model| {
                with(crate::cuda::DeviceLoad { ordinal, model, loader, is_tied, spec })
            })
        })
    }

    /// The least of a GPU's memory that a load with these options takes.
    ///
    /// # Errors
    /// [`LoadError`] for options that no GPU can follow.
    #[cfg(feature = "cuda")]
    pub fn gpu_footprint(&self, options: &LoadOptions) -> Result<GpuFootprint, LoadError> {
        self.on_gpu(options, self.context_window(options)?, |model| model.footprint())
    }

    /// What nothing needs: this build has no GPU support.
    ///
    /// # Errors
    /// [`LoadError::Device`] that says so.
    #[cfg(not(feature = "cuda"))]
    pub fn gpu_footprint(&self, _: &LoadOptions) -> Result<GpuFootprint, LoadError> {
        let Err(source) = crate::DeviceChoice::Cuda(0).choose() else { unreachable!("this build finds no GPU") };
        Err(LoadError::Device { source })
    }

    #[cfg(feature = "cuda")]
    fn on_gpu<R>(
        &self,
        options: &LoadOptions,
        context_window: usize,
        with: impl FnOnce(crate::cuda::DeviceModel<'_>) -> Result<R, LoadError>,
    ) -> Result<R, LoadError> {
        let matrices = self.tensors.iter().filter(|tensor| tensor.shape.len() > 1);
        let formats: Vec<WeightFormat> = matrices.map(|tensor| tensor.format).collect();
        with(crate::cuda::DeviceModel {
            config: &self.config,
            formats: &formats,
            weight_bytes: &|width| self.tensors.iter().map(|tensor| self.gpu_bytes(tensor, width)).sum(),
            context_window,
            options,
        })
    }

    /// Layers keep their blocks; embedding and head are numbers of `width` bytes.
    #[cfg(feature = "cuda")]
    fn gpu_bytes(&self, tensor: &TensorPlan, width: u64) -> u64 {
        let is_of_layer = tensor.shape.len() > 1 && tensor.shape[0] != self.config.vocab_size;
        if is_of_layer && tensor.format.is_quantised() { tensor.file_bytes() } else { tensor.elements() * width }
    }

    #[cfg(not(feature = "cuda"))]
    #[expect(clippy::unused_self, reason = "the other build loads the model")]
    fn load_on_gpu(&self, ordinal: usize, _: &LoadOptions, _: &dyn Progress) -> Result<Box<dyn Model>, LoadError> {
        let Err(source) = crate::DeviceChoice::Cuda(ordinal).choose() else { unreachable!("this build finds no GPU") };
        Err(LoadError::Device { source })
    }

    fn context_window(&self, options: &LoadOptions) -> Result<usize, LoadError> {
        let model = self.config.context_window;
        match options.context_window {
            None => Ok(model),
            Some(wanted) if (1..=model).contains(&wanted) => Ok(wanted),
            Some(wanted) => Err(LoadError::ContextWindow { wanted, model }),
        }
    }

    fn parameters(&self) -> u64 {
        self.tensors.iter().map(TensorPlan::elements).sum()
    }

    /// A model counts as f32 when all its matrices are.
    fn is_f32(&self) -> bool {
        self.tensors.iter().filter(|tensor| tensor.shape.len() > 1).all(|tensor| tensor.format == WeightFormat::F32)
    }

    fn kv_shape(&self, dtype: millgate_kernels::KvDtype) -> KvShape {
        KvShape { kv_heads: self.config.num_kv_heads, head_dim: self.config.head_dim, dtype }
    }

    fn kv_bytes_per_block(&self, shape: KvShape) -> u64 {
        shape.bytes_per_block() as u64 * self.config.num_layers as u64
    }
}

impl TensorPlan {
    fn elements(&self) -> u64 {
        self.shape.iter().map(|&size| size as u64).product()
    }

    fn file_bytes(&self) -> u64 {
        crate::weights::TensorFormat::file_bytes(self.format, &self.shape).unwrap_or(0) as u64
    }

    /// Vectors are widened to f32; matrices keep their format, in whole panels.
    fn memory_bytes(&self) -> u64 {
        /// Most rows that the kernels pack into one panel.
        const PANEL_ROWS: usize = 32;
        match self.shape.as_slice() {
            [rows, cols] => self.format.bytes_for(rows.next_multiple_of(PANEL_ROWS), *cols).unwrap_or(0) as u64,
            _ => self.elements() * size_of::<f32>() as u64,
        }
    }
}

/// The tensor in which GGUF files keep the Llama 3 scaling of rotary frequencies.
const ROPE_FACTORS: &str = "rope_freqs.weight";

fn rope_factors(weights: &dyn Weights, config: &DecoderConfig, file: &GgufFile) -> Result<RopeScaling, LoadError> {
    let factors = Loader::new(weights, &Silent).vector(ROPE_FACTORS, config.head_dim / 2)?;
    if config.rope_scaling != RopeScaling::None || factors.iter().any(|&factor| factor <= 0.0) {
        let reason = format!("tensor `{ROPE_FACTORS}` holds factors that are not above 0, or scales a second time");
        return Err(WeightsError::Damaged { file: file.name().to_owned(), reason }.into());
    }
    Ok(RopeScaling::Factors(factors))
}

fn config_of_json(file: &str, text: &[u8]) -> Result<DecoderConfig, LoadError> {
    Fields::from_json(text)
        .and_then(|fields| DecoderConfig::from_fields(&fields))
        .map_err(|source| LoadError::Config { file: file.to_owned(), source })
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, LoadError> {
    let read = |source| LoadError::Read { path: path.to_owned(), source };
    let mut text = Vec::new();
    File::open(path).map_err(read)?.take(MAX_CONFIG_BYTES + 1).read_to_end(&mut text).map_err(read)?;
    if text.len() as u64 > MAX_CONFIG_BYTES {
        let reason = format!("it is larger than {MAX_CONFIG_BYTES} bytes");
        return Err(LoadError::Config { file: path.display().to_string(), source: ConfigError::NotJson { reason } });
    }
    Ok(text)
}

/// A folder that holds one `.gguf` file and no config means that file.
fn only_gguf_in(folder: &Path) -> Option<PathBuf> {
    let mut found = std::fs::read_dir(folder)
        .ok()?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let first = found.next()?;
    found.next().is_none().then_some(first)
}
