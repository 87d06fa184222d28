//! The engine and the server over models on a GPU, real or emulated: the CPU's tokens, each request its own, limits kept.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::future::ready;
use std::sync::Arc;

use millgate::app::Served;
use millgate::config::{Environment, Overrides, resolve};
use millgate::engine::{EngineHandle, Request, SamplingParams};
use millgate::governance::Status;
use millgate_models::{Device, DeviceChoice};
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_tells_where_its_models_compute_and_refuses_a_device_that_is_not_there() {
    if !has_gpu() {
        return;
    }
    let data = tempfile::tempdir().unwrap();
    let start = async |device: &str| {
        let text = format!(
            "[server]\nlisten = \"127.0.0.1:0\"\n[engine]\ndevice = \"{device}\"\nmax_running = 4\nstep_tokens = 64\n\
             [cpu]\nthreads = 1\n[[models]]\nname = \"tiny\"\nsource = \"{}\"\nkv_memory = \"1MiB\"\n\
             [[models]]\nname = \"host\"\nsource = \"builtin:demo\"\ndevice = \"cpu\"\nkv_memory = \"8MiB\"\n",
            testdata("qwen3").display()
        );
        let environment =
            Environment { admin_key: Some("bootstrap-secret-only-for-tests".into()), ..Environment::default() };
        let overrides = Overrides { data_dir: Some(data.path().join("data")), ..Overrides::default() };
        let settings = resolve(toml::from_str(&text).unwrap(), &text, &environment, &overrides).unwrap();
        Served::start(&settings, Arc::new(millgate_models::Silent), &|_| {}).await.unwrap()
    };
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
