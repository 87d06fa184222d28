//! Parity with Hugging Face transformers on tiny random-weight checkpoints; `models/scripts/parity.sh` makes the
//! expected outputs again.

use std::fs;
use std::path::Path;

use serde::Deserialize;

use crate::rig::{Rig, logprobs, testdata};

#[derive(Deserialize)]
struct Recorded {
    prompt: Vec<u32>,
    greedy: Vec<u32>,
    vocab_size: usize,
}

pub(crate) struct Expected {
    pub(crate) prompt: Vec<u32>,
    pub(crate) greedy: Vec<u32>,
    /// At every position of prompt + greedy.
    logprobs: Vec<Vec<f64>>,
}

fn expected(stem: &Path) -> Expected {
    let recorded: Recorded = serde_json::from_slice(&fs::read(stem.with_extension("json")).unwrap()).unwrap();
    let bytes = fs::read(stem.with_extension("bin")).unwrap();
    let values: Vec<f64> = bytes.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]]).into()).collect();
    let logprobs: Vec<Vec<f64>> = values.chunks(recorded.vocab_size).map(<[f64]>::to_vec).collect();
    assert_eq!(logprobs.len(), recorded.prompt.len() + recorded.greedy.len());
    Expected { prompt: recorded.prompt, greedy: recorded.greedy, logprobs }
}

fn of_folder(name: &str) -> (Rig, Expected) {
    (Rig::open(name), expected_of_folder(name))
}

fn of_gguf(name: &str) -> (Rig, Expected) {
    (Rig::open(&format!("gguf/{name}.gguf")), expected_of_gguf(name))
}

pub(crate) fn expected_of_folder(name: &str) -> Expected {
    expected(&testdata(name).join("expected"))
}

pub(crate) fn expected_of_gguf(name: &str) -> Expected {
    expected(&testdata("gguf").join(name))
}

fn teacher_forced(rig: &mut Rig, expected: &Expected) -> Vec<Vec<f64>> {
    let tokens = [expected.prompt.clone(), expected.greedy.clone()].concat();
    rig.all_logits(&tokens, tokens.len()).iter().map(|row| logprobs(row)).collect()
}

/// The largest difference of a log-probability, over the whole vocabulary and all positions.
fn largest_difference(found: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    let rows = found.iter().zip(expected);
    rows.flat_map(|(found, expected)| found.iter().zip(expected).map(|(a, b)| (a - b).abs())).fold(0.0, f64::max)
}

/// The largest difference of the log-probability of the token that follows, and of the reference's five likeliest.
fn largest_forced_difference(found: &[Vec<f64>], expected: &Expected) -> f64 {
    let tokens = [expected.prompt.as_slice(), &expected.greedy].concat();
    let mut largest = 0.0_f64;
    for (position, (found, expected)) in found.iter().zip(&expected.logprobs).enumerate() {
        let mut ranked: Vec<usize> = (0..expected.len()).collect();
        ranked.sort_by(|&a, &b| expected[b].total_cmp(&expected[a]));
        let forced = tokens.get(position + 1).map(|&token| token as usize);
        for token in ranked.into_iter().take(5).chain(forced) {
            largest = largest.max((found[token] - expected[token]).abs());
        }
    }
    largest
}

/// Mean over the positions of the Kullback-Leibler divergence from the reference, in nats.
fn mean_divergence(found: &[Vec<f64>], expected: &[Vec<f64>]) -> f64 {
    let divergence = |found: &[f64], expected: &[f64]| -> f64 {
        found.iter().zip(expected).map(|(found, expected)| expected.exp() * (expected - found)).sum()
    };
    found.iter().zip(expected).map(|(found, expected)| divergence(found, expected)).sum::<f64>() / found.len() as f64
}

pub(crate) fn check_exact((mut rig, expected): (Rig, Expected)) {
    let (greedy, _) = rig.greedy(&expected.prompt, expected.greedy.len());
    assert_eq!(greedy, expected.greedy);
    let difference = largest_difference(&teacher_forced(&mut rig, &expected), &expected.logprobs);
    assert!(difference < 1e-3, "largest difference {difference}");
}

/// Weights and cache are bf16 or f16, the reference computes with the same weights in f32.
fn check_half(model: (Rig, Expected)) {
    check_close(model, 0.05, 0.001);
}

pub(crate) fn check_close((mut rig, expected): (Rig, Expected), most_difference: f64, most_divergence: f64) {
    let found = teacher_forced(&mut rig, &expected);
    let difference = largest_forced_difference(&found, &expected);
    let divergence = mean_divergence(&found, &expected.logprobs);
    assert!(difference < most_difference, "largest difference {difference}");
    assert!(divergence < most_divergence, "mean divergence {divergence} nats");
}

/// Activations are rounded to 8 bits, which is all that may differ: the reference has the same dequantised weights.
fn check_quantised((mut rig, expected): (Rig, Expected)) {
    let divergence = mean_divergence(&teacher_forced(&mut rig, &expected), &expected.logprobs);
    assert!(divergence < 0.005, "mean divergence {divergence} nats");
}

#[test]
fn llama_2_in_f32_gives_the_same_tokens_as_transformers() {
    check_exact(of_folder("tiny-llama"));
}

#[test]
fn llama_3_scaling_and_a_tied_head_give_the_same_tokens() {
    check_exact(of_folder("llama3-rope"));
}

#[test]
fn linear_scaling_and_biases_everywhere_give_the_same_tokens() {
    check_exact(of_folder("llama-linear-biased"));
}

#[test]
fn mistral_with_a_window_shorter_than_the_prompt_gives_the_same_tokens() {
    check_exact(of_folder("mistral-window"));
}

#[test]
fn qwen_2_with_its_window_turned_off_gives_the_same_tokens() {
    check_exact(of_folder("qwen2"));
}

#[test]
fn qwen_2_with_a_window_in_its_upper_layers_gives_the_same_tokens() {
    check_exact(of_folder("qwen2-window"));
}

#[test]
fn qwen_3_with_head_norms_and_its_own_head_size_gives_the_same_tokens() {
    check_exact(of_folder("qwen3"));
}

#[test]
fn gguf_in_f32_gives_the_same_tokens_with_its_rotary_rows_put_back() {
    check_exact(of_gguf("llama-f32"));
}

#[test]
fn llama_in_sharded_bf16_stays_close_to_transformers() {
    check_half(of_folder("llama-bf16-sharded"));
}

#[test]
fn llama_in_f16_stays_close() {
    check_half(of_folder("llama-f16"));
}

#[test]
fn mistral_in_bf16_without_a_window_stays_close() {
    check_half(of_folder("mistral-bf16"));
}

#[test]
fn qwen_2_in_f16_stays_close() {
    check_half(of_folder("qwen2-f16"));
}

#[test]
fn qwen_3_in_bf16_stays_close() {
    check_half(of_folder("qwen3-bf16"));
}

#[test]
fn gguf_in_bf16_with_the_llama_3_factors_in_a_tensor_stays_close() {
    check_half(of_gguf("llama3-rope-bf16"));
}

#[test]
fn gguf_in_f16_stays_close() {
    check_half(of_gguf("llama-f16"));
}

#[test]
fn q8_0_stays_close_to_its_dequantised_weights_in_every_family() {
    for name in ["llama-q8_0", "llama-linear-biased-q8_0", "qwen2-q8_0", "qwen3-q8_0"] {
        check_quantised(of_gguf(name));
    }
}

#[test]
fn q4_0_stays_close_to_its_dequantised_weights() {
    check_quantised(of_gguf("llama-q4_0"));
}

#[test]
fn a_mixture_of_q4_k_and_q6_k_stays_close_to_its_dequantised_weights() {
    check_quantised(of_gguf("llama-q4_k_m"));
}

#[test]
fn q5_k_stays_close_to_its_dequantised_weights() {
    check_quantised(of_gguf("qwen3-q5_k"));
}

#[test]
fn q6_k_stays_close_to_its_dequantised_weights() {
    check_quantised(of_gguf("llama-q6_k"));
}
