//! Where models compute: GPUs that are missing, too old, too small, shared, or filled by others while a model loads.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::future::ready;
use std::path::Path;
use std::process::Command;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use millgate::app::Served;
use millgate::config::{Environment, Overrides, resolve};
use millgate::telemetry;
use millgate_kernels::cuda::{Buffer, DeviceMemory, Gpu};
use millgate_models::{Checkpoint, Device, DeviceChoice, GpuReserve, KvDtypeChoice, LoadOptions, Progress, Silent};
use serde_json::{Value, json};

use crate::cuda::has_gpu;
use crate::engine::testdata;
use crate::support::Actor;

const ADMIN_KEY: &str = "bootstrap-secret-only-for-tests";
/// Longest wait for a model that is loaded at run time; a loaded machine may need most of it.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server with these settings, and its administrator.
async fn serve(settings: &str, data: &Path, progress: Arc<dyn Progress>) -> (Served, Actor) {
    let folders = testdata("qwen3").parent().unwrap().to_owned();
    let text =
        format!("[server]\nlisten = \"127.0.0.1:0\"\nmodel_folders = [{folders:?}]\n[cpu]\nthreads = 1\n{settings}");
    let environment = Environment { admin_key: Some(ADMIN_KEY.into()), ..Environment::default() };
    let overrides = Overrides { data_dir: Some(data.join("data")), ..Overrides::default() };
    let settings = resolve(toml::from_str(&text).unwrap(), &text, &environment, &overrides).unwrap();
    let served = Served::start(&settings, progress, &|_| {}).await.unwrap();
    let admin = Actor::new(served.summary().listen, Some(ADMIN_KEY.into()));
    (served, admin)
}

async fn must_answer(admin: &Actor, model: &str) {
    let reply = admin.chat_with("Hello", json!({"model": model, "max_tokens": 4, "ignore_eos": true})).await;
    assert_eq!(reply.status, 200, "{model}: {}", reply.body);
}

/// Waits until a model is in that phase; a ready one has none.
async fn until(admin: &Actor, name: &str, phase: &str) -> Value {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let model = admin.get(&format!("/admin/v1/models/{name}")).await.json();
        if model["phase"].as_str().unwrap_or(model["status"].as_str().unwrap()) == phase {
            return model;
        }
        assert!(tokio::time::Instant::now() < deadline, "`{name}` never came to {phase}: {model}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Where each model computes, in the order of their names.
async fn devices(admin: &Actor) -> Vec<String> {
    let health = admin.get("/health/details").await.json();
    let line = |model: &Value| {
        format!("{} {}", model["name"].as_str().unwrap(), model["device"].as_str().unwrap_or("nowhere"))
    };
    let mut lines: Vec<_> = health["models"].as_array().unwrap().iter().map(line).collect();
    lines.sort();
    lines
}

fn say(text: &str) {
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
    {
        eprintln!("{text}");
    }
}

fn is_emulated() -> bool {
    let chosen = DeviceChoice::Cuda(0).choose();
    chosen.is_ok_and(|device| device.description.is_some_and(|name| name.contains("emulated")))
}

/// Runs an ignored test in a process of its own with these variables, those without a value taken away: what it said.
fn in_own_process(test: &str, variables: &[(&str, Option<&str>)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", &format!("cuda_devices::{test}"), "--ignored", "--nocapture"]);
    for (name, value) in variables {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let done = command.output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
    said
}

/// The same, with an emulated device of this much memory and nobody else on it. `None` where there is a real one or none.
fn alone(test: &str, device_mib: usize) -> Option<String> {
    if !has_gpu() {
        return None;
    }
    if !is_emulated() {
        say("not run: a real GPU has the memory that it has (`make check-cuda` runs it on an emulated one)");
        return None;
    }
    Some(in_own_process(test, &[("MILLGATE_EMULATED_GPU_BYTES", Some(&(device_mib << 20).to_string()))]))
}

#[test]
fn where_no_gpu_can_be_used_the_cpu_serves_and_one_line_says_why() {
    if DeviceChoice::Cuda(0).choose().is_ok() && !is_emulated() {
        say("not run: this machine has a GPU (`make check-cuda` runs it without)");
        return;
    }
    let check = |variable: &str, value: Option<&str>, why: &str| {
        let said = in_own_process("a_model_may_go_anywhere_and_one_must_go_to_a_gpu", &[(variable, value)]);
        let lines: Vec<_> = said.lines().filter(|line| line.contains("will compute on the CPU")).collect();
        let wanted = format!("model `anywhere` will compute on the CPU: {why}");
        assert!(lines.len() == 1 && lines[0].contains(&wanted), "no `{wanted}` in: {said}");
        let wanted = format!("cannot place model `gpu`: device `cuda:0` cannot be used: {why}");
        assert!(said.contains(&wanted), "no `{wanted}` in: {said}");
    };
    check(
        "LD_LIBRARY_PATH",
        None,
        "no NVIDIA GPU can be used: found none of libcuda.so, libcuda.so.13, libcuda.so.12, libcuda.so.11, \
         libcuda.so.10, libcuda.so.9, libcuda.so.1; NVIDIA's driver brings it",
    );
    if is_emulated() {
        let unusable = "no NVIDIA GPU can be used: the driver";
        check("MILLGATE_EMULATED_GPU_MISSING", Some("1"), &format!("{unusable} sees no device"));
        let old = format!("{unusable} is made for CUDA 12.4, 13.0 (driver 580) or later is needed");
        check("MILLGATE_EMULATED_DRIVER", Some("12040"), &old);
        let old = "`Millgate emulated device` has compute capability 7.5, the kernels need 8.0 or later";
        check("MILLGATE_EMULATED_CAPABILITY", Some("75"), old);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test above"]
async fn a_model_may_go_anywhere_and_one_must_go_to_a_gpu() {
    telemetry::init_logs(&telemetry::Config::default()).unwrap();
    let data = tempfile::tempdir().unwrap();
    let model = |name: &str, device: &str| {
        format!(
            "[[models]]\nname = \"{name}\"\nsource = \"builtin:demo\"\nkv_memory = \"8MiB\"\ndevice = \"{device}\"\n"
        )
    };
    let models = [model("anywhere", "auto"), model("gpu", "cuda:0")].concat();
    let (served, admin) = serve(&models, data.path(), Arc::new(Silent)).await;
    let outcomes: Vec<_> = served.summary().models.iter().map(|model| model.outcome.as_ref()).collect();
    assert_eq!((outcomes[0].unwrap().device.as_str(), outcomes[1].is_err()), ("cpu", true));
    must_answer(&admin, "anywhere").await;
    served.run_until(ready(())).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_tells_where_its_models_compute_and_refuses_a_device_that_is_not_there() {
    if !has_gpu() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let models = |device: &str| {
        let tiny = testdata("qwen3").display().to_string();
        format!(
            "[engine]\ndevice = \"{device}\"\nmax_running = 4\nstep_tokens = 64\n\
             [[models]]\nname = \"tiny\"\nsource = \"{tiny}\"\nkv_memory = \"1MiB\"\n\
             [[models]]\nname = \"host\"\nsource = \"builtin:demo\"\ndevice = \"cpu\"\nkv_memory = \"8MiB\"\n"
        )
    };
    let start = async |device: &str| serve(&models(device), data.path(), Arc::new(Silent)).await;
    let (served, admin) = start("cuda:0").await;
    let line = &served.summary().models[0];
    let facts = line.outcome.as_ref().unwrap();
    assert!(facts.device.starts_with("cuda:0: ") && facts.free_bytes.is_some(), "{facts:?}");
    assert_eq!(facts.kv_bytes, 1 << 20);
    assert_eq!(devices(&admin).await, ["host cpu", "tiny cuda:0"]);
    let page = admin.get("/metrics").await.body;
    assert!(page.contains("millgate_engine_device_info{model_name=\"tiny\",device=\"cuda:0\"} 1"), "{page}");
    must_answer(&admin, "tiny").await;
    served.run_until(ready(())).await.unwrap();

    let (served, _) = start("cuda:9").await;
    let reason = served.summary().models[0].outcome.as_ref().unwrap_err();
    assert!(reason.contains("device `cuda:9` cannot be used: there is no device `cuda:9`"), "{reason}");
    served.run_until(ready(())).await.unwrap();
}

/// Settings of two models on this device, with caches of this size if any.
fn two(device: &str, cache: &str) -> String {
    let model = |name: &str, from: &str| {
        let source = testdata(from).display().to_string();
        format!("[[models]]\nname = \"{name}\"\nsource = \"{source}\"\n{cache}\n")
    };
    let (first, second) = (model("first", "qwen3"), model("second", "tiny-llama"));
    format!("[engine]\ndevice = \"{device}\"\nstep_tokens = 256\n{first}{second}")
}

#[test]
fn a_model_that_the_first_one_leaves_no_room_for_goes_to_the_cpu_where_the_device_is_not_named() {
    alone("on_a_small_device_the_second_model_goes_to_the_cpu", 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test above"]
async fn on_a_small_device_the_second_model_goes_to_the_cpu() {
    let data = tempfile::tempdir().unwrap();
    let settings = two("auto", "kv_memory = \"1MiB\"");
    let (served, admin) = serve(&settings, data.path(), Arc::new(Silent)).await;
    let devices = served.summary().models.iter().map(|model| model.outcome.as_ref().unwrap().device.as_str());
    assert_eq!(devices.collect::<Vec<_>>(), ["cuda:0: Millgate emulated device, 64.00 MiB", "cpu"]);
    for model in ["first", "second"] {
        must_answer(&admin, model).await;
    }
    served.run_until(ready(())).await.unwrap();
}

#[test]
fn a_model_that_the_first_one_leaves_no_room_for_is_refused_with_figures_where_the_device_is_named() {
    alone("on_a_small_device_that_is_named_the_second_model_is_refused", 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test above"]
async fn on_a_small_device_that_is_named_the_second_model_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let settings = two("cuda:0", "kv_memory = \"1MiB\"");
    let (served, _) = serve(&settings, data.path(), Arc::new(Silent)).await;
    assert!(served.summary().models[0].outcome.is_ok());
    let reason = served.summary().models[1].outcome.clone().unwrap_err();
    assert!(free_in(&reason) < 64.0, "{reason}");
    served.run_until(ready(())).await.unwrap();
}

/// The free memory, in MiB, that a refusal tells, whose figures must add up and whose advice must fit.
#[track_caller]
fn free_in(reason: &str) -> f64 {
    let words = || reason.split(' ');
    let mib: Vec<f64> = words()
        .zip(words().skip(1))
        .filter_map(|(number, unit)| {
            let scale = [("B", 1.0 / f64::from(1 << 20)), ("KiB", 1.0 / 1024.0), ("MiB", 1.0)]
                .into_iter()
                .find(|(name, _)| unit.starts_with(name))?
                .1;
            Some(number.parse::<f64>().ok()? * scale)
        })
        .collect();
    let [free, need, weights, activations, cache, spare, more_weights, more_cache] = mib[..] else {
        panic!("{reason}")
    };
    assert!(reason.contains("`cuda:0` has ") && need > free, "{reason}");
    assert!((need - (weights + activations + cache + spare)).abs() < 0.1, "{reason}");
    assert!(more_weights < weights && more_cache < cache, "what would fit is less than what does not: {reason}");
    free
}

/// Somebody who takes nearly all that is left of the device once weights are being read.
#[derive(Default)]
struct Rival(Mutex<Option<Buffer<u8>>>);

impl Progress for Rival {
    fn stage(&self, _: &str, _: u64) {}

    fn advance(&self, _: u64) {
        self.0.lock().unwrap().get_or_insert_with(|| {
            let gpu = Gpu::open(0).unwrap();
            gpu.alloc(gpu.memory().unwrap().free_bytes - (1 << 20)).unwrap()
        });
    }

    fn finish(&self) {}
}

#[test]
fn memory_that_ends_in_the_middle_of_a_load_is_refused_with_figures_and_leaves_nothing_behind() {
    alone("a_model_whose_memory_is_taken_while_it_loads_is_refused_and_can_be_loaded_later", 160);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test above"]
async fn a_model_whose_memory_is_taken_while_it_loads_is_refused_and_can_be_loaded_later() {
    let (data, rival) = (tempfile::tempdir().unwrap(), Arc::new(Rival::default()));
    let models = two("cuda:0", "kv_memory = \"1MiB\"").replace("second\"", "second\"\ndevice = \"cpu\"");
    let (served, admin) = serve(&models, data.path(), Arc::clone(&rival) as _).await;
    let reason = served.summary().models[0].outcome.clone().unwrap_err();
    assert!(reason.starts_with("cannot load model `first`: "), "{reason}");
    let free = DeviceMemory::of(0).unwrap().free_bytes as f64 / f64::from(1 << 20);
    assert!((free_in(&reason) - free).abs() < 0.1, "{free} MiB are free: {reason}");
    must_answer(&admin, "second").await;

    *rival.0.lock().unwrap() = None;
    assert_eq!(DeviceMemory::of(0).unwrap().free_bytes, 160 << 20, "the model gave back all that it had");
    assert_eq!(admin.send("POST", "/admin/v1/models/first/load").await.status, 202);
    until(&admin, "first", "ready").await;
    assert_eq!(devices(&admin).await, ["first cuda:0", "second cpu"]);
    must_answer(&admin, "first").await;
    served.run_until(ready(())).await.unwrap();
}

#[test]
fn models_loaded_at_run_time_take_the_gpu_while_there_is_room_then_the_cpu_with_one_line_that_says_why() {
    let test = "at_run_time_the_second_model_goes_to_the_cpu_and_a_named_device_is_refused";
    let Some(said) = alone(test, 64) else { return };
    let lines: Vec<_> = said.lines().filter(|line| line.contains("will compute on the CPU")).collect();
    let wanted = "model `second` will compute on the CPU: it needs ";
    assert!(lines.len() == 1 && lines[0].contains(wanted) && lines[0].contains(" of `cuda:0`, which has "), "{said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test above"]
async fn at_run_time_the_second_model_goes_to_the_cpu_and_a_named_device_is_refused() {
    telemetry::init_logs(&telemetry::Config::default()).unwrap();
    let data = tempfile::tempdir().unwrap();
    let house = "[engine]\nstep_tokens = 256\n[[models]]\nname = \"demo\"\nsource = \"builtin:demo\"\n\
                 device = \"cpu\"\nkv_memory = \"8MiB\"\n";
    let (served, admin) = serve(house, data.path(), Arc::new(Silent)).await;
    let create = async |name: &str, from: &str, hardware: Value| {
        let source = testdata(from).display().to_string();
        let env = json!({"kv_memory": "1MiB"});
        let body = json!({"name": name, "source": source, "tiers": "all", "hardware": hardware, "env": env});
        let made = admin.post("/admin/v1/models", &body).await;
        assert_eq!(made.status, 201, "{}", made.body);
    };
    create("first", "qwen3", json!("auto")).await;
    create("second", "tiny-llama", json!("auto")).await;
    for model in ["first", "second"] {
        until(&admin, model, "ready").await;
        must_answer(&admin, model).await;
    }
    assert_eq!(devices(&admin).await, ["demo cpu", "first cuda:0", "second cpu"]);

    create("third", "tiny-llama", json!("cuda:0")).await;
    let failed = until(&admin, "third", "failed").await;
    assert!(free_in(failed["reason"].as_str().unwrap()) < 64.0, "{failed}");

    // What the first one gives back is there for whoever is loaded next.
    admin.send("POST", "/admin/v1/models/first/unload").await;
    until(&admin, "first", "unloaded").await;
    admin.send("POST", "/admin/v1/models/third/load").await;
    until(&admin, "third", "ready").await;
    assert_eq!(devices(&admin).await[2..], ["second cpu", "third cuda:0"]);
    must_answer(&admin, "third").await;
    served.run_until(ready(())).await.unwrap();
}

#[test]
fn models_without_a_set_cache_share_a_device_in_equal_parts() {
    alone("two_models_on_one_device_have_caches_of_one_size", 160);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test above"]
async fn two_models_on_one_device_have_caches_of_one_size() {
    let data = tempfile::tempdir().unwrap();
    let (served, _) = serve(&two("cuda:0", ""), data.path(), Arc::new(Silent)).await;
    let caches: Vec<f64> =
        served.summary().models.iter().map(|model| model.outcome.as_ref().unwrap().kv_bytes as f64).collect();
    assert!(caches[0] > f64::from(4 << 20), "{caches:?}");
    assert!((caches[0] / caches[1] - 1.0).abs() < 0.25, "{caches:?}");
    served.run_until(ready(())).await.unwrap();
}

#[test]
fn what_a_model_takes_of_a_device_is_known_before() {
    alone("a_model_takes_what_was_foretold", 512);
}

#[test]
#[ignore = "started by the test above"]
fn a_model_takes_what_was_foretold() {
    for (name, max_output_rows) in [("qwen3-bf16", 64), ("tiny-llama", 256), ("gguf/llama-q4_k_m.gguf", 8)] {
        let options = LoadOptions {
            device: Device::Cuda(0),
            pool: Arc::new(millgate_kernels::Pool::new(1)),
            num_blocks: 64,
            kv_bytes: None,
            reserve: GpuReserve::default(),
            deterministic: false,
            max_step_tokens: 1024,
            max_output_rows,
            kv_dtype: KvDtypeChoice::Auto,
            context_window: None,
        };
        let checkpoint = Checkpoint::open_local(&testdata(name).display().to_string().parse().unwrap()).unwrap();
        let foretold = checkpoint.gpu_footprint(&options).unwrap();
        let model = checkpoint.load(&options, &Silent).unwrap();
        let spec = model.spec();
        assert_eq!(foretold.weights, spec.weight_bytes, "{name}");
        let cache = (spec.num_blocks * spec.kv_bytes_per_block) as u64;
        let taken = spec.gpu_memory.unwrap().used_bytes - cache;
        let known = foretold.weights + foretold.activations;
        // Every allocation is a number of whole pages.
        assert!(taken >= known && taken - known < 1 << 20, "{name}: {taken} bytes taken, {known} foretold");
    }
}
