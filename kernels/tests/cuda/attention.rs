//! Attention over the paged cache: many shapes against the plain softmax.

use half::{bf16, f16};
use millgate_kernels::cuda::{
    self, Activation, AttentionInput, AttentionPlan, AttentionSizes, Buffer, DecodeWork, Fp8, Gpu, KvCache, KvElement,
};
use millgate_kernels::{AttentionBatch, KvDtype, KvLayer, KvShape, RopeStore, RopeTable, SequenceSpan, reference};

use super::{check_close, gpu, rounded};
use crate::random::Random;

/// New tokens and context of each sequence.
type Sequences = [(u32, u32)];

struct Case {
    spans: Vec<SequenceSpan>,
    tables: Vec<u32>,
    num_blocks: usize,
    tokens: usize,
}

/// Blocks of all sequences, shuffled, some never used.
fn case(random: &mut Random, sequences: &Sequences) -> Case {
    let total: usize = sequences.iter().map(|(_, context)| context.div_ceil(32) as usize).sum();
    let num_blocks = total + 3;
    let mut free: Vec<u32> = (0..num_blocks as u32).collect();
    for last in (1..free.len()).rev() {
        free.swap(last, random.below(last + 1));
    }
    let (mut spans, mut tables, mut query_start) = (Vec::new(), Vec::new(), 0);
    for &(query_len, context_len) in sequences {
        let table_len = context_len.div_ceil(32);
        let table_start = tables.len() as u32;
        tables.extend(free.drain(..table_len as usize));
        spans.push(SequenceSpan { query_start, query_len, context_len, table_start, table_len });
        query_start += query_len;
    }
    Case { spans, tables, num_blocks, tokens: query_start as usize }
}

/// The same random keys and values on both sides; NaN in every cell that no sequence fills.
fn fill<C: KvElement>(
    gpu: &Gpu,
    random: &mut Random,
    case: &Case,
    heads: usize,
    dim: usize,
    of: Cells<C>,
) -> Filled<C> {
    let mut layer =
        KvLayer::new(KvShape { kv_heads: heads, head_dim: dim, dtype: KvDtype::F32 }, case.num_blocks).unwrap();
    let mut device = KvCache::<C>::new(gpu, heads, dim, case.num_blocks).unwrap();
    let mut cells = [vec![(of.narrow)(f32::NAN); device.keys.len()], vec![(of.narrow)(f32::NAN); device.keys.len()]];
    let (mut slots, mut rows) = (Vec::new(), [Vec::new(), Vec::new()]);
    for span in &case.spans {
        for position in 0..span.context_len as usize {
            let slot = case.tables[span.table_start as usize + position / 32] as usize * 32 + position % 32;
            slots.push(slot as u32);
            for (cells, rows) in cells.iter_mut().zip(&mut rows) {
                for head in 0..heads {
                    let at = ((slot / 32 * heads + head) * 32 + slot % 32) * dim;
                    for cell in &mut cells[at..at + dim] {
                        *cell = (of.narrow)(random.float());
                        rows.push((of.widen)(*cell));
                    }
                }
            }
        }
    }
    let [k, v] = &rows;
    let (rope, positions) = (RopeTable::new(&[], 1.0, 1), vec![0; slots.len()]);
    let input = RopeStore { k, v, positions: &positions, slots: &slots, rope: &rope, qk_norm: None };
    reference::rope_store(&mut [], &input, &mut layer);
    device.keys.view_mut().write(&cells[0]).unwrap();
    device.values.view_mut().write(&cells[1]).unwrap();
    Filled { layer, device }
}

struct Filled<C> {
    layer: KvLayer,
    device: KvCache<C>,
}

#[derive(Clone, Copy)]
struct Cells<C> {
    narrow: fn(f32) -> C,
    widen: fn(C) -> f32,
}
const OF_F32: Cells<f32> = Cells { narrow: |v| v, widen: |v| v };
const OF_BF16: Cells<bf16> = Cells { narrow: bf16::from_f32, widen: bf16::to_f32 };
const OF_F16: Cells<f16> = Cells { narrow: f16::from_f32, widen: f16::to_f32 };
const OF_FP8: Cells<Fp8> = Cells { narrow: Fp8::from_f32, widen: Fp8::to_f32 };

fn span_words(spans: &[SequenceSpan]) -> Vec<u32> {
    spans.iter().flat_map(|s| [s.query_start, s.query_len, s.context_len, s.table_start, s.table_len]).collect()
}

/// Runs a step on the device; rows of lists past their end hold nonsense, as in memory that a graph uses again.
fn attend<T: Activation, C: KvElement>(
    gpu: &Gpu,
    sizes: AttentionSizes,
    case: &Case,
    queries: (&[T], usize),
    cache: &KvCache<C>,
) -> Buffer<T> {
    let mut plan = AttentionPlan::default();
    plan.fill(&sizes, &case.spans);
    let longest = case.spans.iter().map(|span| span.context_len).max().unwrap_or(0) as usize;
    let upload = |mut words: Vec<u32>, len: usize| {
        assert!(words.len() <= len, "{} words, room for {len}", words.len());
        words.resize(len, 0xdead_beef);
        gpu.upload(&words).unwrap()
    };
    let rows = if sizes.is_f32 { case.tokens } else { case.spans.len() };
    let items = upload(plan.decode.clone(), 4 * sizes.max_items(rows, longest));
    let combines = upload(plan.combine.clone(), 4 * case.spans.len());
    let (prefill, counts) = (gpu.upload(&plan.prefill).unwrap(), gpu.upload(&plan.counts()).unwrap());
    let partial = vec![f32::NAN; sizes.partial_len(rows, longest)];
    let mut partial = gpu.upload(&partial).unwrap();
    let (spans, tables) = (gpu.upload(&span_words(&case.spans)).unwrap(), gpu.upload(&case.tables).unwrap());
    let q = gpu.upload(queries.0).unwrap();
    let mut out = super::poisoned::<T>(gpu, case.tokens * sizes.heads * sizes.head_dim);
    let scale = 1.0 / (sizes.head_dim as f32).sqrt();
    let (spans, tables) = (spans.view(), tables.view());
    let input = AttentionInput { sizes, q: q.view(), q_stride: queries.1, spans, tables, scale };
    let (items, combines, counts) = (items.view(), combines.view(), counts.view());
    let work = DecodeWork { items, combines, counts, partial: partial.view_mut() };
    cuda::decode_attention(gpu, &input, &work, cache, out.view_mut()).unwrap();
    if !sizes.is_f32 {
        cuda::prefill_attention(gpu, &input, prefill.view(), cache, out.view_mut()).unwrap();
    }
    out
}

fn attention<T: Activation, C: KvElement>(
    of: Cells<C>,
    (heads, kv_heads, head_dim): (usize, usize, usize),
    window: Option<u32>,
    sequences: &Sequences,
) {
    let Some(gpu) = gpu() else { return };
    let mut random = Random((heads * head_dim) as u64 + u64::from(window.unwrap_or(0)));
    let case = case(&mut random, sequences);
    let filled = fill::<C>(gpu, &mut random, &case, kv_heads, head_dim, of);
    let sizes = AttentionSizes { heads, kv_heads, head_dim, window, is_f32: T::SUFFIX == "f32" };
    let row = heads * head_dim;
    let stride = row + 2 * kv_heads * head_dim;
    let (q, plain) = rounded::<T>(&random.floats(case.tokens * stride));
    let got = attend(gpu, sizes, &case, (&q, stride), &filled.device);

    let dense: Vec<f32> = plain.chunks(stride).flat_map(|tokens| &tokens[..row]).copied().collect();
    let mut wanted = vec![f32::NAN; dense.len()];
    let scale = 1.0 / (head_dim as f32).sqrt();
    let batch = AttentionBatch { sequences: &case.spans, tables: &case.tables, scale, window };
    reference::paged_attention(&dense, &filled.layer, &batch, heads, &mut wanted);
    // Weights are rounded to T before they multiply values, so the error is relative to the values, not to their mean.
    let ulps = if T::SUFFIX == "f32" { 256.0 } else { 12.0 };
    check_close(&format!("attention {heads}/{kv_heads} x {head_dim}"), &got, &wanted, head_dim, ulps);
}

#[test]
fn one_query_a_sequence_equals_the_plain_softmax_however_it_is_split() {
    let lengths = [(1, 1), (1, 31), (1, 256), (1, 257), (1, 700)];
    attention::<bf16, _>(OF_BF16, (8, 2, 128), None, &lengths);
    attention::<f16, _>(OF_F16, (3, 3, 64), None, &lengths);
    attention::<bf16, _>(OF_BF16, (4, 1, 96), None, &[(1, 600)]);
    attention::<f16, _>(OF_F16, (2, 1, 256), None, &[(1, 290), (1, 5)]);
    // More query heads than one product has rows; sizes between those that kernels exist for.
    attention::<bf16, _>(OF_BF16, (20, 1, 80), None, &[(1, 300)]);
    attention::<f16, _>(OF_F16, (6, 3, 8), None, &[(1, 300), (1, 64)]);
    attention::<bf16, _>(OF_BF16, (4, 2, 200), None, &[(1, 40)]);
}

#[test]
fn a_long_context_has_longer_parts() {
    attention::<f16, _>(OF_F16, (2, 1, 64), None, &[(1, 8300), (1, 9)]);
}

#[test]
fn many_queries_a_sequence_equal_the_plain_softmax() {
    let ragged = [(1, 1), (70, 70), (5, 130), (33, 100), (2, 64)];
    attention::<bf16, _>(OF_BF16, (8, 2, 128), None, &ragged);
    attention::<f16, _>(OF_F16, (3, 3, 64), None, &ragged);
    attention::<bf16, _>(OF_BF16, (7, 1, 96), None, &[(40, 41)]);
    attention::<f16, _>(OF_F16, (2, 1, 256), None, &[(77, 150), (2, 2)]);
    attention::<bf16, _>(OF_BF16, (4, 2, 40), None, &[(129, 129)]);
}

#[test]
fn a_window_hides_what_lies_before_it() {
    for window in [1, 5, 32, 100] {
        let mixed = [(1, 40), (1, 500), (60, 171), (33, 33)];
        attention::<bf16, _>(OF_BF16, (4, 2, 64), Some(window), &mixed);
        attention::<f32, _>(OF_F32, (4, 2, 64), Some(window), &mixed);
    }
    attention::<f16, _>(OF_F16, (4, 2, 128), Some(400), &[(1, 1000), (9, 600)]);
}

#[test]
fn an_eight_bit_cache_is_read_exactly() {
    for dims in [(4, 1, 128), (4, 2, 64), (2, 1, 256), (2, 2, 96)] {
        attention::<bf16, _>(OF_FP8, dims, None, &[(1, 300), (20, 77)]);
        attention::<f16, _>(OF_FP8, dims, None, &[(1, 33), (3, 65)]);
    }
    attention::<f32, _>(OF_FP8, (2, 1, 40), None, &[(3, 65)]);
}

#[test]
fn single_precision_agrees_closely() {
    attention::<f32, _>(OF_F32, (6, 2, 64), None, &[(1, 300), (20, 77), (1, 1)]);
    attention::<f32, _>(OF_F32, (5, 1, 200), None, &[(3, 40)]);
    attention::<f32, _>(OF_BF16, (2, 2, 8), None, &[(3, 40)]);
}

#[test]
fn a_row_has_the_same_bits_alone_and_in_company() {
    let Some(gpu) = gpu() else { return };
    let mut random = Random(5);
    let sequences = [(1, 900), (40, 120), (1, 33), (50, 50)];
    let case = case(&mut random, &sequences);
    let filled = fill::<bf16>(gpu, &mut random, &case, 2, 64, OF_BF16);
    let sizes = AttentionSizes { heads: 6, kv_heads: 2, head_dim: 64, window: None, is_f32: false };
    let (q, _) = rounded::<bf16>(&random.floats(case.tokens * 384));
    let together = attend(gpu, sizes, &case, (&q, 384), &filled.device).read().unwrap();
    for span in &case.spans {
        let (from, len) = (span.query_start as usize, span.query_len as usize);
        let alone = Case {
            spans: vec![SequenceSpan { query_start: 0, ..*span }],
            tables: case.tables.clone(),
            num_blocks: case.num_blocks,
            tokens: len,
        };
        let got = attend(gpu, sizes, &alone, (&q[from * 384..(from + len) * 384], 384), &filled.device);
        let got = got.read().unwrap();
        assert!(got == together[from * 384..(from + len) * 384], "sequence at {from} differs in company");
    }
}

/// Memory that a recorded step reads, with room for more than a step needs.
struct Lists {
    items: Buffer<u32>,
    combines: Buffer<u32>,
    counts: Buffer<u32>,
    spans: Buffer<u32>,
}

impl Lists {
    fn write(&mut self, sizes: &AttentionSizes, spans: &[SequenceSpan]) {
        let mut plan = AttentionPlan::default();
        plan.fill(sizes, spans);
        for (buffer, words) in [
            (&mut self.items, &plan.decode[..]),
            (&mut self.combines, &plan.combine[..]),
            (&mut self.counts, &plan.counts()[..]),
            (&mut self.spans, &span_words(spans)[..]),
        ] {
            let mut all = vec![0xdead_beef; buffer.len()];
            all[..words.len()].copy_from_slice(words);
            buffer.view_mut().write(&all).unwrap();
        }
    }
}

#[test]
fn a_recorded_step_serves_sequences_of_other_lengths_and_numbers() {
    let Some(gpu) = gpu() else { return };
    // A device of its own: what other tests queue meanwhile must not be recorded.
    let gpu = &Gpu::open(gpu.info().ordinal).unwrap();
    let mut random = Random(8);
    let case = case(&mut random, &[(1, 700), (1, 1), (1, 257), (1, 90)]);
    let filled = fill::<bf16>(gpu, &mut random, &case, 2, 64, OF_BF16);
    let sizes = AttentionSizes { heads: 6, kv_heads: 2, head_dim: 64, window: None, is_f32: false };
    let (q, _) = rounded::<bf16>(&random.floats(4 * 384));
    let (device_q, tables) = (gpu.upload(&q).unwrap(), gpu.upload(&case.tables).unwrap());
    let mut lists = Lists {
        items: gpu.zeroed(4 * sizes.max_items(4, 700)).unwrap(),
        combines: gpu.zeroed(16).unwrap(),
        counts: gpu.zeroed(2).unwrap(),
        spans: gpu.zeroed(20).unwrap(),
    };
    let mut partial = gpu.zeroed::<f32>(sizes.partial_len(4, 700)).unwrap();
    let mut out = super::poisoned::<bf16>(gpu, 4 * 384);
    let mut graph = {
        let (spans, tables) = (lists.spans.view(), tables.view());
        let input = AttentionInput { sizes, q: device_q.view(), q_stride: 384, spans, tables, scale: 0.125 };
        let (items, combines, counts) = (lists.items.view(), lists.combines.view(), lists.counts.view());
        let mut step = || {
            let work = DecodeWork { items, combines, counts, partial: partial.view_mut() };
            cuda::decode_attention(gpu, &input, &work, &filled.device, out.view_mut())
        };
        step().unwrap();
        gpu.capture(step).unwrap()
    };
    let shorter = |index: usize, context_len| SequenceSpan { context_len, ..case.spans[index] };
    for spans in [&case.spans[..], &[shorter(0, 299), shorter(2, 64)], &[], &[shorter(3, 90), shorter(0, 650)]] {
        lists.write(&sizes, spans);
        out.view_mut().write(&vec![bf16::NAN; 4 * 384]).unwrap();
        graph.launch().unwrap();
        let got = out.read().unwrap();
        let eager = Case { spans: spans.to_vec(), tables: case.tables.clone(), num_blocks: case.num_blocks, tokens: 4 };
        let wanted = attend(gpu, sizes, &eager, (&q, 384), &filled.device).read().unwrap();
        let bits = |values: &[bf16]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert!(bits(&got) == bits(&wanted), "{} sequences", spans.len());
        assert_eq!(got.iter().filter(|v| !v.is_nan()).count(), spans.len() * 384);
    }
}

#[test]
fn a_cache_without_blocks_is_refused() {
    let Some(gpu) = gpu() else { return };
    let cache = KvCache::<bf16>::new(gpu, 2, 64, 0).unwrap();
    let sizes = AttentionSizes { heads: 6, kv_heads: 2, head_dim: 64, window: None, is_f32: false };
    let (q, words) = (gpu.zeroed::<bf16>(384).unwrap(), gpu.zeroed::<u32>(8).unwrap());
    let mut out = gpu.zeroed::<bf16>(384).unwrap();
    let input = AttentionInput {
        sizes,
        q: q.view(),
        q_stride: 384,
        spans: words.slice(..5),
        tables: words.view(),
        scale: 0.125,
    };
    let refused = cuda::prefill_attention(gpu, &input, words.slice(..4), &cache, out.view_mut()).unwrap_err();
    assert_eq!(refused.to_string(), "prefill_attention: block 0 is out of range, the limit is 0");
}
