//! Broken and hostile model files: each is named with what is wrong, and the models beside them are served.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::server::{ServerProcess, chat_body, failed_start};

/// One way to break a good checkpoint, and what the error must name.
struct Breakage {
    name: &'static str,
    break_it: fn(&Path),
    named: &'static str,
}

const BREAKAGES: [Breakage; 9] = [
    Breakage { name: "cut-weights", break_it: |folder| cut(folder, "model.safetensors"), named: "model.safetensors" },
    Breakage {
        name: "huge-header",
        break_it: |folder| overwrite_start(folder, "model.safetensors", &u64::MAX.to_le_bytes()),
        named: "model.safetensors",
    },
    Breakage {
        name: "garbage-header",
        break_it: |folder| overwrite_start(folder, "model.safetensors", &[0x7f; 64]),
        named: "model.safetensors",
    },
    Breakage { name: "cut-config", break_it: |folder| cut(folder, "config.json"), named: "config.json" },
    Breakage {
        name: "no-heads",
        break_it: |folder| edit(folder, "config.json", |config| config["num_attention_heads"] = json!(0)),
        named: "num_attention_heads",
    },
    Breakage {
        name: "absurd-sizes",
        break_it: |folder| edit(folder, "config.json", |config| config["hidden_size"] = json!(1u64 << 62)),
        named: "hidden_size",
    },
    Breakage {
        name: "unknown-family",
        break_it: |folder| {
            edit(folder, "config.json", |config| {
                config["architectures"] = json!(["UnheardOfForCausalLM"]);
                config["model_type"] = json!("unheard_of");
            });
        },
        named: "unheard_of",
    },
    Breakage { name: "cut-tokenizer", break_it: |folder| cut(folder, "tokenizer.json"), named: "tokenizer.json" },
    Breakage {
        name: "no-tokenizer",
        break_it: |folder| fs::remove_file(folder.join("tokenizer.json")).unwrap(),
        named: "tokenizer.json",
    },
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn broken_models_are_named_and_the_good_one_beside_them_is_served() {
    let folder = tempfile::tempdir().unwrap();
    let mut arguments = vec!["--model".to_owned(), "demo=builtin:demo".to_owned()];
    for breakage in &BREAKAGES {
        let broken = copy_of_the_demo(folder.path(), breakage.name);
        (breakage.break_it)(&broken);
        arguments.extend(["--model".to_owned(), format!("{}={}", breakage.name, broken.display())]);
    }
    for (name, bytes) in hostile_ggufs() {
        let file = folder.path().join(format!("{name}.gguf"));
        fs::write(&file, bytes).unwrap();
        arguments.extend(["--model".to_owned(), format!("{name}={}", file.display())]);
    }
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let server = ServerProcess::start(folder.path(), &arguments).await;

    assert_eq!(server.chat(&chat_body("Hello!", 1)).await.body["object"], "chat.completion");
    let listed: Value = server.get("/admin/v1/models").send().await.unwrap().json().await.unwrap();
    for breakage in &BREAKAGES {
        let reason = reason_of(&listed, breakage.name);
        assert!(reason.contains(breakage.named), "{}: {reason}", breakage.name);
    }
    for (name, _) in hostile_ggufs() {
        assert!(reason_of(&listed, name).contains(&format!("{name}.gguf")), "{name}: {listed}");
    }
    let refused = server.post("/v1/chat/completions", &json!({"model": "cut-weights", "messages": []}));
    let status = refused.send().await.unwrap().status();
    assert!(status == 400 || status == 503, "{status}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_without_any_usable_model_says_why_and_ends() {
    let folder = tempfile::tempdir().unwrap();
    let (status, output) = failed_start(folder.path(), &["--model", "gone=/nonexistent/model"]);
    assert!(!status.success());
    assert!(output.contains("/nonexistent/model"), "{output}");
    assert!(!output.contains("panicked"), "{output}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_template_that_never_ends_is_an_error_of_that_request() {
    let folder = tempfile::tempdir().unwrap();
    let looping = copy_of_the_demo(folder.path(), "looping");
    let template = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}";
    edit(&looping, "tokenizer_config.json", |config| config["chat_template"] = json!(template));
    let _ = fs::remove_file(looping.join("chat_template.jinja"));
    let looping = format!("looping={}", looping.display());
    let server = ServerProcess::start(folder.path(), &["--model", &looping, "--model", "demo=builtin:demo"]).await;
    let body = json!({"model": "looping", "messages": [{"role": "user", "content": "Hi"}]});
    let reply = server.post("/v1/chat/completions", &body).send().await.unwrap();
    assert!(reply.status().is_client_error() || reply.status().is_server_error(), "{}", reply.status());
    assert_eq!(server.chat(&chat_body("Hello!", 1)).await.body["object"], "chat.completion");
}

fn reason_of(listed: &Value, name: &str) -> String {
    let models = listed["data"].as_array().expect("a list");
    let model = models.iter().find(|model| model["name"] == name).unwrap_or_else(|| panic!("`{name}` in {listed}"));
    assert_eq!(model["status"], "not_ready", "{name}");
    model["reason"].as_str().unwrap_or_default().to_owned()
}

fn copy_of_the_demo(parent: &Path, name: &str) -> PathBuf {
    let target = parent.join(name);
    fs::create_dir(&target).unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo");
    for entry in fs::read_dir(demo).unwrap() {
        let path = entry.unwrap().path();
        if path.is_file() {
            fs::copy(&path, target.join(path.file_name().unwrap())).unwrap();
        }
    }
    target
}

fn cut(folder: &Path, file: &str) {
    let bytes = fs::read(folder.join(file)).unwrap();
    fs::write(folder.join(file), &bytes[..bytes.len() / 2]).unwrap();
}

fn overwrite_start(folder: &Path, file: &str, with: &[u8]) {
    let mut bytes = fs::read(folder.join(file)).unwrap();
    bytes[..with.len()].copy_from_slice(with);
    fs::write(folder.join(file), bytes).unwrap();
}

fn edit(folder: &Path, file: &str, change: impl FnOnce(&mut Value)) {
    let path = folder.join(file);
    let mut json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    fs::write(path, json.to_string()).unwrap();
}

fn hostile_ggufs() -> Vec<(&'static str, Vec<u8>)> {
    let header = |tensors: u64, keys: u64| {
        let mut bytes = b"GGUF".to_vec();
        bytes.extend(3u32.to_le_bytes());
        bytes.extend(tensors.to_le_bytes());
        bytes.extend(keys.to_le_bytes());
        bytes
    };
    let mut long_key = header(0, 1);
    long_key.extend(u64::MAX.to_le_bytes());
    let mut long_array = header(0, 1);
    long_array.extend(1u64.to_le_bytes());
    long_array.push(b'k');
    long_array.extend(9u32.to_le_bytes());
    long_array.extend(4u32.to_le_bytes());
    long_array.extend((1u64 << 61).to_le_bytes());
    vec![
        ("empty", Vec::new()),
        ("only-magic", b"GGUF".to_vec()),
        ("countless-tensors", header(u64::MAX, 0)),
        ("long-key", long_key),
        ("long-array", long_array),
    ]
}
