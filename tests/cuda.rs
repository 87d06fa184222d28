//! The engine and the API over models on a GPU, real or emulated: the CPU's tokens, each request its own, limits kept.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use millgate::engine::{EngineHandle, Request, SamplingParams};
use millgate::governance::Status;
use millgate_models::{Device, DeviceChoice};
use serde_json::json;

use crate::engine::{Answer, load, read, request, start_on, together};
use crate::support::TestApp;

const GPU: Device = Device::Cuda(0);

/// Whether there is one; says so aloud where there is none and `MILLGATE_TEST_GPU=require` does not ask for one.
pub(crate) fn has_gpu() -> bool {
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
    for (index, answer) in (0..).zip(&batched) {
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
