//! Models on a GPU, real or emulated, against transformers' outputs and against themselves: graphs, neighbours, draws.

use std::sync::Arc;

use millgate_kernels::{Level, Pool};
use millgate_models::{
    Adjustment, Batch, Checkpoint, Device, DeviceChoice, Draw, KvDtypeChoice, LoadOptions, Model, Output, Penalties,
    PendingToken, SequenceSpan, Silent, Step,
};

use crate::parity::{check_close, check_exact, expected_of_folder, expected_of_gguf};
use crate::rig::{Part, Rig, Sequence, argmax, bits, options, source, testdata};

/// A model on the first GPU. `None`, said aloud, where there is none and `MILLGATE_TEST_GPU=require` does not ask for one.
fn open(name: &str) -> Option<Rig> {
    open_with(name, &gpu_options())
}

fn open_with(name: &str, options: &LoadOptions) -> Option<Rig> {
    if let Err(error) = DeviceChoice::Cuda(0).choose() {
        let is_required = std::env::var_os("MILLGATE_TEST_GPU").is_some_and(|value| value == "require");
        assert!(!is_required, "a GPU is required: {error}");
        #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
        {
            eprintln!("not run: {error} (`make check-cuda` runs it on an emulated one)");
        }
        return None;
    }
    Some(Rig::open_with(name, options))
}

fn gpu_options() -> LoadOptions {
    LoadOptions { device: Device::Cuda(0), max_step_tokens: 96, max_output_rows: 64, ..options() }
}

fn folder_is_exact(name: &str) {
    let Some(rig) = open(name) else { return };
    check_exact((rig, expected_of_folder(name)));
}

fn prompt(seed: u32, length: usize) -> Vec<u32> {
    (0..length as u32).map(|index| 3 + (index * 37 + seed * 101 + index * index * seed) % 317).collect()
}

#[test]
fn every_family_in_f32_gives_the_tokens_of_transformers() {
    for name in ["tiny-llama", "llama3-rope", "llama-linear-biased", "mistral-window", "qwen2", "qwen2-window", "qwen3"]
    {
        folder_is_exact(name);
    }
    let Some(rig) = open("gguf/llama-f32.gguf") else { return };
    check_exact((rig, expected_of_gguf("llama-f32")));
}

/// Here activations have 16 bits, too: that is what a bf16 model of the reference implementations gives on a GPU.
#[test]
fn models_in_16_bits_stay_close_to_transformers() {
    for name in ["llama-bf16-sharded", "mistral-bf16", "qwen3-bf16"] {
        let Some(rig) = open(name) else { return };
        check_close((rig, expected_of_folder(name)), 0.15, 0.003);
    }
    for name in ["llama-f16", "qwen2-f16"] {
        let Some(rig) = open(name) else { return };
        check_close((rig, expected_of_folder(name)), 0.03, 0.001);
    }
}

#[test]
fn a_cache_in_8_bits_stays_close_and_other_formats_than_the_models_are_refused() {
    let Some(wide) = open("qwen3-bf16") else { return };
    let options = LoadOptions { kv_dtype: KvDtypeChoice::Fp8, ..gpu_options() };
    let narrow = Rig::open_with("qwen3-bf16", &options);
    assert_eq!(2 * narrow.model.spec().kv_bytes_per_block, wide.model.spec().kv_bytes_per_block);
    check_close((narrow, expected_of_folder("qwen3-bf16")), 0.5, 0.02);
    for (name, kv_dtype) in
        [("tiny-llama", KvDtypeChoice::Fp8), ("tiny-llama", KvDtypeChoice::Bf16), ("llama-f16", KvDtypeChoice::F32)]
    {
        let checkpoint = Checkpoint::open_local(&source(name)).unwrap();
        let error = checkpoint.load(&LoadOptions { kv_dtype, ..gpu_options() }, &Silent).err().unwrap();
        assert!(error.to_string().contains("kv_dtype"), "{error}");
    }
}

#[test]
fn a_model_that_does_not_fit_is_refused_with_the_figures() {
    if open("tiny-llama").is_none() {
        return;
    }
    let options = LoadOptions { kv_bytes: Some(1 << 50), num_blocks: usize::MAX >> 20, ..gpu_options() };
    let checkpoint = Checkpoint::open_local(&source("tiny-llama")).unwrap();
    let error = checkpoint.load(&options, &Silent).err().unwrap().to_string();
    for part in ["`cuda:0` has ", " free and the model needs ", "of weights", "at least 1.00 PiB of KV cache"] {
        assert!(error.contains(part), "no `{part}` in: {error}");
    }
}

#[test]
fn a_chunk_whose_rows_nobody_wants_fills_the_cache_like_any_other() {
    let tokens = prompt(3, 40);
    let batch = |from: usize, to: usize, output_rows: Vec<u32>| Batch {
        tokens: tokens[from..to].to_vec(),
        positions: (from as u32..to as u32).collect(),
        slots: (from as u32..to as u32).collect(),
        sequences: vec![SequenceSpan {
            query_start: 0,
            query_len: (to - from) as u32,
            context_len: to as u32,
            table_start: 0,
            table_len: 2,
        }],
        tables: vec![0, 1],
        output_rows,
    };
    for name in ["gguf/llama-q8_0.gguf", "gguf/llama-q4_k_m.gguf", "qwen3-bf16"] {
        let Some(mut rig) = open(name) else { return };
        let whole = rig.model.forward(&batch(0, 40, vec![39])).unwrap().to_vec();
        assert!(rig.model.forward(&batch(0, 20, vec![])).unwrap().is_empty());
        let halves = rig.model.forward(&batch(20, 40, vec![19])).unwrap();
        let furthest = whole.iter().zip(halves).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(whole.len() == halves.len() && furthest < 0.15, "{name}: {furthest} apart");
    }
}

#[test]
fn gguf_files_in_blocks_stay_close_to_their_dequantised_weights() {
    for name in
        ["llama-q8_0", "qwen2-q8_0", "llama-q4_0", "llama-q4_k_m", "qwen3-q5_k", "llama-q6_k", "llama3-rope-bf16"]
    {
        let Some(rig) = open(&format!("gguf/{name}.gguf")) else { return };
        check_close((rig, expected_of_gguf(name)), 0.3, 0.01);
    }
}

/// Sums in 16 bits, and of weights in blocks, are rounded otherwise than on the CPU, so that of two tokens which are as good
/// as equally likely either may come first. The CPU takes its plainest instructions: the fastest of some processors round
/// queries, too, and what is asked of a GPU must not depend on the machine beside it.
#[test]
fn greedy_tokens_of_every_checkpoint_are_those_of_the_cpu_but_for_ties() {
    let folders = std::fs::read_dir(testdata("")).unwrap().map(|entry| entry.unwrap().path());
    let folders = folders.filter(|path| path.join("config.json").exists());
    let files = std::fs::read_dir(testdata("gguf")).unwrap().map(|entry| entry.unwrap().path());
    let files = files.filter(|path| path.extension().is_some_and(|extension| extension == "gguf"));
    let all: Vec<_> = folders.chain(files).collect();
    assert!(all.len() >= 20, "{all:?}");
    let pool = Pool::with_level(2, Level::Scalar).expect("every machine has plain instructions");
    let plain = LoadOptions { pool: Arc::new(pool), ..options() };
    for path in all {
        let name = path.strip_prefix(testdata("")).unwrap().display().to_string();
        let Some(mut gpu) = open(&name) else { return };
        let mut cpu = Rig::open_with(&name, &plain);
        let is_f32 = gpu.model.spec().weight_bytes == 4 * gpu.model.spec().parameters;
        let most = if is_f32 { 0.0 } else { 0.3 };
        let start: Vec<u32> = (0..20).map(|index| (3 + index * 37) % 250).collect();
        let (tokens, rows) = cpu.greedy(&start, 24);
        let whole = [&start, &tokens[..23]].concat();
        let found = gpu.all_logits(&whole, 16).split_off(start.len() - 1);
        for (step, (cpu_row, gpu_row)) in rows.iter().zip(&found).enumerate() {
            let lead = cpu_row[tokens[step] as usize] - cpu_row[argmax(gpu_row) as usize];
            assert!(lead <= most, "{name}, step {step}: the CPU's token leads by {lead}");
        }
    }
}

/// Decode steps of several sequences; `eager` has each of them computed operation by operation.
fn decode(rig: &mut Rig, count: usize, eager: bool) -> Vec<Vec<Vec<f32>>> {
    let mut sequences: Vec<Sequence> =
        (0..count as u32).map(|seed| Sequence { tokens: prompt(seed + 1, 5), ..Sequence::default() }).collect();
    let mut answers = Vec::new();
    for _ in 0..4 {
        if eager {
            // A block copy before the step keeps it from being replayed. These two are the last that the rig gives out.
            rig.model.copy_block(0, 7);
        }
        let mut parts: Vec<Part<'_>> = sequences
            .iter_mut()
            .map(|sequence| {
                let tokens = sequence.tokens.len() - sequence.computed;
                Part { sequence, tokens, all_rows: false }
            })
            .collect();
        let rows = rig.step(&mut parts);
        for (sequence, row) in sequences.iter_mut().zip(&rows) {
            sequence.tokens.push(argmax(&row[0]));
        }
        answers.push(rows.into_iter().map(|mut row| row.remove(0)).collect());
    }
    sequences.into_iter().for_each(|sequence| rig.free(sequence));
    answers
}

/// In deterministic mode and without: a recorded step has more rows than it is given, and multiplies them alike.
#[test]
fn a_replayed_step_gives_the_bits_of_the_same_step_operation_by_operation() {
    for (name, deterministic) in
        [("tiny-llama", true), ("qwen3-bf16", true), ("tiny-llama", false), ("qwen3-bf16", false)]
    {
        let Some(mut rig) = open_with(name, &LoadOptions { deterministic, ..gpu_options() }) else { return };
        for count in [1, 3, 5, 9] {
            let (replayed, eager) = (decode(&mut rig, count, false), decode(&mut rig, count, true));
            for (replayed, eager) in replayed.iter().zip(&eager) {
                assert!(bits(replayed) == bits(eager), "{name}, {count} sequences, deterministic: {deterministic}");
            }
        }
    }
}

fn draw(temperature: f32, seed: u64, position: u32) -> Draw {
    Draw {
        temperature,
        top_k: 40,
        top_p: 0.95,
        min_p: 0.0,
        penalties: Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 },
        seed,
        choice: 0,
        position,
        logprobs: None,
        adjustments_start: 0,
        adjustments_len: 0,
        pending: None,
    }
}

/// One sequence of `tokens` in blocks from 0 on; the last row draws, with a token of the step before at its end if `pending`.
fn step_of(tokens: &[u32], from: usize, draw: Draw, pending: bool) -> Step {
    let count = tokens.len() - from;
    let batch = Batch {
        tokens: tokens[from..].to_vec(),
        positions: (from as u32..tokens.len() as u32).collect(),
        slots: (from as u32..tokens.len() as u32).collect(),
        sequences: vec![SequenceSpan {
            query_start: 0,
            query_len: count as u32,
            context_len: tokens.len() as u32,
            table_start: 0,
            table_len: tokens.len().div_ceil(32) as u32,
        }],
        tables: (0..tokens.len().div_ceil(32) as u32).collect(),
        output_rows: vec![count as u32 - 1],
    };
    let pending = if pending { vec![PendingToken { row: count as u32 - 1, draw: 0 }] } else { Vec::new() };
    Step { batch, pending, outputs: vec![Output::Draw(draw)], adjustments: Vec::new() }
}

#[test]
fn a_step_launched_on_a_token_that_nobody_has_read_gives_what_it_gives_once_it_is_known() {
    let Some(mut rig) = open("tiny-llama") else { return };
    let tokens = prompt(3, 20);
    let next = |model: &mut Box<dyn Model>| {
        let output = model.drawing().unwrap().collect().unwrap();
        output.draws[0].clone().unwrap().token
    };
    // In turn: each token is read before the next step is launched.
    let mut known = tokens.clone();
    for step in 0..6 {
        let from = if step == 0 { 0 } else { known.len() - 1 };
        let step = step_of(&known, from, draw(0.9, 11, known.len() as u32), false);
        rig.model.drawing().unwrap().launch(&step).unwrap();
        known.push(next(&mut rig.model));
    }
    // Ahead: the step after is launched on a token that is still on the device.
    let mut ahead = tokens.clone();
    let first = step_of(&ahead, 0, draw(0.9, 11, ahead.len() as u32), false);
    rig.model.drawing().unwrap().launch(&first).unwrap();
    for _ in 1..6 {
        let mut launched = ahead.clone();
        launched.push(0);
        let step = step_of(&launched, launched.len() - 1, draw(0.9, 11, launched.len() as u32), true);
        rig.model.drawing().unwrap().launch(&step).unwrap();
        ahead.push(next(&mut rig.model));
    }
    ahead.push(next(&mut rig.model));
    assert_eq!(ahead, known);
    assert!(rig.model.drawing().unwrap().collect().is_err(), "nothing is in flight");
}

#[test]
fn banned_tokens_and_log_probabilities_reach_the_device() {
    let Some(mut rig) = open("tiny-llama") else { return };
    let tokens = prompt(7, 12);
    let logits = rig.all_logits(&tokens, tokens.len()).pop().unwrap();
    let likeliest = argmax(&logits);
    let mut step = step_of(&tokens, 0, Draw { logprobs: Some(2), ..draw(0.0, 1, 12) }, false);
    rig.model.drawing().unwrap().launch(&step).unwrap();
    let drawn = rig.model.drawing().unwrap().collect().unwrap().draws[0].clone().unwrap();
    let scores = drawn.scores.unwrap();
    let exact = crate::rig::logprobs(&logits);
    assert_eq!(drawn.token, likeliest);
    assert_eq!((scores.top[0].0, scores.top.len()), (likeliest, 2));
    assert!((f64::from(scores.logprob) - exact[likeliest as usize]).abs() < 1e-3);
    let Output::Draw(wish) = &mut step.outputs[0] else { unreachable!() };
    wish.adjustments_len = 1;
    step.adjustments = vec![Adjustment { is_forbidden: true, ..Adjustment::none(likeliest) }];
    rig.model.drawing().unwrap().launch(&step).unwrap();
    let drawn = rig.model.drawing().unwrap().collect().unwrap().draws[0].clone().unwrap();
    assert_eq!(drawn.token, scores.top[1].0, "the second likeliest");
}
