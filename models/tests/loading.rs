//! What a checkpoint says about itself before and while it loads.

use std::fs;
use std::sync::Mutex;

use millgate_models::weights::{FileBytes, SafetensorsWeights, Shard, Weights};
use millgate_models::{Checkpoint, KvDtypeChoice, LoadOptions, Progress, Silent, Source};

use crate::rig::{Rig, options, source, testdata};

#[test]
fn a_summary_tells_what_people_compare() {
    let summary = Checkpoint::open_local(&source("qwen3-bf16")).unwrap().summary();
    assert_eq!(summary.architecture, "qwen3");
    assert_eq!(summary.format_names(), "bf16");
    assert_eq!((summary.num_layers, summary.hidden_size, summary.head_dim), (2, 64, 32));
    assert_eq!((summary.num_heads, summary.num_kv_heads), (4, 2));
    assert_eq!((summary.vocab_size, summary.context_window), (320, 512));
    // Keys and values, 2 layers, 2 heads of 32 elements, 2 bytes each.
    assert_eq!(summary.kv_bytes_per_token, 2 * 2 * 2 * 32 * 2);
    assert!(!summary.is_head_tied);
    let mixed = Checkpoint::open_local(&source("gguf/llama-q4_k_m.gguf")).unwrap().summary();
    assert_eq!(mixed.format_names(), "q4_k + q6_k");
    assert!(mixed.is_head_tied);
    let windowed = Checkpoint::open_local(&source("mistral-window")).unwrap().summary();
    assert_eq!(windowed.sliding_window, Some(20));
    let scaled = Checkpoint::open_local(&source("llama3-rope")).unwrap().summary();
    assert_eq!(scaled.rope, "llama3 x8 over 64 (base 500000)");
}

#[test]
fn a_footprint_foretells_what_a_load_takes() {
    for name in ["tiny-llama", "qwen3-bf16", "gguf/llama-q8_0.gguf", "gguf/llama-q4_k_m.gguf"] {
        let checkpoint = Checkpoint::open_local(&source(name)).unwrap();
        let summary = checkpoint.summary();
        let footprint = checkpoint.footprint(&options());
        let model = checkpoint.load(&options(), &Silent).unwrap();
        let spec = model.spec();
        assert_eq!(spec.parameters, summary.parameters, "{name}");
        assert_eq!(footprint.kv_bytes_per_block, spec.kv_bytes_per_block as u64, "{name}");
        let ratio = footprint.weight_bytes as f64 / spec.weight_bytes as f64;
        assert!(
            (0.9..1.1).contains(&ratio),
            "{name}: {} foretold, {} taken",
            footprint.weight_bytes,
            spec.weight_bytes
        );
    }
}

#[test]
fn the_cache_is_f32_for_f32_models_and_bf16_for_others_unless_told() {
    let bytes = |name: &str, kv_dtype| {
        Checkpoint::open_local(&source(name))
            .unwrap()
            .footprint(&LoadOptions { kv_dtype, ..options() })
            .kv_bytes_per_block
    };
    assert_eq!(bytes("tiny-llama", KvDtypeChoice::Auto), bytes("tiny-llama", KvDtypeChoice::F32));
    assert_eq!(bytes("tiny-llama", KvDtypeChoice::F32), 2 * bytes("tiny-llama", KvDtypeChoice::Bf16));
    assert_eq!(bytes("llama-f16", KvDtypeChoice::Auto), bytes("llama-f16", KvDtypeChoice::Bf16));
}

#[test]
fn folder_and_gguf_speak_the_same_text() {
    let text = "The gate opens, 3 keys: äöü 磨坊 🙂\n";
    let folder = Checkpoint::open_local(&source("tiny-llama")).unwrap().text().unwrap();
    let gguf = Checkpoint::open_local(&source("gguf/llama-q8_0.gguf")).unwrap().text().unwrap();
    let ids = folder.tokenizer.encode(text).unwrap();
    assert_eq!(ids, gguf.tokenizer.encode(text).unwrap());
    assert_eq!(gguf.tokenizer.decode(&ids, true), text);
    assert_eq!(folder.end_tokens, [2]);
    assert!(gguf.end_tokens.contains(&2));
    assert!(folder.chat_template.is_some() && gguf.chat_template.is_some());
}

#[test]
fn a_folder_with_one_gguf_and_no_config_means_that_file() {
    let folder = tempfile::tempdir().unwrap();
    fs::copy(testdata("gguf/llama-q8_0.gguf"), folder.path().join("m.gguf")).unwrap();
    let source = Source::Folder(folder.path().to_owned());
    assert_eq!(Checkpoint::open_local(&source).unwrap().summary().format_names(), "q8_0");
    fs::copy(testdata("gguf/llama-q8_0.gguf"), folder.path().join("n.gguf")).unwrap();
    assert!(Checkpoint::open_local(&source).is_err());
}

#[derive(Default)]
struct Heard {
    total: Mutex<u64>,
    done: Mutex<u64>,
    finished: Mutex<u32>,
}

impl Progress for Heard {
    fn stage(&self, _name: &str, total_bytes: u64) {
        *self.total.lock().unwrap() += total_bytes;
    }
    fn advance(&self, bytes: u64) {
        *self.done.lock().unwrap() += bytes;
    }
    fn finish(&self) {
        *self.finished.lock().unwrap() += 1;
    }
}

#[test]
fn progress_adds_up_to_the_whole() {
    let heard = Heard::default();
    Checkpoint::open_local(&source("llama-bf16-sharded")).unwrap().load(&options(), &heard).unwrap();
    assert!(*heard.total.lock().unwrap() > 100_000);
    assert_eq!(*heard.total.lock().unwrap(), *heard.done.lock().unwrap());
    assert_eq!(*heard.finished.lock().unwrap(), 1);
}

#[test]
fn weights_in_memory_are_weights_like_mapped_ones() {
    let path = testdata("tiny-llama/model.safetensors");
    let mapped = SafetensorsWeights::from_files("mapped".into(), vec![FileBytes::open(&path).unwrap()]).unwrap();
    let bytes = FileBytes::from_memory("in memory", fs::read(&path).unwrap());
    let memory = SafetensorsWeights::from_files("memory".into(), vec![bytes]).unwrap();
    assert_eq!(mapped.names(), memory.names());
    for name in mapped.names() {
        let header = mapped.header(&name).unwrap();
        assert_eq!(Some(&header), memory.header(&name).as_ref());
        mapped.require(&name, &header.shape).unwrap();
        let whole = mapped.read(&name, Shard::Whole).unwrap();
        assert!(*whole == *memory.read(&name, Shard::Whole).unwrap());
        let halves = [0, 1].map(|index| memory.read(&name, Shard::Rows { index, count: 2 }).unwrap().to_vec());
        assert!(*whole == *halves.concat());
    }
}

#[test]
fn an_empty_step_and_a_step_without_outputs_are_fine() {
    use millgate_models::{Batch, SequenceSpan};
    let mut rig = Rig::open("tiny-llama");
    assert!(rig.model.forward(&Batch::default()).unwrap().is_empty());
    let span = SequenceSpan { query_start: 0, query_len: 2, context_len: 2, table_start: 0, table_len: 1 };
    let batch = Batch {
        tokens: vec![5, 6],
        positions: vec![0, 1],
        slots: vec![0, 1],
        sequences: vec![span],
        tables: vec![0],
        output_rows: vec![],
    };
    assert!(rig.model.forward(&batch).unwrap().is_empty());
}
