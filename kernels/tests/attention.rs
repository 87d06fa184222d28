//! Rotary positions, the cache and attention: right, and the same bits alone, batched, chunked and on any threads.

use crate::random::{Random, assert_close, assert_same_bits, poison, pools};
use millgate_kernels::{
    AttentionBatch, BLOCK_TOKENS, KernelError, KvDtype, KvLayer, KvShape, Level, PAD_SLOT, Pool, QkNorm, RopeStore,
    RopeTable, SequenceSpan, paged_attention, reference, rope_store,
};

/// A layer whose every element is NaN: what is never written must never be read.
fn poisoned_layer(shape: KvShape, num_blocks: usize) -> KvLayer {
    let mut layer = KvLayer::new(shape, num_blocks).unwrap();
    let tokens = num_blocks * BLOCK_TOKENS;
    let nan = vec![f32::NAN; tokens * shape.kv_heads * shape.head_dim];
    let (positions, slots): (Vec<u32>, Vec<u32>) = (0..tokens as u32).map(|t| (0, t)).unzip();
    let rope = RopeTable::new(&[], 1.0, 1);
    let input = RopeStore { k: &nan, v: &nan, positions: &positions, slots: &slots, rope: &rope, qk_norm: None };
    rope_store(&Pool::new(1), &mut nan.clone(), &input, &mut layer).unwrap();
    layer
}

/// A sequence with random keys and values in shuffled blocks of a shared layer.
struct Sequence {
    len: usize,
    table: Vec<u32>,
    q: Vec<f32>,
}

struct World {
    layer: KvLayer,
    heads: usize,
    sequences: Vec<Sequence>,
}

impl World {
    fn new(random: &mut Random, shape: KvShape, group: usize, lens: &[usize]) -> Self {
        let num_blocks: usize = lens.iter().map(|l| l.div_ceil(BLOCK_TOKENS)).sum::<usize>() + 2;
        let mut ids: Vec<u32> = (0..num_blocks as u32).collect();
        for i in (1..ids.len()).rev() {
            ids.swap(i, random.below(i + 1));
        }
        let mut layer = poisoned_layer(shape, num_blocks);
        let heads = shape.kv_heads * group;
        let rope = RopeTable::new(&[], 1.0, 1);
        let mut sequences = Vec::new();
        for &len in lens {
            let table = ids.split_off(ids.len() - len.div_ceil(BLOCK_TOKENS));
            let slots: Vec<u32> = (0..len).map(|p| table[p / 32] * 32 + p as u32 % 32).collect();
            let width = shape.kv_heads * shape.head_dim;
            let (k, v) = (random.floats(len * width), random.floats(len * width));
            let input = RopeStore { k: &k, v: &v, positions: &vec![0; len], slots: &slots, rope: &rope, qk_norm: None };
            rope_store(&Pool::new(1), &mut vec![0.0; len * width], &input, &mut layer).unwrap();
            sequences.push(Sequence { len, table, q: random.floats(len * width * group) });
        }
        Self { layer, heads, sequences }
    }

    /// Runs queries `from..to` of some sequences as one batch; returns the outputs of each.
    fn attend(&self, pool: Option<&Pool>, spans: &[(usize, usize, usize)], window: Option<u32>) -> Vec<Vec<f32>> {
        let row = self.heads * self.layer.shape().head_dim;
        let (mut q, mut tables, mut sequences) = (Vec::new(), Vec::new(), Vec::new());
        for &(index, from, to) in spans {
            let sequence = &self.sequences[index];
            sequences.push(SequenceSpan {
                query_start: (q.len() / row) as u32,
                query_len: (to - from) as u32,
                context_len: to as u32,
                table_start: tables.len() as u32,
                table_len: sequence.table.len() as u32,
            });
            q.extend_from_slice(&sequence.q[from * row..to * row]);
            tables.extend_from_slice(&sequence.table);
        }
        let batch = AttentionBatch { sequences: &sequences, tables: &tables, scale: SCALE, window };
        let mut out = poison(q.len());
        match pool {
            Some(pool) => paged_attention(pool, &q, &self.layer, &batch, &mut out).unwrap(),
            None => reference::paged_attention(&q, &self.layer, &batch, self.heads, &mut out),
        }
        let mut rest = out.as_slice();
        spans.iter().map(|(_, from, to)| rest.split_off(..(to - from) * row).unwrap().to_vec()).collect()
    }
}

/// Multiplies every score of a [`World`].
const SCALE: f32 = 0.3;

/// Whether queries and weights are rounded to bf16: tiles take heads of whole 32 elements.
fn rounds(pool: &Pool, dtype: KvDtype, head_dim: usize) -> bool {
    let level_rounds = match pool.level() {
        Level::Scalar | Level::Avx2 | Level::Avx512 => false,
        Level::Avx512Bf16 => true,
        Level::Amx => head_dim.is_multiple_of(32),
    };
    level_rounds && dtype == KvDtype::Bf16
}

fn shape(kv_heads: usize, head_dim: usize, dtype: KvDtype) -> KvShape {
    KvShape { kv_heads, head_dim, dtype }
}

#[test]
fn attention_agrees_with_the_reference_in_every_shape() {
    let mut random = Random(20);
    for pool in pools(2) {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            for (kv_heads, group, dim) in [(1, 1, 8), (2, 3, 40), (1, 8, 64), (2, 4, 128), (3, 1, 96), (1, 50, 16)] {
                let world = World::new(&mut random, shape(kv_heads, dim, dtype), group, &[1, 70, 33, 600]);
                for window in [None, Some(1), Some(20), Some(64), Some(5000)] {
                    let spans = [(0, 0, 1), (1, 40, 70), (2, 32, 33), (3, 590, 600)];
                    let found = world.attend(Some(&pool), &spans, window);
                    let wanted = world.attend(None, &spans, window);
                    let context = format!("{:?} {dtype:?} {kv_heads} x {group} x {dim} {window:?}", pool.level());
                    let tolerance = if rounds(&pool, dtype, dim) { 0.02 } else { 1e-5 };
                    for (found, wanted) in found.iter().zip(&wanted) {
                        assert_close(found, wanted, tolerance, &context);
                    }
                }
            }
        }
    }
}

#[test]
fn queries_that_are_bf16_already_lose_no_more_than_the_rounding_of_weights() {
    let mut random = Random(25);
    // Weights w(1 + e) with e of at most 2^-9, which add up to one whole again: 2^-8 of the largest value at most.
    let tolerance = 1.0 / 256.0;
    for pool in pools(2) {
        for (kv_heads, group, dim) in [(1, 1, 8), (2, 3, 40), (2, 4, 128), (1, 50, 16)] {
            let mut world = World::new(&mut random, shape(kv_heads, dim, KvDtype::Bf16), group, &[1, 70, 33, 600]);
            // What is rounded are queries in units of the scores.
            let unit = SCALE * std::f32::consts::LOG2_E;
            for q in world.sequences.iter_mut().flat_map(|s| &mut s.q) {
                *q = half::bf16::from_f32(*q * unit).to_f32() / unit;
            }
            for window in [None, Some(20), Some(333)] {
                let spans = [(0, 0, 1), (1, 40, 70), (2, 32, 33), (3, 530, 600)];
                let found = world.attend(Some(&pool), &spans, window);
                let wanted = world.attend(None, &spans, window);
                let context = format!("{:?} {kv_heads} x {group} x {dim} {window:?}", pool.level());
                for (found, wanted) in found.iter().zip(&wanted) {
                    assert_close(found, wanted, tolerance, &context);
                }
            }
        }
    }
}

#[test]
fn a_prompt_in_chunks_has_the_same_bits_as_whole() {
    let mut random = Random(21);
    for pool in pools(2) {
        // Few rows of a head size of whole kernel widths are computed where keys and values lie, others from a copy.
        for (dtype, window, dim) in [
            (KvDtype::F32, None, 40),
            (KvDtype::Bf16, Some(100), 40),
            (KvDtype::F32, Some(100), 64),
            (KvDtype::Bf16, Some(100), 64),
            (KvDtype::Bf16, None, 64),
        ] {
            let len = 700;
            let world = World::new(&mut random, shape(2, dim, dtype), 3, &[len]);
            let whole = world.attend(Some(&pool), &[(0, 0, len)], window).remove(0);
            let mut chunked = Vec::new();
            let mut from = 0;
            while from < len {
                let longest = if random.below(2) == 0 { 3 } else { 90 };
                let to = len.min(from + 1 + random.below(longest));
                chunked.extend(world.attend(Some(&pool), &[(0, from, to)], window).remove(0));
                from = to;
            }
            assert_same_bits(&chunked, &whole, &format!("{:?} {dtype:?} {window:?} x {dim}", pool.level()));
        }
    }
}

#[test]
fn a_batched_sequence_has_the_same_bits_as_alone_on_any_number_of_threads() {
    let mut random = Random(22);
    for pool in pools(1) {
        let world = World::new(&mut random, shape(1, 64, KvDtype::Bf16), 4, &[1300, 5, 64, 900, 31]);
        let spans: Vec<_> = world.sequences.iter().enumerate().map(|(i, s)| (i, s.len - 1 - i, s.len)).collect();
        let alone: Vec<_> = spans.iter().map(|&s| world.attend(Some(&pool), &[s], None).remove(0)).collect();
        for threads in 1..=3 {
            let pool = Pool::with_level(threads, pool.level()).unwrap();
            let context = format!("{:?} {threads} threads", pool.level());
            for (found, wanted) in world.attend(Some(&pool), &spans, None).iter().zip(&alone) {
                assert_same_bits(found, wanted, &context);
            }
            // Alone, a long context is shared among threads a segment at a time.
            for (span, wanted) in spans.iter().zip(&alone) {
                assert_same_bits(&world.attend(Some(&pool), &[*span], None)[0], wanted, &context);
            }
        }
    }
}

#[test]
fn rope_store_agrees_with_the_reference_and_skips_padding() {
    let mut random = Random(23);
    for pool in pools(2) {
        for dtype in [KvDtype::F32, KvDtype::Bf16] {
            for (tokens, kv_heads, group, dim, half) in
                [(1, 1, 1, 8, 4), (5, 2, 3, 40, 16), (70, 3, 2, 64, 32), (9, 1, 4, 96, 0)]
            {
                let frequencies: Vec<f32> = (0..half).map(|i| 10000f32.powf(-(i as f32) / half as f32)).collect();
                let rope = RopeTable::new(&frequencies, 1.1, 500);
                let (q_norm, k_norm) = (random.floats(dim), random.floats(dim));
                let width = kv_heads * dim;
                let (k, v) = (random.floats(tokens * width), random.floats(tokens * width));
                let positions: Vec<u32> = (0..tokens).map(|_| random.below(500) as u32).collect();
                let slots: Vec<u32> =
                    (0..tokens as u32).map(|t| if t % 4 == 3 { PAD_SLOT } else { 3 * 32 - 1 - t }).collect();
                for qk_norm in [None, Some(QkNorm { q: &q_norm, k: &k_norm, eps: 1e-6 })] {
                    let input = RopeStore { k: &k, v: &v, positions: &positions, slots: &slots, rope: &rope, qk_norm };
                    let q = random.floats(tokens * width * group);
                    let (mut found_q, mut wanted_q) = (q.clone(), q);
                    let shape = shape(kv_heads, dim, dtype);
                    let (mut found, mut wanted) = (KvLayer::new(shape, 3).unwrap(), KvLayer::new(shape, 3).unwrap());
                    rope_store(&pool, &mut found_q, &input, &mut found).unwrap();
                    reference::rope_store(&mut wanted_q, &input, &mut wanted);
                    let context = format!("{:?} {dtype:?} {tokens} x {kv_heads} x {dim}", pool.level());
                    assert_close(&found_q, &wanted_q, 2e-6, &context);
                    let tolerance = if dtype == KvDtype::Bf16 { 4e-3 } else { 2e-6 };
                    for slot in 0..96 {
                        for head in 0..kv_heads {
                            let mut rows = [(); 4].map(|()| poison(dim));
                            let [fk, fv, wk, wv] = &mut rows;
                            found.read(slot, head, fk, fv);
                            wanted.read(slot, head, wk, wv);
                            assert_close(fk, wk, tolerance, &context);
                            assert_same_bits(fv, wv, &context);
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn a_copied_block_gives_the_same_attention() {
    let mut random = Random(24);
    for dtype in [KvDtype::F32, KvDtype::Bf16] {
        let mut world = World::new(&mut random, shape(2, 24, dtype), 2, &[50]);
        let pool = Pool::new(2);
        let wanted = world.attend(Some(&pool), &[(0, 0, 50)], None);
        let unused = (0..4).find(|id| !world.sequences[0].table.contains(id)).unwrap();
        world.layer.copy_block(world.sequences[0].table[1], unused).unwrap();
        world.sequences[0].table[1] = unused;
        assert_same_bits(&world.attend(Some(&pool), &[(0, 0, 50)], None)[0], &wanted[0], "copied");
        assert!(world.layer.copy_block(0, 4).is_err() && world.layer.copy_block(4, 0).is_err());
    }
}

#[test]
fn batches_that_do_not_fit_are_refused_and_outputs_are_untouched() {
    let pool = Pool::new(2);
    let layer = KvLayer::new(shape(1, 8, KvDtype::F32), 2).unwrap();
    let good = SequenceSpan { query_start: 0, query_len: 1, context_len: 33, table_start: 0, table_len: 2 };
    let run = |spans: &[SequenceSpan], tables: &[u32], window, len: usize, out_len: usize| {
        let mut out = vec![7.0; out_len];
        let batch = AttentionBatch { sequences: spans, tables, scale: 1.0, window };
        let result = paged_attention(&pool, &vec![0.0; len], &layer, &batch, &mut out);
        assert!(result.is_ok() || out.iter().all(|&v| v == 7.0));
        result
    };
    assert_eq!(run(&[good], &[0, 1], None, 8, 8), Ok(()));
    assert_eq!(run(&[], &[], None, 0, 0), Ok(()));
    let u = u32::MAX;
    for (spans, tables, window, len, out_len) in [
        (vec![good], vec![0, 2], None, 8, 8),
        (vec![good], vec![0], None, 8, 8),
        (vec![good], vec![0, 1], Some(0), 8, 8),
        (vec![good], vec![0, 1], None, 8, 16),
        (vec![good], vec![0, 1], None, 9, 9),
        (vec![good], vec![0, 1], None, 0, 0),
        (vec![good, good], vec![0, 1], None, 8, 8),
        (vec![SequenceSpan { query_len: 34, ..good }], vec![0, 1], None, 34 * 8, 34 * 8),
        (vec![SequenceSpan { context_len: 65, ..good }], vec![0, 1], None, 8, 8),
        (vec![SequenceSpan { query_start: u, ..good }], vec![0, 1], None, 8, 8),
        (vec![SequenceSpan { query_start: 1, ..good }], vec![0, 1], None, 8, 8),
        (vec![SequenceSpan { context_len: u, table_len: u, table_start: u, ..good }], vec![0, 1], None, 8, 8),
    ] {
        let result = run(&spans, &tables, window, len, out_len);
        let is_refused = matches!(result, Err(KernelError::Shape { .. } | KernelError::Range { .. }));
        assert!(is_refused, "{spans:?} {tables:?} {window:?} {len}");
    }
    assert!(KvLayer::new(shape(1, 12, KvDtype::F32), 1).is_err());
    assert!(KvLayer::new(shape(usize::MAX, 8, KvDtype::F32), usize::MAX).is_err());
}

#[test]
fn layers_of_one_memory_keep_apart_and_blocks_are_copied_in_one_alone() {
    let pool = Pool::new(2);
    let shape = shape(2, 8, KvDtype::F32);
    let (layers, blocks, width) = (3, 4, 16);
    let mut stack = KvLayer::stack(shape, layers, blocks).unwrap();
    let rope = RopeTable::new(&[], 1.0, 1);
    let slots: Vec<u32> = (0..(blocks * BLOCK_TOKENS) as u32).collect();
    let positions = vec![0; slots.len()];
    let mark = |layer: usize, slot: usize, element: usize| (layer * 1000 + slot) as f32 + element as f32 / 100.0;
    for (index, layer) in stack.iter_mut().enumerate() {
        let k: Vec<f32> = (0..slots.len() * width).map(|i| mark(index, i / width, i % width)).collect();
        let v: Vec<f32> = k.iter().map(|key| -key).collect();
        let input = RopeStore { k: &k, v: &v, positions: &positions, slots: &slots, rope: &rope, qk_norm: None };
        rope_store(&pool, &mut k.clone(), &input, layer).unwrap();
    }
    stack[1].copy_block(3, 0).unwrap();
    for (index, layer) in stack.iter().enumerate() {
        for slot in 0..slots.len() {
            let origin = if index == 1 && slot < BLOCK_TOKENS { slot + 3 * BLOCK_TOKENS } else { slot };
            for head in 0..2 {
                let (mut key, mut value) = (poison(8), poison(8));
                layer.read(slot, head, &mut key, &mut value);
                let wanted: Vec<f32> = (0..8).map(|i| mark(index, origin, head * 8 + i)).collect();
                assert_eq!(key, wanted, "layer {index} slot {slot} head {head}");
                assert!(value.iter().zip(&wanted).all(|(value, key)| *value == -key));
            }
        }
    }
}

#[test]
fn positions_and_slots_that_are_not_there_are_refused_and_nothing_is_written() {
    let pool = Pool::new(1);
    let mut layer = KvLayer::new(shape(1, 8, KvDtype::F32), 1).unwrap();
    let rope = RopeTable::new(&[1.0; 4], 1.0, 10);
    let wide = RopeTable::new(&[1.0; 5], 1.0, 10);
    let good = RopeStore { k: &[1.0; 8], v: &[1.0; 8], positions: &[9], slots: &[31], rope: &rope, qk_norm: None };
    let norm = QkNorm { q: &[1.0; 7], k: &[1.0; 8], eps: 0.0 };
    for (input, q_len) in [
        (RopeStore { positions: &[10], ..good }, 8),
        (RopeStore { slots: &[32], ..good }, 8),
        (RopeStore { slots: &[31, 30], ..good }, 8),
        (RopeStore { k: &[1.0; 16], ..good }, 8),
        (RopeStore { v: &[1.0; 7], ..good }, 8),
        (RopeStore { rope: &wide, ..good }, 8),
        (RopeStore { qk_norm: Some(norm), ..good }, 8),
        (good, 12),
    ] {
        let mut q = vec![3.0; q_len];
        assert!(rope_store(&pool, &mut q, &input, &mut layer).is_err(), "{input:?}");
        assert!(q.iter().all(|&v| v == 3.0));
    }
    let (mut key, mut value) = (poison(8), poison(8));
    layer.read(31, 0, &mut key, &mut value);
    assert_eq!((key, value), (vec![0.0; 8], vec![0.0; 8]));
    assert!(rope_store(&pool, &mut [3.0; 8], &good, &mut layer).is_ok());
}
