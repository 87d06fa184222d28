//! Attention: one query a sequence over long contexts, and whole prompts.

use half::bf16;
use millgate_kernels::cuda::{
    self, AttentionInput, AttentionPlan, AttentionSizes, Buffer, CudaError, DecodeWork, Gpu, KvCache,
};
use millgate_kernels::{BLOCK_TOKENS, SequenceSpan};

use crate::{Card, Cost, Shape, median_seconds, noise, report};

/// One layer's cache and the spans of a step, on the device.
struct Step {
    cache: KvCache<bf16>,
    spans: Vec<SequenceSpan>,
    words: Buffer<u32>,
    tables: Buffer<u32>,
}

impl Step {
    /// `sequences` sequences with `queries` new tokens each, at the end of `context`.
    fn new(gpu: &Gpu, shape: &Shape, sequences: usize, queries: usize, context: usize) -> Result<Self, CudaError> {
        let each = context.div_ceil(BLOCK_TOKENS);
        let mut cache = KvCache::<bf16>::new(gpu, shape.kv_heads, shape.dim, sequences * each)?;
        let len = cache.keys.len();
        cache.keys.view_mut().copy_from(noise(gpu, len)?.view())?;
        cache.values.view_mut().copy_from(noise(gpu, len)?.view())?;
        let spans: Vec<SequenceSpan> = (0..sequences)
            .map(|i| SequenceSpan {
                query_start: (i * queries) as u32,
                query_len: queries as u32,
                context_len: context as u32,
                table_start: (i * each) as u32,
                table_len: each as u32,
            })
            .collect();
        let words = spans.iter().flat_map(|s| [s.query_start, s.query_len, s.context_len, s.table_start, s.table_len]);
        let words = gpu.upload(&words.collect::<Vec<u32>>())?;
        // Blocks in an order that is not that of memory, as in a cache that has been used for a while.
        let blocks = (sequences * each) as u32;
        let tables: Vec<u32> = (0..blocks).map(|i| (u64::from(i) * 7919 % u64::from(blocks)) as u32).collect();
        Ok(Self { cache, spans, words, tables: gpu.upload(&tables)? })
    }
}

fn sizes(shape: &Shape) -> AttentionSizes {
    AttentionSizes { heads: shape.heads, kv_heads: shape.kv_heads, head_dim: shape.dim, window: None, is_f32: false }
}

pub(crate) fn decode(gpu: &Gpu, card: &Card, shape: &Shape) -> Result<(), CudaError> {
    let sizes = sizes(shape);
    for &(sequences, context) in shape.decode {
        let step = Step::new(gpu, shape, sequences, 1, context)?;
        let width = shape.heads * shape.dim;
        let (q, mut out) = (noise(gpu, sequences * width)?, gpu.alloc::<bf16>(sequences * width)?);
        let mut plan = AttentionPlan::default();
        plan.fill(&sizes, &step.spans);
        let (items, combines) = (gpu.upload(&plan.decode)?, gpu.upload(&plan.combine)?);
        let counts = gpu.upload(&plan.counts())?;
        let mut partial = gpu.alloc::<f32>(sizes.partial_len(sequences, context))?;
        let input = AttentionInput {
            sizes,
            q: q.view(),
            q_stride: width,
            spans: step.words.view(),
            tables: step.tables.view(),
            scale: 1.0 / (shape.dim as f32).sqrt(),
        };
        let seconds = median_seconds(gpu, || {
            let (items, combines, counts) = (items.view(), combines.view(), counts.view());
            let work = DecodeWork { items, combines, counts, partial: partial.view_mut() };
            cuda::decode_attention(gpu, &input, &work, &step.cache, out.view_mut())
        })?;
        let bytes = sequences * (4 * shape.kv_heads * shape.dim * context + 4 * width);
        let flops = 4 * sequences * width * context;
        report(card, &format!("attention over {context}"), sequences, seconds, &Cost { bytes, flops });
    }
    Ok(())
}

pub(crate) fn prefill(gpu: &Gpu, card: &Card, shape: &Shape) -> Result<(), CudaError> {
    let sizes = sizes(shape);
    for &prompt in shape.prompts {
        let step = Step::new(gpu, shape, 1, prompt, prompt)?;
        let width = shape.heads * shape.dim;
        let (q, mut out) = (noise(gpu, prompt * width)?, gpu.alloc::<bf16>(prompt * width)?);
        let mut plan = AttentionPlan::default();
        plan.fill(&sizes, &step.spans);
        let items = gpu.upload(&plan.prefill)?;
        let input = AttentionInput {
            sizes,
            q: q.view(),
            q_stride: width,
            spans: step.words.view(),
            tables: step.tables.view(),
            scale: 1.0 / (shape.dim as f32).sqrt(),
        };
        let seconds =
            median_seconds(gpu, || cuda::prefill_attention(gpu, &input, items.view(), &step.cache, out.view_mut()))?;
        let bytes = 4 * prompt * (width + shape.kv_heads * shape.dim);
        // Half of the square is masked.
        report(card, "attention of a prompt", prompt, seconds, &Cost { bytes, flops: 2 * width * prompt * prompt });
    }
    Ok(())
}
