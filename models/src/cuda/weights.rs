//! Reads a decoder's tensors onto the device, one at a time, in the number format that it computes in.

use half::{bf16, f16};
use millgate_kernels::cuda::{Activation, Buffer, CudaError, Gpu, QuantisedMatrix, ViewMut};
use millgate_kernels::{WeightFormat, quant};

use super::linear::{Linear, Part};
use crate::arch::DecoderConfig;
use crate::error::LoadError;
use crate::weights::Loader;

/// Numbers converted at a time: the host holds no more of a tensor than this twice.
const CHUNK: usize = 4 << 20;

/// All weights of a decoder.
pub(super) struct DeviceWeights<T> {
    /// `[vocab, hidden]`.
    pub(super) embedding: Buffer<T>,
    /// The output head, where it is not the embedding.
    pub(super) head: Option<Buffer<T>>,
    pub(super) layers: Vec<LayerWeights<T>>,
    pub(super) final_norm: Buffer<T>,
}

/// Weights of one layer.
pub(super) struct LayerWeights<T> {
    pub(super) input_norm: Buffer<T>,
    /// Queries, keys and values in one product.
    pub(super) qkv: Linear<T>,
    /// Norms of queries and keys.
    pub(super) qk_norm: Option<(Buffer<T>, Buffer<T>)>,
    pub(super) output: Linear<T>,
    pub(super) post_norm: Buffer<T>,
    /// Gates, then ups, in one product.
    pub(super) gate_up: Linear<T>,
    pub(super) down: Linear<T>,
}

impl<T: Activation> DeviceWeights<T> {
    /// Reads all weights, layer by layer.
    pub(super) fn load(
        gpu: &Gpu,
        loader: &Loader<'_>,
        config: &DecoderConfig,
        is_tied: bool,
    ) -> Result<Self, LoadError> {
        let reader = Reader { gpu, loader };
        let (vocab, hidden) = (config.vocab_size, config.hidden_size);
        let matrix = |name: &str| reader.stack(&[(name.to_owned(), vec![vocab, hidden])]);
        Ok(Self {
            embedding: matrix("model.embed_tokens.weight")?,
            head: if is_tied { None } else { Some(matrix("lm_head.weight")?) },
            layers: (0..config.num_layers).map(|layer| reader.layer(config, layer)).collect::<Result<_, _>>()?,
            final_norm: reader.vector("model.norm", hidden)?,
        })
    }

    /// The matrix that turns hidden rows into logits.
    pub(super) fn head(&self) -> &Buffer<T> {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// All products of layers.
    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear<T>> {
        self.layers.iter().flat_map(|layer| [&layer.qkv, &layer.output, &layer.gate_up, &layer.down])
    }

    /// Bytes on the device.
    pub(super) fn bytes(&self) -> usize {
        let own = self.embedding.len() + self.head.as_ref().map_or(0, Buffer::len) + self.final_norm.len();
        own * size_of::<T>() + self.layers.iter().map(LayerWeights::bytes).sum::<usize>()
    }
}

impl<T: Activation> LayerWeights<T> {
    fn bytes(&self) -> usize {
        let qk_norm = self.qk_norm.as_ref().map_or(0, |(query, key)| query.len() + key.len());
        let norms = self.input_norm.len() + self.post_norm.len() + qk_norm;
        let linears = [&self.qkv, &self.output, &self.gate_up, &self.down];
        norms * size_of::<T>() + linears.into_iter().map(Linear::bytes).sum::<usize>()
    }
}

struct Reader<'a> {
    gpu: &'a Gpu,
    loader: &'a Loader<'a>,
}

impl Reader<'_> {
    fn layer<T: Activation>(&self, config: &DecoderConfig, layer: usize) -> Result<LayerWeights<T>, LoadError> {
        let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
        let (query, key) = (config.query_width(), config.key_width());
        let module = |name: &str| format!("model.layers.{layer}.{name}");
        let projections = [("q_proj", query), ("k_proj", key), ("v_proj", key)];
        let projections = projections.map(|(name, rows)| (module(&format!("self_attn.{name}")), rows));
        let gate_up = ["gate_proj", "up_proj"].map(|name| (module(&format!("mlp.{name}")), intermediate));
        let qk_norm = if config.qk_norm {
            let norm = |name: &str| self.vector(&module(&format!("self_attn.{name}")), config.head_dim);
            Some((norm("q_norm")?, norm("k_norm")?))
        } else {
            None
        };
        Ok(LayerWeights {
            input_norm: self.vector(&module("input_layernorm"), hidden)?,
            qkv: self.linear(&projections, hidden, config.qkv_bias)?,
            qk_norm,
            output: self.linear(&[(module("self_attn.o_proj"), hidden)], query, config.output_bias)?,
            post_norm: self.vector(&module("post_attention_layernorm"), hidden)?,
            gate_up: self.linear(&gate_up, hidden, config.mlp_bias)?,
            down: self.linear(&[(module("mlp.down_proj"), hidden)], intermediate, config.mlp_bias)?,
        })
    }

    /// Modules with the same input, one below the other.
    fn linear<T: Activation>(
        &self,
        modules: &[(String, usize)],
        inputs: usize,
        is_biased: bool,
    ) -> Result<Linear<T>, LoadError> {
        let outputs = modules.iter().map(|(_, rows)| rows).sum();
        let weights: Vec<_> =
            modules.iter().map(|(module, rows)| (format!("{module}.weight"), vec![*rows, inputs])).collect();
        let biases: Vec<_> = modules.iter().map(|(module, rows)| (format!("{module}.bias"), vec![*rows])).collect();
        let bias = if is_biased { Some(self.stack(&biases)?) } else { None };
        let mut is_plain = true;
        for (name, shape) in &weights {
            is_plain &= !self.loader.format(name, shape)?.is_quantised();
        }
        let parts = if is_plain {
            vec![Part::Plain(self.stack(&weights)?)]
        } else {
            weights.iter().map(|weight| self.part(weight)).collect::<Result<_, _>>()?
        };
        Ok(Linear { parts, bias, inputs, outputs })
    }

    /// One matrix in the format that it has in its file.
    fn part<T: Activation>(&self, tensor: &(String, Vec<usize>)) -> Result<Part<T>, LoadError> {
        let (name, shape) = tensor;
        let (format, bytes) = self.loader.tensor(name, shape)?;
        if !format.is_quantised() {
            return Ok(Part::Plain(self.stack(std::slice::from_ref(tensor))?));
        }
        let matrix = QuantisedMatrix::new(self.gpu, format, (shape[0], shape[1]), &bytes).map_err(memory)?;
        self.loader.advance(bytes.len());
        Ok(Part::Quantised(matrix))
    }

    fn vector<T: Activation>(&self, module: &str, len: usize) -> Result<Buffer<T>, LoadError> {
        self.stack(&[(format!("{module}.weight"), vec![len])])
    }

    /// Tensors one after the other in one buffer.
    fn stack<T: Activation>(&self, tensors: &[(String, Vec<usize>)]) -> Result<Buffer<T>, LoadError> {
        let len_of = |shape: &[usize]| shape.iter().product::<usize>();
        let all = tensors.iter().map(|(_, shape)| len_of(shape)).sum();
        let mut buffer = self.gpu.alloc(all).map_err(memory)?;
        let mut start = 0;
        for (name, shape) in tensors {
            let len = len_of(shape);
            let (format, bytes) = self.loader.tensor(name, shape)?;
            write(format, &bytes, *shape.last().unwrap_or(&1), buffer.slice_mut(start..start + len)).map_err(memory)?;
            self.loader.advance(bytes.len());
            start += len;
        }
        Ok(buffer)
    }
}

/// Converts a tensor and copies it to the device, some rows at a time.
fn write<T: Activation>(
    format: WeightFormat,
    bytes: &[u8],
    cols: usize,
    mut to: ViewMut<'_, T>,
) -> Result<(), CudaError> {
    if format.name() == T::SUFFIX {
        return to.write_bytes(bytes);
    }
    let rows_at_once = (CHUNK / cols.max(1)).max(1);
    let row_bytes = format.bytes_for(1, cols).unwrap_or(1).max(1);
    let mut start = 0;
    for part in bytes.chunks(rows_at_once * row_bytes) {
        let numbers = numbers::<T>(format, part, cols)?;
        to.slice_mut(start..start + numbers.len()).write(&numbers)?;
        start += numbers.len();
    }
    Ok(())
}

/// The numbers of whole rows, rounded to nearest.
fn numbers<T: Activation>(format: WeightFormat, bytes: &[u8], cols: usize) -> Result<Vec<T>, CudaError> {
    Ok(match format {
        WeightFormat::F32 => bytes.as_chunks().0.iter().map(|&b| T::from_f32(f32::from_le_bytes(b))).collect(),
        WeightFormat::F16 => bytes.as_chunks().0.iter().map(|&b| T::from_f32(f16::from_le_bytes(b).to_f32())).collect(),
        WeightFormat::Bf16 => {
            bytes.as_chunks().0.iter().map(|&b| T::from_f32(bf16::from_le_bytes(b).to_f32())).collect()
        }
        quantised => {
            let row_bytes = quantised.bytes_for(1, cols).unwrap_or(1).max(1);
            let (mut row, mut numbers) = (vec![0.0; cols], Vec::with_capacity(bytes.len() / row_bytes * cols));
            for bytes in bytes.chunks_exact(row_bytes) {
                quant::dequantise_row(quantised, bytes, &mut row)?;
                numbers.extend(row.iter().map(|&number| T::from_f32(number)));
            }
            numbers
        }
    })
}

/// A failure of the device while weights are read.
pub(super) fn memory(source: CudaError) -> LoadError {
    LoadError::Gpu { source }
}
