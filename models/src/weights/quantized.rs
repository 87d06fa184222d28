//! Weights quantised while they load: dense matrices are handed out as blocks, everything else as it is stored.

use std::collections::BTreeMap;

use millgate_kernels::{KernelError, WeightFormat, quant};

use crate::options::QuantizeTo;
use crate::weights::{MappedBytes, QuantizedCache, Shard, TensorFormat, TensorHeader, Weights, WeightsError};

/// From this many bytes on, a matrix is quantised on all cores.
const SHARE_FROM_BYTES: usize = 1 << 20;

/// Which matrices become blocks, and of which format.
pub(crate) type Targets = BTreeMap<String, WeightFormat>;

/// Dense weights seen as quantised ones.
pub(crate) struct QuantizedWeights<'a> {
    pub(crate) stored: &'a dyn Weights,
    pub(crate) targets: &'a Targets,
    /// Blocks of an earlier load.
    pub(crate) cache: Option<&'a QuantizedCache>,
}

impl QuantizeTo {
    /// What a matrix becomes; `None` for one that stays as it is.
    ///
    /// Four-bit models keep embedding and output head in six bits: they are read once a token and err the most. A matrix
    /// whose rows are no whole blocks takes the next finer format that fits.
    pub(crate) fn target(self, name: &str, shape: &[usize], stored: WeightFormat) -> Option<WeightFormat> {
        let &[_, cols] = shape else { return None };
        if stored.is_quantised() {
            return None;
        }
        let is_outer = matches!(name, "model.embed_tokens.weight" | "lm_head.weight");
        let wishes: &[WeightFormat] = match self {
            Self::Q8_0 => &[WeightFormat::Q8_0],
            Self::Q4K if is_outer => &[WeightFormat::Q6K, WeightFormat::Q8_0],
            Self::Q4K => &[WeightFormat::Q4K, WeightFormat::Q8_0],
        };
        wishes.iter().copied().find(|format| cols > 0 && cols.is_multiple_of(format.block_weights()))
    }
}

impl QuantizedWeights<'_> {
    fn quantise(&self, name: &str, to: WeightFormat, shard: Shard) -> Result<Vec<u8>, WeightsError> {
        let header = self.stored.header(name);
        let Some(TensorHeader { shape, format: TensorFormat::Known(from) }) = header else {
            let (file, name) = self.stored.place(name);
            return Err(WeightsError::Missing { name, file });
        };
        let cols = shape.last().copied().unwrap_or(0);
        let bytes = self.stored.read(name, shard)?;
        quantise_matrix(from, to, cols, &bytes).map_err(|source| {
            let (file, name) = self.stored.place(name);
            WeightsError::Pack { name, file, source }
        })
    }
}

impl Weights for QuantizedWeights<'_> {
    fn header(&self, name: &str) -> Option<TensorHeader> {
        let stored = self.stored.header(name)?;
        Some(match self.targets.get(name) {
            Some(&target) => TensorHeader { format: TensorFormat::Known(target), ..stored },
            None => stored,
        })
    }

    fn read(&self, name: &str, shard: Shard) -> Result<MappedBytes<'_>, WeightsError> {
        match (self.targets.get(name), self.cache) {
            (None, _) => self.stored.read(name, shard),
            (Some(_), Some(cache)) => cache.read(name, shard),
            (Some(&to), None) => Ok(MappedBytes::Owned(self.quantise(name, to, shard)?)),
        }
    }

    fn names(&self) -> Vec<String> {
        self.stored.names()
    }

    fn place(&self, name: &str) -> (String, String) {
        self.stored.place(name)
    }

    fn stamp(&self) -> String {
        self.stored.stamp()
    }
}

/// Quantises a row-major matrix, rows shared among the cores.
///
/// # Errors
/// [`KernelError::Format`] for weights that are not finite.
fn quantise_matrix(from: WeightFormat, to: WeightFormat, cols: usize, bytes: &[u8]) -> Result<Vec<u8>, KernelError> {
    let row_bytes = |format: WeightFormat| format.bytes_for(1, cols).unwrap_or(0).max(1);
    let (stored_row, block_row) = (row_bytes(from), row_bytes(to));
    let rows = bytes.len() / stored_row;
    let mut blocks = vec![0; rows * block_row];
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZeroUsize::get);
    let threads = if bytes.len() < SHARE_FROM_BYTES { 1 } else { threads };
    let share = rows.div_ceil(threads).max(1);
    let quantise_rows = |stored: &[u8], blocks: &mut [u8]| {
        let mut weights = vec![0.0; cols];
        for (stored, blocks) in stored.chunks_exact(stored_row).zip(blocks.chunks_exact_mut(block_row)) {
            quant::dequantise_row(from, stored, &mut weights)?;
            quant::quantise_row(to, &weights, blocks)?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let parts = bytes.chunks(share * stored_row).zip(blocks.chunks_mut(share * block_row));
        let workers: Vec<_> =
            parts.map(|(stored, blocks)| scope.spawn(move || quantise_rows(stored, blocks))).collect();
        workers
            .into_iter()
            .try_for_each(|worker| worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })?;
    Ok(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_matrix_takes_the_coarsest_format_that_its_rows_are_whole_blocks_of() {
        let target = |to: QuantizeTo, name, shape: &[usize], stored| to.target(name, shape, stored);
        let (q8, q4) = (QuantizeTo::Q8_0, QuantizeTo::Q4K);
        let bf16 = WeightFormat::Bf16;
        assert_eq!(target(q8, "w", &[4, 512], bf16), Some(WeightFormat::Q8_0));
        assert_eq!(target(q4, "w", &[4, 512], bf16), Some(WeightFormat::Q4K));
        assert_eq!(target(q4, "w", &[4, 96], bf16), Some(WeightFormat::Q8_0));
        assert_eq!(target(q4, "lm_head.weight", &[4, 512], bf16), Some(WeightFormat::Q6K));
        assert_eq!(target(q4, "w", &[4, 40], bf16), None, "40 columns are no whole blocks of any kind");
        assert_eq!(target(q8, "norm", &[512], bf16), None, "vectors stay");
        assert_eq!(target(q4, "w", &[4, 512], WeightFormat::Q8_0), None, "what is quantised stays");
    }

    #[test]
    fn rows_are_the_same_whether_one_core_quantises_them_or_several() {
        let cols = 256;
        let floats: Vec<f32> = (0..cols * 1500_usize).map(|index| ((index * 7919) as f32 * 0.001).sin()).collect();
        let bytes: Vec<u8> = floats.iter().flat_map(|value| value.to_le_bytes()).collect();
        assert!(bytes.len() > SHARE_FROM_BYTES);
        let all = quantise_matrix(WeightFormat::F32, WeightFormat::Q4K, cols, &bytes).unwrap();
        let (row, blocks) = (cols * 4, 144);
        for index in [0, 749, 750, 1499] {
            let one =
                quantise_matrix(WeightFormat::F32, WeightFormat::Q4K, cols, &bytes[index * row..][..row]).unwrap();
            assert_eq!(all[index * blocks..][..blocks], one, "row {index}");
        }
    }
}
