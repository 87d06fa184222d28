//! Self-attention over the paged cache: the one copy, for all families.

use millgate_kernels::{AttentionBatch, KvLayer, Pool, QkNorm, RopeStore, RopeTable};

use crate::batch::Batch;
use crate::layers::{Linear, RmsNorm};
use crate::model::ForwardError;
use crate::ops;
use crate::weights::{Loader, WeightsError};
use crate::workspace::AttentionSpace;

/// Sizes of one attention layer and which extras it has.
#[derive(Debug, Clone, Copy)]
pub(crate) struct AttentionShape {
    pub(crate) hidden_size: usize,
    pub(crate) num_heads: usize,
    pub(crate) num_kv_heads: usize,
    pub(crate) head_dim: usize,
    /// Query, key and value projections have biases.
    pub(crate) qkv_bias: bool,
    /// The output projection has one.
    pub(crate) output_bias: bool,
    /// Latest positions a query sees, itself included.
    pub(crate) window: Option<u32>,
}

/// Weights of one attention layer.
#[derive(Debug)]
pub(crate) struct Attention {
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    qk_norm: Option<QkNormWeights>,
    scale: f32,
    window: Option<u32>,
}

/// Norms of queries and keys, a head at a time.
#[derive(Debug)]
pub(crate) struct QkNormWeights {
    pub(crate) query: RmsNorm,
    pub(crate) key: RmsNorm,
}

impl Attention {
    /// Reads `{module}.q_proj`, `k_proj`, `v_proj` and `o_proj`.
    pub(crate) fn load(
        loader: &Loader<'_>,
        module: &str,
        shape: &AttentionShape,
        qk_norm: Option<QkNormWeights>,
    ) -> Result<Self, WeightsError> {
        let load = |name: &str, rows, cols, is_biased| {
            Linear::load(loader, &format!("{module}.{name}"), rows, cols, is_biased)
        };
        let query_width = shape.num_heads * shape.head_dim;
        let key_width = shape.num_kv_heads * shape.head_dim;
        Ok(Self {
            query: load("q_proj", query_width, shape.hidden_size, shape.qkv_bias)?,
            key: load("k_proj", key_width, shape.hidden_size, shape.qkv_bias)?,
            value: load("v_proj", key_width, shape.hidden_size, shape.qkv_bias)?,
            output: load("o_proj", shape.hidden_size, query_width, shape.output_bias)?,
            qk_norm,
            scale: 1.0 / (shape.head_dim as f32).sqrt(),
            window: shape.window,
        })
    }

    /// Stores this step's keys and values and attends with every query; the result lies in `space.mixed`.
    ///
    /// # Shapes
    /// `x`: `[tokens, hidden]`.
    pub(crate) fn mix(
        &self,
        pool: &Pool,
        x: &[f32],
        step: &AttentionStep<'_>,
        kv: &mut KvLayer,
        space: &mut AttentionSpace,
    ) -> Result<(), ForwardError> {
        let tokens = step.batch.tokens.len();
        let (query_len, key_len) = (tokens * self.query.weight.rows(), tokens * self.key.weight.rows());
        let query = &mut space.query[..query_len];
        let (key, value) = (&mut space.key[..key_len], &mut space.value[..key_len]);
        ops::linear_each(pool, x, [(&self.query, query), (&self.key, key), (&self.value, value)])?;
        let input = RopeStore {
            k: key,
            v: value,
            positions: &step.batch.positions,
            slots: &step.batch.slots,
            rope: step.rope,
            qk_norm: self.qk_norm.as_ref().map(|norm| QkNorm {
                q: &norm.query.weight,
                k: &norm.key.weight,
                eps: norm.query.eps,
            }),
        };
        ops::rope_store(pool, query, &input, kv)?;
        let batch = AttentionBatch {
            sequences: &step.batch.sequences,
            tables: &step.batch.tables,
            scale: self.scale,
            window: self.window,
        };
        ops::paged_attention(pool, query, kv, &batch, &mut space.mixed[..query_len])
    }

    /// Projects mixed rows back to the hidden width.
    ///
    /// # Shapes
    /// `mixed`: `[rows, heads * head_dim]`, `out`: `[rows, hidden]`.
    pub(crate) fn project(&self, pool: &Pool, mixed: &[f32], out: &mut [f32]) -> Result<(), ForwardError> {
        ops::linear(pool, mixed, &self.output, out)
    }

    /// Width of a mixed row.
    pub(crate) fn mixed_width(&self) -> usize {
        self.output.weight.cols()
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        let norms = self.qk_norm.as_ref().map_or(0, |norm| norm.query.bytes() + norm.key.bytes());
        [&self.query, &self.key, &self.value, &self.output].into_iter().map(Linear::bytes).sum::<usize>() + norms
    }
}

/// What attention needs to know of the step beside its input rows.
pub(crate) struct AttentionStep<'a> {
    pub(crate) batch: &'a Batch,
    pub(crate) rope: &'a RopeTable,
}
