//! Queues the operations of one step: the same forward pass as on the CPU, over buffers of the device.

use millgate_kernels::RopeTable;
use millgate_kernels::cuda::{
    self, Activation, AttentionInput, AttentionPlan, AttentionSizes, Buffer, CudaError, DecodeWork, DrawOutcome,
    DrawRow, Gpu, KvCache, KvElement, MatMul, QkNorm, RopeStore, SampleInput, SampleScratch, add_rms_norm, matmul,
    rms_norm,
};

use super::linear::Scratch;
use super::space::Space;
use super::weights::{DeviceWeights, LayerWeights};
use super::words::{Layout, Room, distinct_windows};
use crate::arch::DecoderConfig;
use crate::layers::inverse_frequencies;
use crate::workspace::WorkspaceShape;

/// A decoder's weights, cache and activations on one device.
pub(super) struct Decoder<T, C> {
    pub(super) gpu: Gpu,
    pub(super) weights: DeviceWeights<T>,
    pub(super) kv: Vec<KvCache<C>>,
    pub(super) space: Space<T>,
    scratch: Scratch<T>,
    /// Attention's sizes, one entry a window that occurs.
    pub(super) sizes: Vec<AttentionSizes>,
    /// Which of them each layer has.
    size_of_layer: Vec<usize>,
    rope: Buffer<f32>,
    pairs: usize,
    scale: f32,
    eps: f32,
    widths: Widths,
    /// Partial results of attention that is split over a context.
    partial: Buffer<f32>,
    /// Tokens that this step draws, and those of the step before.
    drawn: Buffer<u32>,
    previous: Buffer<u32>,
    /// What came of this step's draws.
    pub(super) outcomes: Buffer<u32>,
    sampling: SampleScratch,
    max_context: usize,
}

/// Sizes of rows.
#[derive(Debug, Clone, Copy)]
struct Widths {
    hidden: usize,
    heads: usize,
    query: usize,
    qkv: usize,
    intermediate: usize,
    vocab: usize,
}

/// A step that is to be queued.
#[derive(Clone, Copy)]
pub(super) struct Pass<'a> {
    /// The step's words on the device.
    pub(super) words: &'a Buffer<u32>,
    pub(super) layout: &'a Layout,
    /// Rows that are computed.
    pub(super) tokens: usize,
    /// Rows whose logits are wanted.
    pub(super) outputs: usize,
}

impl<T: Activation, C: KvElement> Decoder<T, C> {
    /// Allocates activations, and a cache of `num_blocks` blocks.
    pub(super) fn new(
        gpu: &Gpu,
        config: &DecoderConfig,
        weights: DeviceWeights<T>,
        shape: &WorkspaceShape,
        max_context: usize,
    ) -> Result<Self, CudaError> {
        let own = AttentionSizes {
            heads: config.num_heads,
            kv_heads: config.num_kv_heads,
            head_dim: config.head_dim,
            window: None,
            is_f32: size_of::<T>() == 4,
        };
        let (sizes, size_of_layer) = distinct_windows(&own, &config.windows);
        let frequencies = inverse_frequencies(config.rope_theta, config.head_dim, &config.rope_scaling);
        let table = RopeTable::new(&frequencies, 1.0, max_context);
        let positions = 0..max_context;
        let rope: Vec<f32> = positions.flat_map(|at| <[&[f32]; 2]>::from(table.at(at)).concat()).collect();
        let partial = sizes.iter().map(|sizes| sizes.partial_len(shape.max_output_rows, max_context)).max();
        Ok(Self {
            gpu: gpu.clone(),
            scratch: Scratch::new(gpu, weights.linears())?,
            weights,
            kv: Vec::new(),
            space: Space::new(gpu, shape)?,
            sizes,
            size_of_layer,
            rope: gpu.upload(&rope)?,
            pairs: table.half(),
            scale: 1.0 / (config.head_dim as f32).sqrt(),
            eps: config.rms_norm_eps,
            widths: Widths {
                hidden: config.hidden_size,
                heads: config.num_heads,
                query: config.query_width(),
                qkv: config.query_width() + 2 * config.key_width(),
                intermediate: config.intermediate_size,
                vocab: config.vocab_size,
            },
            partial: gpu.zeroed(partial.unwrap_or(0))?,
            drawn: gpu.zeroed(shape.max_output_rows)?,
            previous: gpu.zeroed(shape.max_output_rows)?,
            outcomes: gpu.zeroed(shape.max_output_rows * DrawOutcome::WORDS)?,
            sampling: SampleScratch::new(gpu, shape.max_output_rows, config.vocab_size)?,
            max_context,
        })
    }

    /// Gives the decoder its cache.
    pub(super) fn allocate_cache(&mut self, num_blocks: usize) -> Result<(), CudaError> {
        self.kv.clear();
        let sizes = self.sizes[0];
        let layer = |_| KvCache::new(&self.gpu, sizes.kv_heads, sizes.head_dim, num_blocks);
        self.kv = self.size_of_layer.iter().map(layer).collect::<Result<_, _>>()?;
        Ok(())
    }

    /// Makes room for the partial results of a step; `true` when that took other memory than before.
    pub(super) fn reserve_partial(&mut self, plans: &[AttentionPlan]) -> Result<bool, CudaError> {
        let slot_len = self.sizes[0].heads * (self.sizes[0].head_dim + 2);
        let wanted = plans.iter().map(|plan| plan.slots() * slot_len).max().unwrap_or(0);
        if wanted <= self.partial.len() {
            return Ok(false);
        }
        self.partial = self.gpu.zeroed(wanted)?;
        Ok(true)
    }

    /// What a recorded decode step of up to `rows` sequences needs room for.
    pub(super) fn decode_room(&self, rows: usize) -> Room {
        decode_room(&self.sizes, rows, self.max_context)
    }

    /// Queues the block copies that come before a step.
    pub(super) fn copy_blocks(&mut self, pass: Pass<'_>) -> Result<(), CudaError> {
        if pass.layout.copies.is_empty() {
            return Ok(());
        }
        let pairs = pass.words.slice(pass.layout.copies.clone());
        self.kv.iter_mut().try_for_each(|cache| cuda::copy_blocks(&self.gpu, cache, pairs))
    }

    /// Queues a step from token ids to logits and draws.
    pub(super) fn run(&mut self, pass: Pass<'_>) -> Result<(), CudaError> {
        self.previous.view_mut().copy_from(self.drawn.view())?;
        self.forward(pass)?;
        self.draw(pass)
    }

    /// Queues the draws, whose rows are the first ones.
    fn draw(&mut self, pass: Pass<'_>) -> Result<(), CudaError> {
        let Pass { words, layout, .. } = pass;
        let draws = layout.draws.len() / DrawRow::WORDS;
        if draws == 0 {
            return Ok(());
        }
        let input = SampleInput {
            logits: self.space.logits.slice(..pass.outputs * self.widths.vocab),
            rows: words.slice(layout.draws.clone()),
            count: words.slice(layout.num_draws.clone()),
            adjustments: words.slice(layout.tail.clone()),
            previous: self.previous.view(),
        };
        let tokens = self.drawn.slice_mut(..draws);
        let outcomes = self.outcomes.slice_mut(..draws * DrawOutcome::WORDS);
        cuda::sample(&self.gpu, &input, &mut self.sampling, tokens, outcomes)
    }

    /// Queues a step from token ids to logits.
    fn forward(&mut self, pass: Pass<'_>) -> Result<(), CudaError> {
        let Widths { hidden, .. } = self.widths;
        let stream = pass.tokens * hidden;
        let ids = pass.words.slice(pass.layout.ids.clone());
        let (gpu, space) = (&self.gpu, &mut self.space);
        let table = self.weights.embedding.view();
        cuda::embed(gpu, ids, self.previous.view(), table, hidden, space.residual.slice_mut(..stream))?;
        let first = self.weights.layers[0].input_norm.view();
        rms_norm(gpu, space.residual.slice(..stream), first, self.eps, space.normed.slice_mut(..stream))?;
        for layer in 0..self.weights.layers.len() {
            self.attend(layer, pass)?;
            let is_last = layer + 1 == self.weights.layers.len();
            if is_last && pass.outputs == 0 {
                // A chunk of a prompt whose rows nobody wants: it was there for the cache.
                return Ok(());
            }
            let is_gathered = is_last && !pass.layout.gathered.is_empty();
            if is_gathered {
                self.gather(pass)?;
            }
            self.finish(layer, if is_last { pass.outputs } else { pass.tokens }, is_gathered)?;
        }
        let space = &mut self.space;
        let shape = MatMul::dense(pass.outputs, hidden, self.widths.vocab);
        let logits = space.logits.slice_mut(..pass.outputs * self.widths.vocab);
        let normed = space.normed.slice(..pass.outputs * hidden);
        matmul(&self.gpu, normed, self.weights.head().view(), logits, shape)
    }

    /// Keys and values into the cache, and attention over it.
    fn attend(&mut self, layer: usize, pass: Pass<'_>) -> Result<(), CudaError> {
        let Pass { words, layout, tokens, .. } = pass;
        let Widths { hidden, heads, query, qkv, .. } = self.widths;
        let (gpu, space) = (&self.gpu, &mut self.space);
        let LayerWeights { qkv: projection, qk_norm, .. } = &self.weights.layers[layer];
        let (x, y) = (space.normed.slice(..tokens * hidden), space.qkv.slice_mut(..tokens * qkv));
        projection.forward(gpu, x, &mut self.scratch, y)?;
        let input = RopeStore {
            heads,
            positions: words.slice(layout.positions.clone()),
            slots: words.slice(layout.slots.clone()),
            table: self.rope.view(),
            pairs: self.pairs,
            qk_norm: qk_norm.as_ref().map(|(q, k)| QkNorm { q: q.view(), k: k.view(), eps: self.eps }),
        };
        cuda::rope_store(gpu, space.qkv.slice_mut(..tokens * qkv), &input, &mut self.kv[layer])?;
        let which = self.size_of_layer[layer];
        let lists = &layout.plans[which];
        let input = AttentionInput {
            sizes: self.sizes[which],
            q: space.qkv.slice(..tokens * qkv),
            q_stride: qkv,
            spans: words.slice(layout.spans.clone()),
            tables: words.slice(layout.tail.clone()),
            scale: self.scale,
        };
        if !lists.decode.is_empty() {
            let work = DecodeWork {
                items: words.slice(lists.decode.clone()),
                combines: words.slice(lists.combine.clone()),
                counts: words.slice(lists.counts.clone()),
                partial: self.partial.view_mut(),
            };
            let out = space.mixed.slice_mut(..tokens * query);
            cuda::decode_attention(gpu, &input, &work, &self.kv[layer], out)?;
        }
        if !lists.prefill.is_empty() {
            let (items, out) = (words.slice(lists.prefill.clone()), space.mixed.slice_mut(..tokens * query));
            cuda::prefill_attention(gpu, &input, items, &self.kv[layer], out)?;
        }
        Ok(())
    }

    /// After the last attention only the rows whose logits are wanted matter.
    fn gather(&mut self, pass: Pass<'_>) -> Result<(), CudaError> {
        let Widths { hidden, query, .. } = self.widths;
        let (space, outputs, tokens) = (&mut self.space, pass.outputs, pass.tokens);
        let rows = pass.words.slice(pass.layout.gathered.clone());
        let (mixed, residual) = (space.mixed.slice(..tokens * query), space.residual.slice(..tokens * hidden));
        cuda::gather_rows(&self.gpu, mixed, rows, query, space.last_mixed.slice_mut(..outputs * query))?;
        cuda::gather_rows(&self.gpu, residual, rows, hidden, space.last_residual.slice_mut(..outputs * hidden))
    }

    /// Everything after attention: output projection, feed-forward, and the norm that the next layer begins with.
    fn finish(&mut self, layer: usize, rows: usize, is_gathered: bool) -> Result<(), CudaError> {
        let Widths { hidden, query, intermediate, .. } = self.widths;
        let stream = rows * hidden;
        let (gpu, eps, weights, scratch) = (&self.gpu, self.eps, &self.weights.layers[layer], &mut self.scratch);
        let next_norm =
            self.weights.layers.get(layer + 1).map_or(&self.weights.final_norm, |next| &next.input_norm).view();
        let Space { residual, normed, returned, mixed, gate_up, product, last_residual, last_mixed, .. } =
            &mut self.space;
        let (residual, mixed) = if is_gathered { (last_residual, last_mixed) } else { (residual, mixed) };
        weights.output.forward(gpu, mixed.slice(..rows * query), scratch, returned.slice_mut(..stream))?;
        let added = |returned: &Buffer<T>, residual: &mut Buffer<T>, norm, normed: &mut Buffer<T>| {
            let (returned, residual) = (returned.slice(..stream), residual.slice_mut(..stream));
            add_rms_norm(gpu, returned, residual, norm, eps, normed.slice_mut(..stream))
        };
        added(returned, residual, weights.post_norm.view(), normed)?;
        let wide = gate_up.slice_mut(..2 * rows * intermediate);
        weights.gate_up.forward(gpu, normed.slice(..stream), scratch, wide)?;
        let wide = gate_up.slice(..2 * rows * intermediate);
        cuda::silu_mul(gpu, wide, intermediate, product.slice_mut(..rows * intermediate))?;
        let down = product.slice(..rows * intermediate);
        weights.down.forward(gpu, down, scratch, returned.slice_mut(..stream))?;
        added(returned, residual, next_norm, normed)
    }
}

/// What a recorded decode step of up to `rows` sequences of `max_context` tokens needs room for.
pub(super) fn decode_room(sizes: &[AttentionSizes], rows: usize, max_context: usize) -> Room {
    let plan = |sizes: &AttentionSizes| {
        let splits = usize::from(sizes.partial_len(rows, max_context) > 0);
        [sizes.max_items(rows, max_context), rows * splits, 0]
    };
    Room {
        tokens: rows,
        sequences: rows,
        gathered: 0,
        plans: sizes.iter().map(plan).collect(),
        copies: 0,
        draws: rows,
        tail: 0,
    }
}
