//! Norm, rotation and storing of heads, and the cache they go to.

use half::{bf16, f16};
use millgate_kernels::cuda::{self, Activation, Fp8, Gpu, KvCache, KvElement, QkNorm, RopeStore};
use millgate_kernels::{KvDtype, KvLayer, KvShape, PAD_SLOT, RopeTable, reference};

use super::{check_close, gpu, rounded};
use crate::random::Random;

#[derive(Clone, Copy)]
struct Sizes {
    heads: usize,
    kv_heads: usize,
    dim: usize,
    pairs: usize,
    has_norm: bool,
}

const BLOCKS: usize = 3;
const SLOTS: [u32; 5] = [33, 0, PAD_SLOT, 95, 64];
const POSITIONS: [u32; 5] = [7, 0, 3, 49, 21];

fn split(qkv: &[f32], sizes: Sizes) -> [Vec<f32>; 3] {
    let (q, k) = (sizes.heads * sizes.dim, sizes.kv_heads * sizes.dim);
    let mut parts = [Vec::new(), Vec::new(), Vec::new()];
    for row in qkv.chunks(q + 2 * k) {
        parts[0].extend_from_slice(&row[..q]);
        parts[1].extend_from_slice(&row[q..q + k]);
        parts[2].extend_from_slice(&row[q + k..]);
    }
    parts
}

fn rope<T: Activation, C: KvElement>(sizes: Sizes, widen: fn(C) -> f32, is_coarse: bool) {
    let Some(gpu) = gpu() else { return };
    let Sizes { heads, kv_heads, dim, pairs, has_norm } = sizes;
    let mut random = Random((dim + pairs) as u64);
    let (tokens, all_heads) = (SLOTS.len(), heads + 2 * kv_heads);
    let (qkv, plain) = rounded::<T>(&random.floats(tokens * all_heads * dim));
    let (norms, plain_norms) = rounded::<T>(&random.floats(2 * dim));
    let frequencies: Vec<f32> = (0..pairs).map(|i| 1.0 / f32::powf(100.0, i as f32 / pairs as f32)).collect();
    let table = RopeTable::new(&frequencies, 1.0, 50);
    let flat: Vec<f32> = (0..50).flat_map(|p| [table.at(p).0, table.at(p).1].concat()).collect();

    let [mut q, k, v] = split(&plain, sizes);
    let shape = KvShape { kv_heads, head_dim: dim, dtype: KvDtype::F32 };
    let mut wanted_cache = KvLayer::new(shape, BLOCKS).unwrap();
    let qk_norm = millgate_kernels::QkNorm { q: &plain_norms[..dim], k: &plain_norms[dim..], eps: 1e-6 };
    let qk_norm = has_norm.then_some(qk_norm);
    let input =
        millgate_kernels::RopeStore { k: &k, v: &v, positions: &POSITIONS, slots: &SLOTS, rope: &table, qk_norm };
    reference::rope_store(&mut q, &input, &mut wanted_cache);

    let mut device = gpu.upload(&qkv).unwrap();
    let mut cache = KvCache::<C>::new(gpu, kv_heads, dim, BLOCKS).unwrap();
    let (positions, slots) = (gpu.upload(&POSITIONS).unwrap(), gpu.upload(&SLOTS).unwrap());
    let (norms, table) = (gpu.upload(&norms).unwrap(), gpu.upload(&flat).unwrap());
    let qk_norm = QkNorm { q: norms.slice(..dim), k: norms.slice(dim..), eps: 1e-6 };
    let input = RopeStore {
        heads,
        positions: positions.view(),
        slots: slots.view(),
        table: table.view(),
        pairs,
        qk_norm: has_norm.then_some(qk_norm),
    };
    cuda::rope_store(gpu, device.view_mut(), &input, &mut cache).unwrap();

    let got: Vec<f32> = device.read().unwrap().into_iter().map(T::to_f32).collect();
    let [got_q, got_k, got_v] = split(&got, sizes);
    let got_q: Vec<T> = got_q.iter().map(|&v| T::from_f32(v)).collect();
    let ulps = if T::SUFFIX == "f32" { 64.0 } else { 2.0 };
    check_close("queries", &gpu.upload(&got_q).unwrap(), &q, dim, ulps);
    assert_eq!((got_k, got_v), (k, v), "keys and values stay as they were");
    check_cache(&cache, &wanted_cache, widen, is_coarse);
}

fn check_cache<C: KvElement>(cache: &KvCache<C>, wanted: &KvLayer, widen: fn(C) -> f32, is_coarse: bool) {
    let (dim, kv_heads) = (cache.head_dim(), cache.kv_heads());
    let (keys, values) = (cache.keys.read().unwrap(), cache.values.read().unwrap());
    for slot in 0..BLOCKS * 32 {
        for head in 0..kv_heads {
            let at = ((slot / 32 * kv_heads + head) * 32 + slot % 32) * dim;
            let (mut key, mut value) = (vec![0.0; dim], vec![0.0; dim]);
            wanted.read(slot, head, &mut key, &mut value);
            for i in 0..dim {
                for (got, wanted) in [(keys[at + i], key[i]), (values[at + i], value[i])] {
                    let got = widen(got);
                    let precision = if is_coarse { 1.0 / 16.0 } else { 1.0 / 100.0 };
                    let allowed = precision * wanted.abs() + precision / 32.0;
                    assert!((got - wanted).abs() <= allowed, "slot {slot}, head {head}, {i}: {got}, wanted {wanted}");
                }
            }
        }
    }
}

#[test]
fn heads_are_normed_rotated_and_stored_as_the_reference_does() {
    for (heads, kv_heads, dim, pairs) in [(4, 2, 64, 32), (3, 1, 40, 20), (8, 8, 128, 64), (5, 1, 256, 128)] {
        for (pairs, has_norm) in [(pairs, true), (pairs, false), (pairs / 2, true), (0, false)] {
            let sizes = Sizes { heads, kv_heads, dim, pairs, has_norm };
            rope::<f32, f32>(sizes, |v| v, false);
            rope::<bf16, bf16>(sizes, bf16::to_f32, false);
            rope::<f16, f16>(sizes, f16::to_f32, false);
            rope::<f32, Fp8>(sizes, Fp8::to_f32, true);
            rope::<bf16, Fp8>(sizes, Fp8::to_f32, true);
            rope::<f16, Fp8>(sizes, Fp8::to_f32, true);
        }
    }
}

fn cache_of_numbers(gpu: &Gpu, blocks: usize) -> KvCache<bf16> {
    let mut cache = KvCache::<bf16>::new(gpu, 2, 8, blocks).unwrap();
    let numbers: Vec<bf16> = (0..cache.keys.len()).map(|i| bf16::from_bits(i as u16)).collect();
    cache.keys.view_mut().write(&numbers).unwrap();
    let numbers: Vec<bf16> = numbers.iter().map(|v| bf16::from_bits(v.to_bits() + 10_000)).collect();
    cache.values.view_mut().write(&numbers).unwrap();
    cache
}

#[test]
fn whole_blocks_are_copied_and_blocks_that_are_not_there_are_skipped() {
    let Some(gpu) = gpu() else { return };
    let mut cache = cache_of_numbers(gpu, 5);
    let (keys, values) = (cache.keys.read().unwrap(), cache.values.read().unwrap());
    let pairs = gpu.upload(&[0u32, 3, 1, 4, 7, 2, 2, 9]).unwrap();
    cuda::copy_blocks(gpu, &mut cache, pairs.view()).unwrap();
    let len = 2 * 32 * 8;
    for (got, before) in [(cache.keys.read().unwrap(), keys), (cache.values.read().unwrap(), values)] {
        assert_eq!(got[..3 * len], before[..3 * len]);
        assert_eq!(got[3 * len..], before[..2 * len]);
    }
    assert!(cuda::copy_blocks(gpu, &mut cache, pairs.slice(..3)).is_err());
}
