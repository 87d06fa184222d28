//! Token embeddings and the output head, which may be one matrix.

use millgate_kernels::PackedMatrix;

use crate::weights::{Loader, WeightsError};

/// The embedding matrix, and the output head's where that is another one.
#[derive(Debug)]
pub(crate) struct Embedding {
    tokens: PackedMatrix,
    head: Option<PackedMatrix>,
}

impl Embedding {
    /// Reads `model.embed_tokens.weight` and, unless tied, `lm_head.weight`.
    pub(crate) fn load(
        loader: &Loader<'_>,
        vocab_size: usize,
        hidden_size: usize,
        is_tied: bool,
    ) -> Result<Self, WeightsError> {
        let tokens = loader.matrix("model.embed_tokens.weight", vocab_size, hidden_size)?;
        let head = if is_tied { None } else { Some(loader.matrix("lm_head.weight", vocab_size, hidden_size)?) };
        Ok(Self { tokens, head })
    }

    /// The matrix that tokens look their rows up in.
    pub(crate) fn tokens(&self) -> &PackedMatrix {
        &self.tokens
    }

    /// The matrix that turns hidden rows into logits.
    pub(crate) fn head(&self) -> &PackedMatrix {
        self.head.as_ref().unwrap_or(&self.tokens)
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.tokens.bytes() + self.head.as_ref().map_or(0, PackedMatrix::bytes)
    }
}
