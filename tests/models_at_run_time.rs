//! Models that come and go while the server runs: the whole program in this process, real checkpoints, real files.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::future::ready;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use millgate::app::Served;
use millgate::config::{Environment, Overrides, resolve};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::support::{Actor, Reply};

const ADMIN_KEY: &str = "bootstrap-secret-only-for-tests";
/// Longest wait for something that happens on another thread; a loaded machine may need most of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// The program, with the bundled model as `demo` and `models/testdata` open for administrators.
struct Program {
    served: Served,
    admin: Actor,
}

/// A data directory that programs run on, one after another.
struct Place {
    data: TempDir,
    drain_timeout: &'static str,
    more: String,
}

fn testdata() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("models/testdata")
}

fn source(name: &str) -> String {
    testdata().join(name).display().to_string()
}

impl Place {
    fn new() -> Self {
        Self { data: tempfile::tempdir().unwrap(), drain_timeout: "30s", more: String::new() }
    }

    async fn start(&self) -> Program {
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\ndrain_timeout = \"{}\"\nmodel_folders = [{:?}, {:?}]\n\
             [memory]\nlimit = \"1GiB\"\nkv_cache = \"16MiB\"\n[cpu]\nthreads = 1\n{}",
            self.drain_timeout,
            testdata(),
            self.data.path(),
            self.more,
        );
        let environment = Environment { admin_key: Some(ADMIN_KEY.into()), ..Environment::default() };
        let overrides = Overrides { data_dir: Some(self.data.path().join("data")), ..Overrides::default() };
        let settings = resolve(toml::from_str(&text).unwrap(), &text, &environment, &overrides).unwrap();
        let served = Served::start(&settings, Arc::new(millgate_models::Silent), &|_| {}).await.unwrap();
        let admin = Actor::new(served.summary().listen, Some(ADMIN_KEY.to_owned()));
        Program { served, admin }
    }
}

impl Program {
    async fn stop(self) {
        self.served.run_until(ready(())).await.unwrap();
    }

    async fn model(&self, name: &str) -> Value {
        self.admin.get(&format!("/admin/v1/models/{name}")).await.json()
    }

    /// Waits until the model is in that phase; a ready one has none.
    async fn until(&self, name: &str, phase: &str) -> Value {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let model = self.model(name).await;
            if model["phase"].as_str().unwrap_or(model["status"].as_str().unwrap()) == phase {
                return model;
            }
            assert!(tokio::time::Instant::now() < deadline, "`{name}` never came to {phase}: {model}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn create(&self, name: &str, body: Value) -> Reply {
        let mut whole = json!({"name": name, "env": {"kv_memory": "8MiB"}});
        whole.as_object_mut().unwrap().extend(body.as_object().unwrap().clone());
        self.admin.post("/admin/v1/models", &whole).await
    }

    async fn order(&self, name: &str, what: &str) -> Reply {
        self.admin.send("POST", &format!("/admin/v1/models/{name}/{what}")).await
    }

    async fn ask(&self, who: &Actor, model: &str) -> Reply {
        who.chat_with("Hello", json!({"model": model, "max_tokens": 4, "ignore_eos": true})).await
    }

    /// A member of the free tier.
    async fn member(&self) -> Actor {
        self.admin.post("/admin/v1/users", &json!({"name": "ann"})).await;
        let made = self.admin.post("/admin/v1/api-keys", &json!({"user": "ann", "name": "test"})).await;
        self.admin.with_key(made.json()["key"].as_str().unwrap())
    }
}

/// Engine threads of this process that serve a model of that name; the system keeps 15 letters of a thread's name.
fn engine_threads(model: &str) -> usize {
    let wanted: String = format!("engine {model}").chars().take(15).collect();
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok());
    names.filter(|name| name.trim_end() == wanted).count()
}

/// Waits until so many threads serve the model: a thread takes its name only when it first runs, and leaves the
/// system's list a moment after it was joined.
async fn engine_threads_become(wanted: usize, model: &str) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while engine_threads(model) != wanted {
        assert!(tokio::time::Instant::now() < deadline, "{} threads serve `{model}`", engine_threads(model));
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_is_created_published_unloaded_loaded_and_outlives_a_restart() {
    let place = Place::new();
    let program = place.start().await;
    let member = program.member().await;
    let made = program.create("journey", json!({"source": source("qwen3"), "display_name": "Journey"})).await;
    assert_eq!(made.status, 201, "{}", made.body);
    let view = made.json();
    assert_eq!((&view["published"], &view["tiers"], &view["origin"]), (&json!(false), &json!([]), &json!("api")));
    assert_eq!(view["env"], json!({"kv_memory": "8MiB"}));
    program.until("journey", "ready").await;
    engine_threads_become(1, "journey").await;
    assert_eq!(program.ask(&member, "journey").await.status, 403, "published to nobody");
    let published = program.admin.put("/admin/v1/models/journey", &json!({"tiers": ["free"]})).await.json();
    assert_eq!((&published["status"], &published["reload_required"]), (&json!("ready"), &json!(false)));
    assert_eq!(program.ask(&member, "journey").await.status, 200, "without a reload");
    let generated = "vllm:generation_tokens_total{engine=\"0\",model_name=\"journey\"} ";
    let page = program.admin.get("/metrics").await.body;
    assert!(page.contains(&format!("{generated}4\n")), "{page}");
    let card = member.get("/v1/models/journey").await.json();
    assert_eq!((&card["ready"], &card["context_window"]), (&json!(true), &json!(512)));

    assert!([200, 202].contains(&program.order("journey", "unload").await.status));
    program.until("journey", "unloaded").await;
    engine_threads_become(0, "journey").await;
    let refused = program.ask(&member, "journey").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "60"), "{}", refused.body);
    assert_eq!(member.get("/v1/models/journey").await.json()["ready"], false);
    assert_eq!(program.admin.get("/readyz").await.status, 200);
    assert_eq!(program.order("journey", "unload").await.status, 200, "nothing is left to do");

    assert_eq!(program.order("journey", "load").await.status, 202);
    program.until("journey", "ready").await;
    assert_eq!(program.order("journey", "load").await.status, 200, "it is loaded already");
    assert_eq!(program.ask(&member, "journey").await.status, 200);
    let page = program.admin.get("/metrics").await.body;
    assert!(page.contains(&format!("{generated}8\n")), "a reload sets no counter back: {page}");
    program.stop().await;
    engine_threads_become(0, "journey").await;

    let program = place.start().await;
    program.until("journey", "ready").await;
    assert_eq!(program.ask(&member_of(&program, &member), "journey").await.status, 200, "tiers are kept too");
    let card_again = member_of(&program, &member).get("/v1/models/journey").await.json();
    assert_eq!(card_again["created"], card["created"], "a restart makes no model younger");
    program.order("journey", "unload").await;
    program.until("journey", "unloaded").await;
    program.stop().await;

    let program = place.start().await;
    assert_eq!(program.model("journey").await["phase"], "unloaded", "who unloaded it meant it");
    let deleted = program.admin.delete("/admin/v1/models/journey").await;
    assert_eq!((deleted.status, &deleted.json()["deleted"]), (200, &json!(true)));
    assert_eq!(program.ask(&program.admin, "journey").await.status, 404);
    assert_eq!(program.admin.get("/admin/v1/models/journey").await.status, 404);
    assert_eq!(program.admin.delete("/admin/v1/models/journey").await.status, 404);
    program.stop().await;
    let program = place.start().await;
    assert_eq!(program.admin.get("/admin/v1/models/journey").await.status, 404);
    program.stop().await;
}

/// The same caller, at the program that runs now.
fn member_of(program: &Program, member: &Actor) -> Actor {
    program.admin.with_key(member.key.as_deref().unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn loads_of_one_model_at_the_same_time_are_one() {
    let place = Place::new();
    let program = place.start().await;
    let made = program.create("eightfold", json!({"source": "builtin:demo", "tiers": "all"})).await;
    assert_eq!((made.status, &made.json()["tiers"]), (201, &json!("all")), "{}", made.body);
    let loads = futures::future::join_all((0..8).map(|_| program.order("eightfold", "load"))).await;
    for load in loads {
        assert!([200, 202].contains(&load.status), "{}", load.body);
    }
    program.until("eightfold", "ready").await;
    engine_threads_become(1, "eightfold").await;
    let again = program.create("eightfold", json!({"source": "builtin:demo"})).await;
    assert_eq!(again.status, 409, "{}", again.body);
    let (unload, load) = tokio::join!(program.order("eightfold", "unload"), program.order("eightfold", "load"));
    assert!(unload.status < 300 && load.status < 300);
    program.order("eightfold", "load").await;
    program.until("eightfold", "ready").await;
    // Whatever the order was, the last word counts.
    engine_threads_become(1, "eightfold").await;
    program.stop().await;
    engine_threads_become(0, "eightfold").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_cannot_be_loaded_keeps_the_reason_and_can_be_mended() {
    let place = Place::new();
    let broken = place.data.path().join("broken");
    std::fs::create_dir(&broken).unwrap();
    for entry in std::fs::read_dir(testdata().join("qwen3")).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, broken.join(path.file_name().unwrap())).unwrap();
    }
    let weights = broken.join("model.safetensors");
    let whole = std::fs::read(&weights).unwrap();
    std::fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    let program = place.start().await;
    program.create("mended", json!({"source": broken.display().to_string(), "tiers": "all"})).await;
    let failed = program.until("mended", "failed").await;
    assert_eq!(failed["status"], "not_ready");
    assert!(failed["reason"].as_str().unwrap().contains("model.safetensors"), "{failed}");
    let refused = program.ask(&program.admin, "mended").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, "60"));
    assert!(!refused.body.contains("safetensors"), "clients need not know our files: {}", refused.body);
    assert_eq!(program.ask(&program.admin, "demo").await.status, 200, "the others go on");

    std::fs::write(&weights, whole).unwrap();
    assert_eq!(program.order("mended", "load").await.status, 202);
    program.until("mended", "ready").await;
    let missing = source("no-such-model");
    let changed = program.admin.put("/admin/v1/models/mended", &json!({"source": missing, "env": {}})).await.json();
    assert_eq!((&changed["reload_required"], &changed["status"]), (&json!(true), &json!("ready")), "{changed}");
    assert_eq!(program.ask(&program.admin, "mended").await.status, 200, "it answers as before until it is loaded");
    assert_eq!(program.order("mended", "load").await.status, 202);
    let failed = program.until("mended", "failed").await;
    assert!(failed["reason"].as_str().unwrap().contains("no-such-model"), "{failed}");
    assert_eq!((&failed["env"], &failed["reload_required"]), (&json!({}), &json!(false)));
    let back = program.admin.put("/admin/v1/models/mended", &json!({"source": source("llama3-rope")})).await;
    assert_eq!(back.json()["phase"], "failed", "a change loads nothing by itself");
    program.order("mended", "load").await;
    program.until("mended", "ready").await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_does_not_fit_beside_the_others_is_refused_with_the_figures() {
    let place = Place::new();
    let program = place.start().await;
    let demo = program.model("demo").await;
    let huge = json!({"source": "builtin:demo", "env": {"kv_memory": "64GiB"}});
    assert_eq!(program.create("huge", huge).await.status, 201);
    let failed = program.until("huge", "failed").await;
    let reason = failed["reason"].as_str().unwrap();
    for part in ["`huge` needs at least 64", "GiB", "of 1.00 GiB are left", "loaded: `demo`", "kv_memory"] {
        assert!(reason.contains(part), "no `{part}` in: {reason}");
    }
    assert_eq!(program.model("demo").await, demo, "the model that was there keeps its share");
    let smaller = program.admin.put("/admin/v1/models/huge", &json!({"env": {"kv_memory": "8MiB"}})).await;
    assert_eq!(smaller.status, 200, "{}", smaller.body);
    program.order("huge", "load").await;
    program.until("huge", "ready").await;
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_wishes_for_a_model_name_the_field_and_members_may_nothing() {
    let place = Place::new();
    let program = place.start().await;
    for (body, param) in [
        (json!({"source": "builtin:demo"}), "name"),
        (json!({"name": "m"}), "source"),
        (json!({"name": "a/b", "source": "builtin:demo"}), "name"),
        (json!({"name": "m", "source": "builtin:other"}), "source"),
        (json!({"name": "m", "source": "hf:gpt2"}), "source"),
        (json!({"name": "m", "source": "/etc"}), "source"),
        (json!({"name": "m", "source": "models/testdata/qwen3"}), "source"),
        (json!({"name": "m", "source": format!("{}/../demo", testdata().display())}), "source"),
        (json!({"name": "m", "source": "builtin:demo", "hardware": "tpu"}), "hardware"),
        (json!({"name": "m", "source": "builtin:demo", "env": {"PATH": "/"}}), "env.PATH"),
        (json!({"name": "m", "source": "builtin:demo", "env": {"kv_memory": "lots"}}), "env.kv_memory"),
        (json!({"name": "m", "source": "builtin:demo", "tiers": ["nowhere"]}), "tiers"),
        (json!({"name": "m", "source": "builtin:demo", "tires": "all"}), "tires"),
    ] {
        let reply = program.admin.post("/admin/v1/models", &body).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)), "{}", reply.body);
    }
    assert_eq!(program.admin.get("/admin/v1/models/m").await.status, 404, "nothing of it stays");
    let member = program.member().await;
    for (method, path) in [
        ("POST", "/admin/v1/models"),
        ("DELETE", "/admin/v1/models/demo"),
        ("POST", "/admin/v1/models/demo/load"),
        ("POST", "/admin/v1/models/demo/unload"),
    ] {
        let reply = member.send_json(method, path, &json!({"name": "m", "source": "builtin:demo"})).await;
        assert_eq!(reply.status, 403, "{method} {path}");
    }
    assert_eq!(program.ask(&member, "demo").await.status, 200);
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_configured_model_may_rest_but_only_its_configuration_removes_it() {
    let place = Place::new();
    let program = place.start().await;
    for reply in [
        program.admin.delete("/admin/v1/models/demo").await,
        program.admin.put("/admin/v1/models/demo", &json!({"source": "hf:other/model"})).await,
        program.admin.put("/admin/v1/models/demo", &json!({"env": {"context_window": 64}})).await,
    ] {
        assert_eq!(reply.status, 409, "{}", reply.body);
        assert!(reply.message().contains("comes from the default configuration"), "{}", reply.body);
    }
    program.order("demo", "unload").await;
    program.until("demo", "unloaded").await;
    assert_eq!(program.admin.get("/readyz").await.status, 200, "the server itself is well");
    assert_eq!(program.ask(&program.admin, "demo").await.status, 503);
    program.order("demo", "load").await;
    program.until("demo", "ready").await;
    assert_eq!(program.ask(&program.admin, "demo").await.status, 200);
    program.order("demo", "unload").await;
    program.stop().await;
    let program = place.start().await;
    assert_eq!(program.model("demo").await["status"], "ready", "the configuration serves it at every start");
    program.stop().await;
}

async fn long_stream(program: &Program) -> reqwest::Response {
    let fields = json!({"model": "busy", "max_tokens": 400, "ignore_eos": true});
    let mut stream = program.admin.chat_stream("Tell me a story.", fields).await;
    assert_eq!(stream.status(), 200);
    stream.chunk().await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_runs_while_its_model_is_unloaded_or_deleted_is_finished() {
    let place = Place::new();
    let program = place.start().await;
    program.create("busy", json!({"source": "builtin:demo", "tiers": "all"})).await;
    program.until("busy", "ready").await;
    for is_deleted in [false, true] {
        let stream = long_stream(&program).await;
        if is_deleted {
            assert_eq!(program.admin.delete("/admin/v1/models/busy").await.status, 200);
            assert_eq!(program.ask(&program.admin, "busy").await.status, 404, "forgotten at once");
        } else {
            program.order("busy", "unload").await;
            assert_eq!(program.ask(&program.admin, "busy").await.status, 503, "nothing new is taken");
        }
        let rest = Reply::read(stream).await;
        assert!(rest.body.contains("\"finish_reason\":\"length\""), "{}", rest.body);
        assert!(rest.body.ends_with("data: [DONE]\n\n"), "{}", rest.body);
        if !is_deleted {
            program.until("busy", "unloaded").await;
            program.order("busy", "load").await;
            program.until("busy", "ready").await;
        }
    }
    program.stop().await;
    engine_threads_become(0, "busy").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_outlasts_the_drain_time_ends_with_an_error_and_the_memory_is_free() {
    let more = "[engine]\npark_timeout = \"30m\"\n".to_owned();
    let place = Place { drain_timeout: "1ms", more, ..Place::new() };
    let program = place.start().await;
    program.create("busy", json!({"source": "builtin:demo", "tiers": "all"})).await;
    program.until("busy", "ready").await;
    // Its limit is used up before the answer is, and frees in ten minutes: until then the stream stands still.
    let tight = json!({"limits": ["20 completion_tokens / 10m"]});
    assert_eq!(program.admin.put("/admin/v1/tiers/free", &tight).await.status, 200);
    let fields = json!({"model": "busy", "ignore_eos": true});
    let mut stream = program.member().await.chat_stream("Tell me a story.", fields).await;
    assert_eq!(stream.status(), 200);
    stream.chunk().await.unwrap();
    program.order("busy", "unload").await;
    let rest = Reply::read(stream).await;
    assert!(rest.body.contains("unavailable_error"), "{}", rest.body);
    assert!(rest.body.ends_with("data: [DONE]\n\n"), "{}", rest.body);
    program.until("busy", "unloaded").await;
    program.order("busy", "load").await;
    program.until("busy", "ready").await;
    assert_eq!(program.ask(&program.admin, "busy").await.status, 200);
    program.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_stops_in_the_middle_of_loads_and_finishes_them_at_the_next_start() {
    let place = Place::new();
    let program = place.start().await;
    for number in 0..6 {
        let made = program.create(&format!("late-{number}"), json!({"source": "builtin:demo"})).await;
        assert_eq!(made.status, 201, "{}", made.body);
    }
    tokio::time::timeout(Duration::from_secs(60), program.stop()).await.expect("loads do not hold up the end");
    for number in 0..6 {
        engine_threads_become(0, &format!("late-{number}")).await;
    }
    let program = place.start().await;
    for number in 0..6 {
        program.until(&format!("late-{number}"), "ready").await;
    }
    program.stop().await;
}
