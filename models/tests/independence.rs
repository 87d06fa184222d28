//! A row's logits depend on its own tokens only: bit for bit, whatever the batch, the chunks and the cache.

use crate::rig::{Part, Rig, Sequence, argmax, bits};

/// One checkpoint for each kind of weights and attention.
const CHECKPOINTS: [&str; 7] = [
    "tiny-llama",
    "llama-f16",
    "qwen3-bf16",
    "mistral-window",
    "gguf/qwen2-q8_0.gguf",
    "gguf/llama-q4_0.gguf",
    "gguf/llama-q4_k_m.gguf",
];

fn prompt(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|index| 3 + (index * 37 + seed * 101 + index * index * seed) % 317).collect()
}

#[test]
fn a_sequence_alone_equals_the_same_sequence_in_a_batch() {
    for name in CHECKPOINTS {
        let mut rig = Rig::open(name);
        let lengths = [37, 1, 64, 9, 20];
        let alone: Vec<_> =
            lengths.iter().zip(1..).map(|(&length, seed)| rig.greedy(&prompt(seed, length), 6)).collect();
        let mut sequences: Vec<Sequence> = lengths
            .iter()
            .zip(1..)
            .map(|(&length, seed)| Sequence { tokens: prompt(seed, length), ..Default::default() })
            .collect();
        for step in 0..6 {
            let mut parts: Vec<Part<'_>> = sequences
                .iter_mut()
                .map(|sequence| {
                    let tokens = sequence.tokens.len() - sequence.computed;
                    Part { sequence, tokens, all_rows: false }
                })
                .collect();
            let rows = rig.step(&mut parts);
            for (index, mut row) in rows.into_iter().enumerate() {
                assert_eq!(bits(&row), bits(&alone[index].1[step..=step]), "{name}, sequence {index}, step {step}");
                sequences[index].tokens.push(argmax(&row.remove(0)));
            }
        }
    }
}

#[test]
fn a_prompt_in_chunks_equals_the_prompt_at_once() {
    for name in CHECKPOINTS {
        let mut rig = Rig::open(name);
        let tokens = prompt(5, 100);
        let whole = bits(&rig.all_logits(&tokens, 100));
        for chunk in [1, 7, 32, 33] {
            assert!(bits(&rig.all_logits(&tokens, chunk)) == whole, "{name} in chunks of {chunk}");
        }
    }
}

#[test]
fn a_cached_prefix_equals_a_fresh_one() {
    for name in CHECKPOINTS {
        let mut rig = Rig::open(name);
        let tokens = prompt(6, 90);
        let fresh = rig.greedy(&tokens, 4);
        let mut first = Sequence { tokens: prompt(6, 70), ..Default::default() };
        rig.step(&mut [Part { sequence: &mut first, tokens: 70, all_rows: false }]);
        // Two full blocks of the first sequence are the prefix of the second.
        let mut second = Sequence { tokens, computed: 64, blocks: first.blocks[..2].to_vec() };
        for step in 0..4 {
            let count = second.tokens.len() - second.computed;
            let rows = rig.step(&mut [Part { sequence: &mut second, tokens: count, all_rows: false }]);
            assert_eq!(bits(&rows[0]), bits(&fresh.1[step..=step]), "{name}, step {step}");
            second.tokens.push(argmax(&rows[0][0]));
        }
    }
}

#[test]
fn a_copied_block_serves_like_the_original() {
    for name in CHECKPOINTS {
        let mut rig = Rig::open(name);
        let tokens = prompt(7, 50);
        let fresh = rig.greedy(&tokens, 2);
        let mut first = Sequence { tokens: tokens.clone(), ..Default::default() };
        rig.step(&mut [Part { sequence: &mut first, tokens: 40, all_rows: false }]);
        let mut copy = first.clone();
        let spare = (0..rig.model.spec().num_blocks as u32).find(|block| !first.blocks.contains(block)).unwrap();
        rig.model.copy_block(first.blocks[1], spare);
        copy.blocks[1] = spare;
        // The original goes on differently; the copy must not notice.
        first.tokens[40..].fill(9);
        rig.step(&mut [Part { sequence: &mut first, tokens: 10, all_rows: false }]);
        let rows = rig.step(&mut [Part { sequence: &mut copy, tokens: 10, all_rows: false }]);
        assert_eq!(bits(&rows[0]), bits(&fresh.1[..1]), "{name}");
    }
}

#[test]
fn the_thread_count_changes_nothing() {
    use millgate_models::{Checkpoint, LoadOptions, Silent};
    let with_threads = |threads| {
        let options =
            LoadOptions { pool: std::sync::Arc::new(millgate_kernels::Pool::new(threads)), ..crate::rig::options() };
        let checkpoint = Checkpoint::open_local(&crate::rig::source("qwen3-bf16")).unwrap();
        bits(&Rig::of(checkpoint.load(&options, &Silent).unwrap()).all_logits(&prompt(3, 70), 40))
    };
    assert!(with_threads(1) == with_threads(3));
}

#[test]
fn gguf_in_f16_equals_safetensors_in_f16() {
    let tokens = prompt(8, 80);
    let folder = Rig::open("llama-f16").all_logits(&tokens, 80);
    let gguf = Rig::open("gguf/llama-f16.gguf").all_logits(&tokens, 80);
    // Norms are stored in f16 in the one and in f32 in the other, of the same values.
    assert!(bits(&folder) == bits(&gguf));
}
