//! The tensors of a GGUF file under their Hugging Face names, rows in Hugging Face order.

use std::sync::Arc;

use crate::weights::tensor::shard_range;
use crate::weights::{
    GgufFile, GgufTensor, MappedBytes, Shard, TensorHeader, Weights, WeightsError, gguf_name, huggingface_name,
};

/// A GGUF file seen as Hugging Face weights.
#[derive(Debug)]
pub struct GgufWeights {
    file: Arc<GgufFile>,
    interleaved: Option<AttentionHeads>,
}

/// Head counts, needed to undo the row order that GGUF uses for Llama's rotary projections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct AttentionHeads {
    pub(crate) query: usize,
    pub(crate) key: usize,
}

impl GgufWeights {
    /// Weights of an architecture whose rows GGUF keeps in Hugging Face order.
    pub(crate) fn new(file: Arc<GgufFile>) -> Self {
        Self { file, interleaved: None }
    }

    /// Weights of architecture `llama`, whose query and key rows GGUF stores as interleaved pairs.
    pub(crate) fn with_interleaved_rotary(file: Arc<GgufFile>, heads: AttentionHeads) -> Self {
        Self { file, interleaved: Some(heads) }
    }

    fn tensor(&self, name: &str) -> Option<&GgufTensor> {
        match gguf_name(name) {
            Some(gguf) => self.file.tensors().get(&gguf),
            None => self.file.tensors().get(name),
        }
    }

    fn interleaved_heads(&self, name: &str) -> Option<usize> {
        let heads = self.interleaved?;
        let module = name.rsplit_once('.')?.0;
        if module.ends_with("self_attn.q_proj") {
            Some(heads.query)
        } else if module.ends_with("self_attn.k_proj") {
            Some(heads.key)
        } else {
            None
        }
    }
}

impl Weights for GgufWeights {
    fn header(&self, name: &str) -> Option<TensorHeader> {
        let tensor = self.tensor(name)?;
        Some(TensorHeader { shape: tensor.shape.clone(), format: tensor.format.clone() })
    }

    fn read(&self, name: &str, shard: Shard) -> Result<MappedBytes<'_>, WeightsError> {
        let Some(tensor) = self.tensor(name) else {
            let (file, name) = self.place(name);
            return Err(WeightsError::Missing { name, file });
        };
        self.require(name, &tensor.shape)?;
        let bytes = self.file.tensor_bytes(tensor)?;
        let part = shard_range(bytes.len(), &tensor.shape, shard);
        let Some(heads) = self.interleaved_heads(name) else { return Ok(bytes.narrowed(part)) };
        let rows = tensor.shape.first().copied().unwrap_or(0);
        Ok(MappedBytes::Owned(halves_from_pairs(&bytes, rows, heads)).narrowed(part))
    }

    fn names(&self) -> Vec<String> {
        let translate = |name: &String| huggingface_name(name).unwrap_or_else(|| name.clone());
        let mut names: Vec<String> = self.file.tensors().keys().map(translate).collect();
        names.sort();
        names
    }

    fn place(&self, name: &str) -> (String, String) {
        (self.file.name().to_owned(), gguf_name(name).unwrap_or_else(|| name.to_owned()))
    }

    fn stamp(&self) -> String {
        self.file.stamp()
    }
}

/// Puts the rows of each head from interleaved pairs (`0, half, 1, half + 1, ...`) back into two halves.
///
/// Rows move whole, so this works on quantised bytes as well.
fn halves_from_pairs(bytes: &[u8], rows: usize, heads: usize) -> Vec<u8> {
    if heads == 0 || rows == 0 || !rows.is_multiple_of(2 * heads) || !bytes.len().is_multiple_of(rows) {
        return bytes.to_vec();
    }
    let row_bytes = bytes.len() / rows;
    let head_dim = rows / heads;
    let mut ordered = Vec::with_capacity(bytes.len());
    for row in 0..rows {
        let (head, within) = (row / head_dim, row % head_dim);
        let (half, pair) = (within / (head_dim / 2), within % (head_dim / 2));
        let source = head * head_dim + 2 * pair + half;
        ordered.extend_from_slice(&bytes[source * row_bytes..(source + 1) * row_bytes]);
    }
    ordered
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pairs_become_halves_within_each_head() {
        // Two heads of four rows, two bytes a row; a row's first byte is its place in Hugging Face order.
        let stored = [0, 2, 1, 3, 4, 6, 5, 7].map(|row| [row, 100]).concat();
        let ordered = halves_from_pairs(&stored, 8, 2);
        let rows: Vec<u8> = ordered.chunks(2).map(|row| row[0]).collect();
        assert_eq!(rows, [0, 1, 2, 3, 4, 5, 6, 7]);
    }
}
