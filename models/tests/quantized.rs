//! Models that are quantised while they load, and the file that keeps their blocks.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use millgate_models::{CacheError, Checkpoint, Demo, LoadError, QuantizeTo, Silent, Source};

use crate::rig::{Part, Rig, Sequence, options, source};

const PROMPT: [u32; 6] = [5, 90, 17, 200, 3, 61];

/// Logits of the last token of a short prompt.
fn logits(checkpoint: Checkpoint) -> Vec<f32> {
    let mut rig = Rig::of(checkpoint.load(&options(), &Silent).unwrap());
    let mut sequence = Sequence { tokens: PROMPT.to_vec(), ..Sequence::default() };
    let part = Part { sequence: &mut sequence, tokens: PROMPT.len(), all_rows: false };
    rig.step(&mut [part]).remove(0).remove(0)
}

fn quantized(name: &str, to: QuantizeTo) -> Checkpoint {
    Checkpoint::open_local(&source(name)).unwrap().quantized(to).unwrap()
}

/// How far two rows are apart, as a share of the first one's size.
fn distance(wanted: &[f32], found: &[f32]) -> f32 {
    let size: f32 = wanted.iter().map(|value| value * value).sum();
    let error: f32 = wanted.iter().zip(found).map(|(a, b)| (a - b) * (a - b)).sum();
    (error / size).sqrt()
}

fn only_file(folder: &Path) -> PathBuf {
    let mut files: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(files.len(), 1, "{files:?}");
    files.remove(0)
}

#[test]
fn a_quantised_model_answers_nearly_as_the_stored_one_and_takes_the_memory_foretold() {
    for name in ["qwen3-bf16", "tiny-llama", "llama-f16", "llama-bf16-sharded", "gguf/llama-f16.gguf"] {
        let stored = Checkpoint::open_local(&source(name)).unwrap();
        let before = stored.footprint(&options()).weight_bytes;
        let wanted = logits(stored);
        let checkpoint = quantized(name, QuantizeTo::Q8_0);
        assert_eq!(checkpoint.summary().format_names(), "q8_0", "{name}");
        let footprint = checkpoint.footprint(&options());
        assert!(footprint.weight_bytes < before, "{name}");
        let model = checkpoint.load(&options(), &Silent).unwrap();
        let ratio = footprint.weight_bytes as f64 / model.spec().weight_bytes as f64;
        assert!((0.9..1.1).contains(&ratio), "{name}: {ratio}");
        let away = distance(&wanted, &logits(quantized(name, QuantizeTo::Q8_0)));
        assert!(away > 0.0 && away < 0.03, "{name} is {away} away");
    }
}

#[test]
fn four_bits_keep_six_for_embedding_and_head() {
    let demo = || Checkpoint::open_local(&Source::Builtin(Demo)).unwrap();
    let checkpoint = demo().quantized(QuantizeTo::Q4K).unwrap();
    assert_eq!(checkpoint.summary().format_names(), "q4_k + q6_k");
    let away = distance(&logits(demo()), &logits(checkpoint));
    assert!(away > 0.0 && away < 0.3, "{away} away");
}

#[test]
fn blocks_from_the_file_are_the_blocks_that_were_made() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = logits(quantized("qwen3-bf16", QuantizeTo::Q8_0));
    let mut written = Vec::new();
    for _ in 0..2 {
        let mut checkpoint = quantized("qwen3-bf16", QuantizeTo::Q8_0);
        checkpoint.keep_quantized(folder.path(), &Silent).unwrap();
        written.push(fs::metadata(only_file(folder.path())).unwrap().modified().unwrap());
        assert_eq!(logits(checkpoint), wanted);
    }
    assert_eq!(written[0], written[1], "the second load only read");
}

#[test]
fn a_file_that_fits_no_more_is_made_again() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    fs::create_dir(&model).unwrap();
    for entry in fs::read_dir(crate::rig::testdata("qwen3-bf16")).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, model.join(path.file_name().unwrap())).unwrap();
    }
    let cache = folder.path().join("cache");
    let load = || {
        let source = model.display().to_string().parse().unwrap();
        let mut checkpoint = Checkpoint::open_local(&source).unwrap().quantized(QuantizeTo::Q8_0).unwrap();
        checkpoint.keep_quantized(&cache, &Silent).unwrap();
        logits(checkpoint)
    };
    let wanted = load();
    let file = only_file(&cache);
    let length = fs::metadata(&file).unwrap().len();
    fs::File::options().write(true).open(&file).unwrap().set_len(length / 2).unwrap();
    assert_eq!(load(), wanted);
    assert_eq!(fs::metadata(only_file(&cache)).unwrap().len(), length);
    let before = fs::metadata(&file).unwrap().modified().unwrap();
    let weights = fs::File::options().write(true).open(model.join("model.safetensors")).unwrap();
    weights.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    assert_eq!(load(), wanted);
    assert!(fs::metadata(only_file(&cache)).unwrap().modified().unwrap() > before, "the weight file has changed");
}

#[test]
fn without_a_place_for_the_file_the_model_is_quantised_all_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("not-a-folder");
    fs::write(&file, "").unwrap();
    let mut checkpoint = quantized("qwen3-bf16", QuantizeTo::Q8_0);
    let refused = checkpoint.keep_quantized(&file, &Silent).unwrap_err();
    assert!(matches!(refused, CacheError::Write { .. }), "{refused}");
    assert_eq!(logits(checkpoint), logits(quantized("qwen3-bf16", QuantizeTo::Q8_0)));
}

#[test]
fn what_is_quantised_already_is_refused_with_its_format() {
    let checkpoint = Checkpoint::open_local(&source("gguf/llama-q8_0.gguf")).unwrap();
    let Err(refused) = checkpoint.quantized(QuantizeTo::Q4K) else { panic!("it was quantised twice") };
    assert!(matches!(refused, LoadError::NothingToQuantize { .. }));
    assert!(refused.to_string().contains("they are in q8_0"), "{refused}");
}
