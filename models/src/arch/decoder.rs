//! The decoder that Llama, Mistral and Qwen share: norms before attention and feed-forward, a norm before the head.

use std::sync::Arc;

use millgate_kernels::{KernelError, KvShape, Pool, RopeTable};

use crate::arch::DecoderConfig;
use crate::batch::Batch;
use crate::kv::KvCache;
use crate::layers::{
    Attention, AttentionShape, AttentionStep, Embedding, Mlp, QkNormWeights, RmsNorm, inverse_frequencies,
};
use crate::model::{ForwardError, Model, ModelSpec};
use crate::ops;
use crate::weights::{Loader, WeightsError};
use crate::workspace::{MlpSpace, Workspace, WorkspaceShape};

/// Weights of a decoder.
#[derive(Debug)]
pub(crate) struct DecoderWeights {
    embedding: Embedding,
    blocks: Vec<Block>,
    final_norm: RmsNorm,
}

#[derive(Debug)]
struct Block {
    input_norm: RmsNorm,
    attention: Attention,
    post_norm: RmsNorm,
    mlp: Mlp,
}

/// A decoder ready to compute.
pub(crate) struct Decoder {
    spec: ModelSpec,
    pool: Arc<Pool>,
    weights: DecoderWeights,
    rope: RopeTable,
    kv: KvCache,
    space: Workspace,
}

/// The activations that a decoder of this config needs.
pub(crate) fn workspace_shape(
    config: &DecoderConfig,
    max_step_tokens: usize,
    max_output_rows: usize,
) -> WorkspaceShape {
    WorkspaceShape {
        max_step_tokens,
        max_output_rows,
        hidden_size: config.hidden_size,
        query_width: config.query_width(),
        key_width: config.key_width(),
        intermediate_size: config.intermediate_size,
        vocab_size: config.vocab_size,
    }
}

impl DecoderWeights {
    /// Reads all weights, layer by layer.
    pub(crate) fn load(loader: &Loader<'_>, config: &DecoderConfig, is_tied: bool) -> Result<Self, WeightsError> {
        let embedding = Embedding::load(loader, config.vocab_size, config.hidden_size, is_tied)?;
        let blocks =
            (0..config.num_layers).map(|layer| Block::load(loader, config, layer)).collect::<Result<_, _>>()?;
        let final_norm = RmsNorm::load(loader, "model.norm", config.hidden_size, config.rms_norm_eps)?;
        Ok(Self { embedding, blocks, final_norm })
    }

    /// Bytes in memory.
    pub(crate) fn bytes(&self) -> usize {
        self.embedding.bytes() + self.final_norm.bytes() + self.blocks.iter().map(Block::bytes).sum::<usize>()
    }
}

impl Block {
    fn load(loader: &Loader<'_>, config: &DecoderConfig, layer: usize) -> Result<Self, WeightsError> {
        let (hidden, eps) = (config.hidden_size, config.rms_norm_eps);
        let module = |name: &str| format!("model.layers.{layer}.{name}");
        let shape = AttentionShape {
            hidden_size: hidden,
            num_heads: config.num_heads,
            num_kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            qkv_bias: config.qkv_bias,
            output_bias: config.output_bias,
            window: config.windows[layer],
        };
        let qk_norm = if config.qk_norm {
            Some(QkNormWeights {
                query: RmsNorm::load(loader, &module("self_attn.q_norm"), config.head_dim, eps)?,
                key: RmsNorm::load(loader, &module("self_attn.k_norm"), config.head_dim, eps)?,
            })
        } else {
            None
        };
        Ok(Self {
            input_norm: RmsNorm::load(loader, &module("input_layernorm"), hidden, eps)?,
            attention: Attention::load(loader, &module("self_attn"), &shape, qk_norm)?,
            post_norm: RmsNorm::load(loader, &module("post_attention_layernorm"), hidden, eps)?,
            mlp: Mlp::load(loader, &module("mlp"), hidden, config.intermediate_size, config.mlp_bias)?,
        })
    }

    fn bytes(&self) -> usize {
        self.input_norm.bytes() + self.attention.bytes() + self.post_norm.bytes() + self.mlp.bytes()
    }

    /// Everything after attention: output projection, feed-forward, and the norm that the next layer begins with.
    fn finish(&self, pool: &Pool, rows: Rows<'_>, mlp: &mut MlpSpace, next_norm: &RmsNorm) -> Result<(), ForwardError> {
        let Rows { mixed, residual, normed, returned } = rows;
        self.attention.project(pool, mixed, returned)?;
        ops::add_rms_norm(pool, residual, returned, &self.post_norm, normed)?;
        self.mlp.forward(pool, normed, mlp, returned)?;
        ops::add_rms_norm(pool, residual, returned, next_norm, normed)
    }
}

/// The rows that a block finishes.
struct Rows<'a> {
    mixed: &'a [f32],
    residual: &'a mut [f32],
    normed: &'a mut [f32],
    returned: &'a mut [f32],
}

/// Limits of a decoder's step and cache.
pub(crate) struct DecoderLimits {
    pub(crate) spec: ModelSpec,
    pub(crate) kv_shape: KvShape,
}

impl Decoder {
    /// Puts weights, cache and activations together.
    ///
    /// # Errors
    /// [`KernelError::Alloc`] when cache or activations do not fit into memory.
    pub(crate) fn new(
        config: &DecoderConfig,
        weights: DecoderWeights,
        limits: DecoderLimits,
        pool: Arc<Pool>,
    ) -> Result<Self, KernelError> {
        let DecoderLimits { spec, kv_shape } = limits;
        let frequencies = inverse_frequencies(config.rope_theta, config.head_dim, &config.rope_scaling);
        let rope = RopeTable::new(&frequencies, 1.0, spec.context_window);
        let kv = KvCache::new(kv_shape, config.num_layers, spec.num_blocks)?;
        let space = Workspace::new(&workspace_shape(config, spec.max_step_tokens, spec.max_output_rows))?;
        Ok(Self { spec, pool, weights, rope, kv, space })
    }

    /// Computes the hidden rows of `batch.output_rows` and their logits.
    fn step(&mut self, batch: &Batch) -> Result<(), ForwardError> {
        let Self { pool, weights, rope, kv, space, .. } = self;
        let DecoderWeights { embedding, blocks, final_norm } = weights;
        let hidden = embedding.tokens().cols();
        let stream = batch.tokens.len() * hidden;
        let step = AttentionStep { batch, rope };
        ops::embed(&batch.tokens, embedding.tokens(), &mut space.residual[..stream])?;
        ops::rms_norm(pool, &space.residual[..stream], &blocks[0].input_norm, &mut space.normed[..stream])?;
        for (layer, (block, kv)) in blocks.iter().zip(&mut kv.layers).enumerate() {
            block.attention.mix(pool, &space.normed[..stream], &step, kv, &mut space.attention)?;
            let width = block.attention.mixed_width();
            let Some(next) = blocks.get(layer + 1) else {
                // After the last attention only the rows whose logits are wanted matter.
                let outputs = &batch.output_rows;
                let out = &mut space.output;
                let (mixed, residual) =
                    (&mut out.mixed[..outputs.len() * width], &mut out.residual[..outputs.len() * hidden]);
                ops::gather(outputs, width, &space.attention.mixed, mixed);
                ops::gather(outputs, hidden, &space.residual, residual);
                let (normed, returned) = (&mut space.normed[..residual.len()], &mut space.returned[..residual.len()]);
                let rows = Rows { mixed, residual, normed, returned };
                block.finish(pool, rows, &mut space.mlp, final_norm)?;
                break;
            };
            let rows = Rows {
                mixed: &space.attention.mixed[..batch.tokens.len() * width],
                residual: &mut space.residual[..stream],
                normed: &mut space.normed[..stream],
                returned: &mut space.returned[..stream],
            };
            block.finish(pool, rows, &mut space.mlp, &next.input_norm)?;
        }
        let outputs = batch.output_rows.len();
        let head = embedding.head();
        ops::head(pool, &space.normed[..outputs * hidden], head, &mut space.output.logits[..outputs * head.rows()])
    }
}

impl Model for Decoder {
    fn spec(&self) -> &ModelSpec {
        &self.spec
    }

    fn forward(&mut self, batch: &Batch) -> Result<&[f32], ForwardError> {
        batch.check(&self.spec)?;
        if !batch.tokens.is_empty() {
            let pool = Arc::clone(&self.pool);
            // Models of one process take turns, a whole step each.
            let _turn = pool.turn();
            self.step(batch)?;
        }
        Ok(&self.space.output.logits[..batch.output_rows.len() * self.spec.vocab_size])
    }

    fn copy_block(&mut self, from: u32, to: u32) {
        self.kv.copy_block(from, to).expect("the engine copies blocks that it has allocated from this cache");
    }
}
