//! What a model is, in figures people compare.

use std::fmt;

use millgate_kernels::WeightFormat;

/// What a model is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    /// Family, such as `llama` or `qwen3`.
    pub architecture: String,
    /// Weights, a tied head counted once.
    pub parameters: u64,
    /// Formats of the matrices, the most used first.
    pub formats: Vec<FormatCount>,
    /// Longest sequence the model was made for, in tokens.
    pub context_window: usize,
    /// Decoder layers.
    pub num_layers: usize,
    /// Width of the stream between layers.
    pub hidden_size: usize,
    /// Width inside feed-forward layers.
    pub intermediate_size: usize,
    /// Query heads.
    pub num_heads: usize,
    /// Key and value heads.
    pub num_kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// Logits a row.
    pub vocab_size: usize,
    /// The narrowest window of any layer, in tokens.
    pub sliding_window: Option<u32>,
    /// Rotary scaling and base, in words.
    pub rope: String,
    /// The output head is the embedding.
    pub is_head_tied: bool,
    /// Weight files on disk.
    pub file_bytes: u64,
    /// KV cache of one token with `kv_dtype = auto`.
    pub kv_bytes_per_token: u64,
}

/// How many weights come in one format.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FormatCount {
    /// The format.
    pub format: WeightFormat,
    /// Weights in it.
    pub parameters: u64,
}

impl FormatCount {
    /// Adds weights up by format, the most used first.
    pub(crate) fn count(tensors: impl Iterator<Item = (WeightFormat, u64)>) -> Vec<Self> {
        let mut counts: Vec<Self> = Vec::new();
        for (format, parameters) in tensors {
            match counts.iter_mut().find(|count| count.format == format) {
                Some(count) => count.parameters += parameters,
                None => counts.push(Self { format, parameters }),
            }
        }
        counts.sort_by_key(|count| std::cmp::Reverse(count.parameters));
        counts
    }
}

impl Summary {
    /// The formats of the matrices in one word each, such as `bf16` or `q4_k + q6_k`.
    pub fn format_names(&self) -> String {
        let names: Vec<&str> = self.formats.iter().map(|count| count.format.name()).collect();
        names.join(" + ")
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millions = self.parameters as f64 / 1e6;
        write!(
            formatter,
            "{}, {millions:.1} M parameters in {}, {} layers, context {} tokens",
            self.architecture,
            self.format_names(),
            self.num_layers,
            self.context_window
        )
    }
}
