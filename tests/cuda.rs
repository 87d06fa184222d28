//! The engine and the server over models on a GPU, real or emulated: the CPU's tokens, each request its own, limits kept.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::future::ready;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use millgate::app::Served;
use millgate::config::{Environment, Overrides, resolve};
use millgate::engine::{EngineHandle, Request, SamplingParams};
use millgate::governance::Status;
use millgate_models::{Checkpoint, Device, DeviceChoice, GpuReserve, KvDtypeChoice, LoadOptions, Silent};
use serde_json::json;

use crate::engine::{Answer, load, read, request, start_on, testdata, together};
use crate::support::{Actor, TestApp};

const GPU: Device = Device::Cuda(0);

/// Whether there is one; says so aloud where there is none and `MILLGATE_TEST_GPU=require` does not ask for one.
fn has_gpu() -> bool {
    let Err(error) = DeviceChoice::Cuda(0).choose() else { return true };
    let is_required = std::env::var_os("MILLGATE_TEST_GPU").is_some_and(|value| value == "require");
    assert!(!is_required, "a GPU is required: {error}");
    #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
    {
        eprintln!("not run: {error} (`make check-cuda` runs it on an emulated one)");
    }
    false
}

fn tokens(answers: &[Answer]) -> Vec<Vec<Vec<u32>>> {
    let of_choice = |choice: &Vec<(u32, u32)>| choice.iter().map(|&(token, _)| token).collect();
    answers.iter().map(|answer| answer.iter().map(of_choice).collect()).collect()
}

fn greedy(index: u32) -> Request {
    let sampling = SamplingParams { temperature: 0.0, logprobs: Some(0), ..SamplingParams::default() };
    Request { sampling, choices: 1, max_tokens: 12, ..request(3 * index) }
}

async fn all_greedy(engine: &EngineHandle) -> Vec<Answer> {
    let streams: Vec<_> = (0..8).map(|index| engine.submit(greedy(index)).unwrap()).collect();
    futures::future::join_all(streams.into_iter().map(|stream| read(stream, 1))).await
}

#[tokio::test]
async fn greedy_answers_in_f32_are_those_of_the_cpu() {
    if !has_gpu() {
        return;
    }
    for name in ["tiny-llama", "mistral-window", "qwen2", "qwen3"] {
        let (gpu, cpu) = (start_on(GPU, name, 100), start_on(Device::Cpu, name, 100));
        assert!(tokens(&all_greedy(&gpu).await) == tokens(&all_greedy(&cpu).await), "{name}");
        assert!(gpu.status().is_healthy, "{:?}", gpu.status());
        gpu.shutdown().await;
        cpu.shutdown().await;
    }
}

#[tokio::test]
async fn sixty_four_clients_with_different_settings_get_what_each_gets_alone() {
    if !has_gpu() {
        return;
    }
    let engine = start_on(GPU, "tiny-llama", 400);
    let batched = tokens(&together(&engine).await);
    let status = engine.status();
    assert!(status.is_healthy && status.totals.steps < 400, "{status:?}");
    engine.shutdown().await;
    let engine = start_on(GPU, "tiny-llama", 400);
    for (index, answer) in (0..).zip(&batched).step_by(3) {
        let alone = read(engine.submit(request(index)).unwrap(), request(index).choices).await;
        assert!(tokens(&[alone])[0] == *answer, "request {index} differs");
    }
    engine.shutdown().await;
    // So few blocks that requests lose theirs while their rows are in flight, and are computed again.
    let engine = start_on(GPU, "tiny-llama", 12);
    assert!(tokens(&together(&engine).await) == batched, "preemption changed an answer");
    assert!(engine.status().totals.preemptions > 0);
    engine.shutdown().await;
}

#[tokio::test]
async fn limits_the_ledger_and_cancellation_are_exact_over_http() {
    if !has_gpu() {
        return;
    }
    let app = TestApp::new()
        .tier("tiny", |tier| tier.limit("100 tokens / 1m"))
        .tier("daily", |tier| tier.tokens_per_day(1000))
        .model(load(GPU, "tiny-llama", 100))
        .start()
        .await;
    let user = app.key("tiny").await;
    let reply = user.complete(json!([65, 66, 67]), json!({"max_tokens": 90, "ignore_eos": true})).await;
    assert_eq!((reply.status, reply.total_tokens()), (200, 93), "{}", reply.body);
    let refused = user.complete(json!([65, 66, 67]), json!({"max_tokens": 90, "ignore_eos": true})).await;
    assert_eq!(refused.status, 429, "{}", refused.body);
    let ledger = app.ledger().await;
    assert_eq!((ledger.len(), ledger[0].usage.total_tokens()), (1, 93));

    let other = app.key("daily").await;
    let mut stream = other.chat_stream("hello", json!({"max_tokens": 400, "ignore_eos": true})).await;
    stream.chunk().await.unwrap();
    drop(stream);
    app.eventually("the request is settled", async |app| app.ledger().await.len() == 2).await;
    let row = app.ledger().await.into_iter().find(|row| row.status == Status::Aborted).unwrap();
    assert!(row.usage.completion_tokens < 400);
    let remaining = other.get("/v1/me").await.json()["limits"][0]["remaining"].as_u64().unwrap();
    assert_eq!(remaining, 1000 - row.usage.total_tokens());
    app.eventually("nothing runs", async |app| app.engine.status().totals.blocks.owned == 0).await;
    app.stop().await;
}

/// A server with these settings.
async fn serve(settings: &str, data: &Path) -> Served {
    let text = format!("[server]\nlisten = \"127.0.0.1:0\"\n[cpu]\nthreads = 1\n{settings}");
    let environment =
        Environment { admin_key: Some("bootstrap-secret-only-for-tests".into()), ..Environment::default() };
    let overrides = Overrides { data_dir: Some(data.join("data")), ..Overrides::default() };
    let settings = resolve(toml::from_str(&text).unwrap(), &text, &environment, &overrides).unwrap();
    Served::start(&settings, Arc::new(Silent), &|_| {}).await.unwrap()
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
    let start = async |device: &str| serve(&models(device), data.path()).await;
    let served = start("cuda:0").await;
    let line = &served.summary().models[0];
    let facts = line.outcome.as_ref().unwrap();
    assert!(facts.device.starts_with("cuda:0: ") && facts.free_bytes.is_some(), "{facts:?}");
    assert_eq!(facts.kv_bytes, 1 << 20);
    let admin = Actor::new(served.summary().listen, Some("bootstrap-secret-only-for-tests".into()));
    let health = admin.get("/health/details").await.json();
    let devices: Vec<_> = health["models"].as_array().unwrap().iter().map(|model| &model["device"]).collect();
    assert_eq!(devices, [&json!("cpu"), &json!("cuda:0")], "{health}");
    let page = admin.get("/metrics").await.body;
    assert!(page.contains("millgate_engine_device_info{model_name=\"tiny\",device=\"cuda:0\"} 1"), "{page}");
    let reply = admin.chat_with("Hello", json!({"model": "tiny", "max_tokens": 4, "ignore_eos": true})).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    served.run_until(ready(())).await.unwrap();

    let served = start("cuda:9").await;
    let reason = served.summary().models[0].outcome.as_ref().unwrap_err();
    assert!(reason.contains("device `cuda:9` cannot be used: there is no device `cuda:9`"), "{reason}");
    served.run_until(ready(())).await.unwrap();
}

/// Runs a test in a process of its own, whose emulated device has this much memory and nobody else on it.
fn alone(test: &str, device_mib: usize) {
    if !has_gpu() {
        return;
    }
    let is_emulated = DeviceChoice::Cuda(0).choose().unwrap().description.is_some_and(|name| name.contains("emulated"));
    if !is_emulated {
        #[expect(clippy::print_stderr, reason = "a test that cannot run says so")]
        {
            eprintln!("not run: a real GPU has the memory that it has (`make check-cuda` runs it on an emulated one)");
        }
        return;
    }
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", test, "--ignored", "--nocapture"]);
    let done = command.env("MILLGATE_EMULATED_GPU_BYTES", (device_mib << 20).to_string()).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.contains("1 passed"), "{said}");
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
    alone("cuda::on_a_small_device_the_second_model_goes_to_the_cpu", 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test above"]
async fn on_a_small_device_the_second_model_goes_to_the_cpu() {
    let data = tempfile::tempdir().unwrap();
    let served = serve(&two("auto", "kv_memory = \"1MiB\""), data.path()).await;
    let devices = served.summary().models.iter().map(|model| model.outcome.as_ref().unwrap().device.as_str());
    assert_eq!(devices.collect::<Vec<_>>(), ["cuda:0: Millgate emulated device, 64.00 MiB", "cpu"]);
    let admin = Actor::new(served.summary().listen, Some("bootstrap-secret-only-for-tests".into()));
    for model in ["first", "second"] {
        let reply = admin.chat_with("Hello", json!({"model": model, "max_tokens": 4, "ignore_eos": true})).await;
        assert_eq!(reply.status, 200, "{model}: {}", reply.body);
    }
    served.run_until(ready(())).await.unwrap();
}

#[test]
fn a_model_that_the_first_one_leaves_no_room_for_is_refused_with_figures_where_the_device_is_named() {
    alone("cuda::on_a_small_device_that_is_named_the_second_model_is_refused", 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test above"]
async fn on_a_small_device_that_is_named_the_second_model_is_refused() {
    let data = tempfile::tempdir().unwrap();
    let served = serve(&two("cuda:0", "kv_memory = \"1MiB\""), data.path()).await;
    assert!(served.summary().models[0].outcome.is_ok());
    let reason = served.summary().models[1].outcome.clone().unwrap_err();
    let mib: Vec<f64> = reason
        .split(' ')
        .zip(reason.split(' ').skip(1))
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
    assert!(free < 64.0 && need > free, "{reason}");
    assert!((need - (weights + activations + cache + spare)).abs() < 0.1, "{reason}");
    assert!(more_weights < weights && more_cache < cache, "what would fit is less than what does not: {reason}");
    served.run_until(ready(())).await.unwrap();
}

#[test]
fn models_without_a_set_cache_share_a_device_in_equal_parts() {
    alone("cuda::two_models_on_one_device_have_caches_of_one_size", 160);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "started by the test above"]
async fn two_models_on_one_device_have_caches_of_one_size() {
    let data = tempfile::tempdir().unwrap();
    let served = serve(&two("cuda:0", ""), data.path()).await;
    let caches: Vec<f64> =
        served.summary().models.iter().map(|model| model.outcome.as_ref().unwrap().kv_bytes as f64).collect();
    assert!(caches[0] > f64::from(4 << 20), "{caches:?}");
    assert!((caches[0] / caches[1] - 1.0).abs() < 0.25, "{caches:?}");
    served.run_until(ready(())).await.unwrap();
}

#[test]
fn what_a_model_takes_of_a_device_is_known_before() {
    alone("cuda::a_model_takes_what_was_foretold", 512);
}

#[test]
#[ignore = "started by the test above"]
fn a_model_takes_what_was_foretold() {
    for (name, max_output_rows) in [("qwen3-bf16", 64), ("tiny-llama", 256), ("gguf/llama-q4_k_m.gguf", 8)] {
        let options = LoadOptions {
            device: GPU,
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
