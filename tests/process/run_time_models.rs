//! What only a process of its own can show: that an unloaded model gives its memory back to the system.

use std::fs;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

use super::server::ServerProcess;

const HIDDEN: u64 = 512;
const FEED_FORWARD: u64 = 4096;
const LAYERS: u64 = 8;
/// Weights of the model, nearly all of it in its feed-forward matrices.
const WEIGHT_BYTES: u64 = LAYERS * 3 * HIDDEN * FEED_FORWARD * 2;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unloaded_model_gives_its_memory_back() {
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("models").join("wide");
    write_wide_model(&model);
    let config = folder.path().join("millgate.toml");
    let text =
        format!("[server]\nmodel_folders = [{:?}]\n[memory]\nkv_cache = \"16MiB\"\n", folder.path().join("models"));
    fs::write(&config, text).unwrap();
    let server = ServerProcess::start(folder.path(), &["--config", config.to_str().unwrap()]).await;
    let empty = server.resident_bytes();
    let body = json!({"name": "wide", "source": model.display().to_string(), "tiers": "all"});
    let made = server.post("/admin/v1/models", &body).send().await.unwrap();
    assert_eq!(made.status(), 201);
    for round in 0..3 {
        wait_for(&server, "ready").await;
        let prompt = json!({"model": "wide", "prompt": "a", "max_tokens": 2, "ignore_eos": true});
        assert_eq!(server.post("/v1/completions", &prompt).send().await.unwrap().status(), 200);
        let loaded = server.resident_bytes();
        assert!(loaded > empty + WEIGHT_BYTES * 9 / 10, "round {round}: {empty} then {loaded}");
        server.post("/admin/v1/models/wide/unload", &json!({})).send().await.unwrap();
        wait_for(&server, "unloaded").await;
        let last = server.resident_bytes();
        assert!(last < empty + WEIGHT_BYTES / 5, "round {round}: {empty}, {loaded} loaded, {last} afterwards");
        server.post("/admin/v1/models/wide/load", &json!({})).send().await.unwrap();
    }
}

async fn wait_for(server: &ServerProcess, phase: &str) {
    for _ in 0..6000 {
        let reply = server.get("/admin/v1/models/wide").send().await.unwrap();
        let model: Value = reply.json().await.unwrap();
        assert_ne!(model["phase"], "failed", "{model}");
        if model["phase"].as_str().unwrap_or(model["status"].as_str().unwrap()) == phase {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("`wide` never came to {phase}");
}

/// A llama of zeros, wide enough to be seen in the memory of the process; the file itself is sparse.
fn write_wide_model(folder: &Path) {
    fs::create_dir_all(folder).unwrap();
    let tiny = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/testdata/tiny-llama");
    for name in ["tokenizer.json", "tokenizer_config.json", "generation_config.json"] {
        fs::copy(tiny.join(name), folder.join(name)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&fs::read(tiny.join("config.json")).unwrap()).unwrap();
    for (key, value) in [
        ("hidden_size", HIDDEN),
        ("intermediate_size", FEED_FORWARD),
        ("num_hidden_layers", LAYERS),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("head_dim", HIDDEN / 4),
    ] {
        config[key] = json!(value);
    }
    fs::write(folder.join("config.json"), config.to_string()).unwrap();
    let vocabulary = config["vocab_size"].as_u64().unwrap();
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![vocabulary, HIDDEN]),
        ("lm_head.weight".to_owned(), vec![vocabulary, HIDDEN]),
        ("model.norm.weight".to_owned(), vec![HIDDEN]),
    ];
    for layer in 0..LAYERS {
        let mut add = |name: &str, shape: &[u64]| {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape.to_vec()));
        };
        add("self_attn.q_proj", &[HIDDEN, HIDDEN]);
        add("self_attn.k_proj", &[HIDDEN / 2, HIDDEN]);
        add("self_attn.v_proj", &[HIDDEN / 2, HIDDEN]);
        add("self_attn.o_proj", &[HIDDEN, HIDDEN]);
        add("mlp.gate_proj", &[FEED_FORWARD, HIDDEN]);
        add("mlp.up_proj", &[FEED_FORWARD, HIDDEN]);
        add("mlp.down_proj", &[HIDDEN, FEED_FORWARD]);
        add("input_layernorm", &[HIDDEN]);
        add("post_attention_layernorm", &[HIDDEN]);
    }
    let mut header = serde_json::Map::new();
    let mut end = 0;
    for (name, shape) in tensors {
        let start = end;
        end += shape.iter().product::<u64>() * 2;
        header.insert(name, json!({"dtype": "BF16", "shape": shape, "data_offsets": [start, end]}));
    }
    let header = Value::Object(header).to_string();
    let path = folder.join("model.safetensors");
    let start = [&(header.len() as u64).to_le_bytes()[..], header.as_bytes()].concat();
    fs::write(&path, &start).unwrap();
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(start.len() as u64 + end).unwrap();
}
