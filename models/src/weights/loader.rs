//! Turns tensors of weight files into packed matrices and vectors, one at a time.

use half::{bf16, f16};
use millgate_kernels::{KernelError, PackedMatrix, WeightFormat, WeightMemory, quant};

use crate::progress::Progress;
use crate::weights::format::SUPPORTED_FORMATS;
use crate::weights::{Shard, TensorFormat, Weights, WeightsError};

/// Reads tensors for a model under construction and reports how far it is.
///
/// A tensor's pages are given back once it is packed, so that weights are resident about once, not twice.
pub(crate) struct Loader<'a> {
    weights: &'a dyn Weights,
    shard: Shard,
    progress: &'a dyn Progress,
    memory: WeightMemory,
}

impl<'a> Loader<'a> {
    pub(crate) fn new(weights: &'a dyn Weights, progress: &'a dyn Progress) -> Self {
        Self { weights, shard: Shard::Whole, progress, memory: WeightMemory::default() }
    }

    /// A weight matrix, packed for the kernels.
    pub(crate) fn matrix(&self, name: &str, rows: usize, cols: usize) -> Result<PackedMatrix, WeightsError> {
        self.check_wanted()?;
        let format = self.weights.require(name, &[rows, cols])?;
        let bytes = self.weights.read(name, self.shard)?;
        let packed = PackedMatrix::pack_in(&self.memory, format, (rows, cols), &bytes);
        let packed = packed.map_err(|source| self.kernel_error(name, source))?;
        self.progress.advance(bytes.len() as u64);
        Ok(packed)
    }

    /// A norm's weights or a bias, widened to f32.
    pub(crate) fn vector(&self, name: &str, length: usize) -> Result<Vec<f32>, WeightsError> {
        self.check_wanted()?;
        let format = self.weights.require(name, &[length])?;
        let bytes = self.weights.read(name, self.shard)?;
        quant::check(format, &bytes).map_err(|source| self.kernel_error(name, source))?;
        let values = match format {
            WeightFormat::F32 => bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
            WeightFormat::F16 => bytes.chunks_exact(2).map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            WeightFormat::Bf16 => bytes.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect(),
            quantised => {
                let (file, name) = self.weights.place(name);
                let found = TensorFormat::Known(quantised).name().to_owned() + " (a vector)";
                return Err(WeightsError::Format { name, file, found, supported: SUPPORTED_FORMATS });
            }
        };
        self.progress.advance(bytes.len() as u64);
        Ok(values)
    }

    /// The number format of a tensor.
    #[cfg(feature = "cuda")]
    pub(crate) fn format(&self, name: &str, shape: &[usize]) -> Result<WeightFormat, WeightsError> {
        self.weights.require(name, shape)
    }

    /// A tensor as it lies in the file, checked. Call [`Self::advance`] once its bytes are used.
    #[cfg(feature = "cuda")]
    pub(crate) fn tensor(
        &self,
        name: &str,
        shape: &[usize],
    ) -> Result<(WeightFormat, crate::weights::MappedBytes<'_>), WeightsError> {
        self.check_wanted()?;
        let format = self.weights.require(name, shape)?;
        let bytes = self.weights.read(name, self.shard)?;
        quant::check(format, &bytes).map_err(|source| self.kernel_error(name, source))?;
        Ok((format, bytes))
    }

    /// Reports bytes that have been used.
    #[cfg(feature = "cuda")]
    pub(crate) fn advance(&self, bytes: usize) {
        self.progress.advance(bytes as u64);
    }

    fn check_wanted(&self) -> Result<(), WeightsError> {
        if self.progress.is_cancelled() { Err(WeightsError::Cancelled) } else { Ok(()) }
    }

    fn kernel_error(&self, name: &str, source: KernelError) -> WeightsError {
        let (file, name) = self.weights.place(name);
        WeightsError::Pack { name, file, source }
    }
}
