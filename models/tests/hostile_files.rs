//! Broken and hostile checkpoints: an error that names the file and the thing, never a panic, never a wild allocation.

use std::error::Error;
use std::fs;
use std::path::Path;

use millgate_models::{Checkpoint, LoadError, LoadOptions, Silent, Source};
use serde_json::{Map, Value, json};
use tempfile::TempDir;

use crate::rig::{options, testdata};

/// A copy of a checkpoint folder that tests may damage.
fn copy_of(name: &str) -> TempDir {
    let folder = tempfile::tempdir().unwrap();
    for entry in fs::read_dir(testdata(name)).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, folder.path().join(path.file_name().unwrap())).unwrap();
    }
    folder
}

/// The whole chain of messages, as the reporter prints it.
fn message(error: &LoadError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

fn small_options() -> LoadOptions {
    LoadOptions { num_blocks: 2, max_step_tokens: 8, max_output_rows: 8, context_window: Some(64), ..options() }
}

fn open_and_load(source: &Source) -> Result<(), String> {
    let checkpoint = Checkpoint::open_local(source).map_err(|error| message(&error))?;
    checkpoint.load(&small_options(), &Silent).map(|_| ()).map_err(|error| message(&error))
}

fn refusal(folder: &Path) -> String {
    open_and_load(&Source::Folder(folder.to_owned())).unwrap_err()
}

fn refusal_of_gguf(bytes: &[u8]) -> Result<(), String> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.gguf");
    fs::write(&path, bytes).unwrap();
    open_and_load(&Source::Gguf(path))
}

/// Rewrites the header of a safetensors file and leaves its data.
fn edit_header(path: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let bytes = fs::read(path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    edit(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let new = [(header.len() as u64).to_le_bytes().as_slice(), &header, &bytes[8 + length..]].concat();
    fs::write(path, new).unwrap();
}

fn edit_config(folder: &Path, edit: impl FnOnce(&mut Map<String, Value>)) {
    let path = folder.join("config.json");
    let mut config: Map<String, Value> = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    edit(&mut config);
    fs::write(path, serde_json::to_vec(&config).unwrap()).unwrap();
}

#[test]
fn a_cut_safetensors_file_is_refused_by_name() {
    let folder = copy_of("tiny-llama");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, 7, 8, 9, 100, 2000, whole.len() / 2, whole.len() - 1] {
        fs::write(&path, &whole[..length]).unwrap();
        let refusal = refusal(folder.path());
        assert!(refusal.contains("model.safetensors` is damaged"), "{length}: {refusal}");
    }
}

#[test]
fn a_header_that_lies_about_its_length_is_refused() {
    let folder = copy_of("tiny-llama");
    let path = folder.path().join("model.safetensors");
    let whole = fs::read(&path).unwrap();
    for length in [0, 1, 1 << 20, 1 << 40, u64::MAX] {
        let lying = [length.to_le_bytes().as_slice(), &whole[8..]].concat();
        fs::write(&path, lying).unwrap();
        assert!(refusal(folder.path()).contains("model.safetensors"), "{length}");
    }
}

#[test]
fn offsets_and_shapes_that_overflow_or_overlap_are_refused() {
    let name = "model.norm.weight";
    let damages: [(&str, Value); 4] = [
        ("shape", json!([u64::MAX, u64::MAX])),
        ("shape", json!([65])),
        ("data_offsets", json!([0, u64::MAX])),
        ("data_offsets", json!([16, 8])),
    ];
    for (key, value) in damages {
        let folder = copy_of("tiny-llama");
        edit_header(&folder.path().join("model.safetensors"), |header| header[name][key] = value.clone());
        let refusal = refusal(folder.path());
        assert!(refusal.contains("model.safetensors` is damaged"), "{key} {value}: {refusal}");
    }
}

#[test]
fn missing_misshapen_and_unknown_tensors_are_refused_by_name() {
    let path = |folder: &TempDir| folder.path().join("model.safetensors");
    let folder = copy_of("tiny-llama");
    edit_header(&path(&folder), |header| {
        let tensor = header.remove("model.layers.1.mlp.up_proj.weight").unwrap();
        header.insert("model.layers.1.mlp.up_proj.weights".into(), tensor);
    });
    assert!(refusal(folder.path()).contains("`model.layers.1.mlp.up_proj.weight` is missing from"));

    let folder = copy_of("tiny-llama");
    edit_header(&path(&folder), |header| header["model.layers.0.self_attn.k_proj.weight"]["shape"] = json!([64, 32]));
    let text = refusal(folder.path());
    assert!(text.contains("`model.layers.0.self_attn.k_proj.weight`") && text.contains("[32, 64]"), "{text}");

    let folder = copy_of("tiny-llama");
    edit_header(&path(&folder), |header| header["model.norm.weight"]["dtype"] = json!("I32"));
    let text = refusal(folder.path());
    assert!(text.contains("`model.norm.weight`") && text.contains("type I32"), "{text}");

    // A Qwen 2 whose config claims to be a Llama without biases must not run without them.
    let folder = copy_of("qwen2");
    edit_config(folder.path(), |config| {
        config.insert("model_type".into(), json!("llama"));
    });
    let text = refusal(folder.path());
    assert!(text.contains("k_proj.bias` in") && text.contains("not part of architecture `llama`"), "{text}");
}

#[test]
fn weights_that_are_not_numbers_are_refused_by_name() {
    let folder = copy_of("tiny-llama");
    let path = folder.path().join("model.safetensors");
    let mut bytes = fs::read(&path).unwrap();
    let end = bytes.len();
    bytes[end - 4..].copy_from_slice(&f32::NAN.to_le_bytes());
    fs::write(&path, bytes).unwrap();
    let text = refusal(folder.path());
    assert!(text.contains("tensor `") && text.contains("model.safetensors") && text.contains("not finite"), "{text}");

    let mut bytes = fs::read(testdata("gguf/llama-q8_0.gguf")).unwrap();
    let end = bytes.len();
    bytes[end - 34..end - 32].copy_from_slice(&[0x00, 0x7e]);
    // The last tensor may be followed by padding; then the scale before it was hit, or nothing.
    let text = refusal_of_gguf(&bytes).unwrap_err();
    assert!(text.contains("tensor `") && text.contains("damaged.gguf") && text.contains("not finite"), "{text}");
}

#[test]
fn absurd_configs_are_refused_with_the_key() {
    let absurd: [(&str, Value); 26] = [
        ("num_attention_heads", json!(0)),
        ("num_attention_heads", json!(-4)),
        ("num_attention_heads", json!("4")),
        ("num_key_value_heads", json!(0)),
        ("num_key_value_heads", json!(3)),
        ("hidden_size", json!(u64::MAX)),
        ("hidden_size", json!(1e300)),
        ("hidden_size", Value::Null),
        ("intermediate_size", json!(1_u64 << 62)),
        ("num_hidden_layers", json!(1_000_000_000)),
        ("num_hidden_layers", json!(0)),
        ("vocab_size", json!(1_u64 << 40)),
        ("max_position_embeddings", json!(1_u64 << 50)),
        ("head_dim", json!(12)),
        ("head_dim", json!(1 << 30)),
        ("rms_norm_eps", json!(-1.0)),
        ("rope_theta", json!(0)),
        ("rope_scaling", json!({"type": "yarn", "factor": 4.0})),
        ("hidden_act", json!("gelu")),
        ("num_local_experts", json!(8)),
        ("model_type", json!("mamba")),
        ("model_type", json!(7)),
        ("tie_word_embeddings", json!("yes")),
        ("attention_bias", json!([])),
        ("architectures", json!(["LlamaForSequenceClassification"])),
        ("quantization_config", json!({"quant_method": "gptq"})),
    ];
    for (key, value) in absurd {
        let folder = copy_of("tiny-llama");
        edit_config(folder.path(), |config| {
            config.insert(key.into(), value.clone());
        });
        let text = refusal(folder.path());
        let thing = match key {
            "rope_scaling" => "yarn",
            "num_local_experts" => "mixture of experts",
            "architectures" => "LlamaForSequenceClassification",
            "quantization_config" => "gptq",
            "model_type" if value == json!("mamba") => "`mamba` is not supported; supported: llama, mistral",
            key => key,
        };
        assert!(text.contains("config.json") && text.contains(thing), "{key} = {value}: {text}");
    }
}

#[test]
fn what_is_no_config_is_refused() {
    let folder = copy_of("tiny-llama");
    let path = folder.path().join("config.json");
    let deep = "[".repeat(100_000);
    for text in ["", "{", "[]", "null", "\u{0}", &deep] {
        fs::write(&path, text).unwrap();
        assert!(refusal(folder.path()).contains("config.json"));
    }
    fs::write(&path, [0xff, 0xfe, 0x00]).unwrap();
    assert!(refusal(folder.path()).contains("config.json"));
    fs::remove_file(&path).unwrap();
    assert!(refusal(folder.path()).contains("holds no model"));
    assert!(refusal(Path::new("/nonexistent/model")).contains("/nonexistent/model"));
}

#[test]
fn an_index_cannot_lead_out_of_its_folder_or_to_files_that_are_not_there() {
    let index = "model.safetensors.index.json";
    for (file, reason) in [("../x.safetensors", "not a file name"), ("/etc/passwd", "not a file name")] {
        let folder = copy_of("llama-bf16-sharded");
        let text = json!({"weight_map": {"model.norm.weight": file}}).to_string();
        fs::write(folder.path().join(index), text).unwrap();
        assert!(refusal(folder.path()).contains(reason));
    }
    let folder = copy_of("llama-bf16-sharded");
    fs::remove_file(folder.path().join("model-00002-of-00003.safetensors")).unwrap();
    assert!(refusal(folder.path()).contains("model-00002-of-00003.safetensors"));
    let folder = copy_of("llama-bf16-sharded");
    fs::write(folder.path().join(index), "{}").unwrap();
    assert!(refusal(folder.path()).contains(index));
    let folder = copy_of("llama-bf16-sharded");
    let text = json!({"weight_map": {"ghost": "model-00001-of-00003.safetensors"}}).to_string();
    fs::write(folder.path().join(index), text).unwrap();
    assert!(refusal(folder.path()).contains("`ghost` is missing"));
}

#[test]
fn a_cut_gguf_file_is_refused_by_name() {
    let whole = fs::read(testdata("gguf/llama-q8_0.gguf")).unwrap();
    let lengths = (0..64).chain((64..whole.len()).step_by(3001)).chain([whole.len() - 40]);
    for length in lengths {
        let text = refusal_of_gguf(&whole[..length]).unwrap_err();
        assert!(text.contains("damaged.gguf"), "{length}: {text}");
    }
}

#[test]
fn no_damage_to_a_gguf_header_makes_it_panic() {
    let whole = fs::read(testdata("gguf/llama-q8_0.gguf")).unwrap();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    let mut refused = 0;
    for _ in 0..400 {
        let mut bytes = whole.clone();
        for _ in 0..1 + next() % 3 {
            // Most of the header is vocabulary; its beginning and end hold the sizes.
            let at = if next() % 2 == 0 { next() % 1200 } else { next() % 16_000 } as usize;
            match next() % 3 {
                0 => bytes[at] ^= 1 << (next() % 8),
                1 => bytes[at..at + 8].copy_from_slice(&[0xff; 8]),
                _ => bytes[at..at + 4].copy_from_slice(&(next() as u32).to_le_bytes()),
            }
        }
        refused += usize::from(refusal_of_gguf(&bytes).is_err());
    }
    assert!(refused > 200, "{refused} of 400 damages were noticed");
}

#[test]
fn a_context_window_beyond_the_models_is_refused() {
    let checkpoint = Checkpoint::open_local(&crate::rig::source("tiny-llama")).unwrap();
    let wide = LoadOptions { context_window: Some(513), ..options() };
    let text = message(&checkpoint.load(&wide, &Silent).err().unwrap());
    assert_eq!(text, "context window 513 is not within the model's 1 to 512 tokens");
}

#[test]
fn more_cache_than_there_is_memory_is_an_error() {
    for num_blocks in [usize::MAX, usize::MAX / 4096, 1 << 40] {
        let checkpoint = Checkpoint::open_local(&crate::rig::source("tiny-llama")).unwrap();
        let text = message(&checkpoint.load(&LoadOptions { num_blocks, ..options() }, &Silent).err().unwrap());
        assert!(text.starts_with("not enough memory"), "{text}");
    }
}
