//! Guessing ahead, from outside: answers, log probabilities and what is charged are the same with and without.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::time::Duration;

use millgate::engine::fake::FakeModel;
use millgate::engine::{Config, EngineTotals, Request, SamplingParams, spawn};
use millgate_models::Device;
use serde_json::{Value, json};

use crate::engine::{Answer, load, read, request};
use crate::support::TestApp;

/// What a client got, what it was charged, and the engine's own counts on the page of metrics.
async fn over_http(speculation: bool) -> (Vec<Value>, Value, [u64; 2]) {
    let app = TestApp::new()
        .tier("free", |tier| tier.tokens_per_day(10_000))
        .fake(|fake| (fake.echo_logit, fake.end_logit, fake.step_delay) = (8.0, -2.0, Duration::from_millis(1)))
        .engine(|engine| (engine.speculation, engine.prefix_cache) = (speculation, false))
        .start()
        .await;
    let user = app.key("free").await;
    let mut answers = Vec::new();
    for fields in [
        json!({"temperature": 0, "max_tokens": 200, "logprobs": true, "top_logprobs": 2}),
        json!({"seed": 3, "n": 2, "max_tokens": 120, "presence_penalty": 0.5}),
        json!({"seed": 4, "max_tokens": 300, "temperature": 0.7, "stop": ["zz", "q"]}),
        json!({"seed": 5}),
    ] {
        let reply = user.chat_with("say it once more, say it once more", fields).await;
        let body: Value = serde_json::from_str(&reply.body).unwrap();
        answers.push(json!([body["choices"], body["usage"]]));
    }
    let charged = serde_json::from_str::<Value>(&user.get("/v1/me").await.body).unwrap();
    let page = app.anonymous().get("/metrics").await.body;
    let figure = |name: &str| {
        let line = page.lines().find(|line| line.starts_with(&format!("vllm:spec_decode_num_{name}_total{{"))).unwrap();
        line.rsplit(' ').next().unwrap().parse().unwrap()
    };
    (answers, charged["limits"][0]["used"].clone(), [figure("draft_tokens"), figure("accepted_tokens")])
}

#[tokio::test]
async fn clients_get_and_pay_for_the_same_with_and_without_guesses() {
    let (with, charged, [drafted, accepted]) = over_http(true).await;
    let (without, plainly_charged, figures) = over_http(false).await;
    assert_eq!(with, without);
    assert!(charged.is_number(), "{charged}");
    assert_eq!(charged, plainly_charged);
    assert!(accepted > 50 && drafted >= accepted, "{accepted} of {drafted}");
    assert_eq!(figures, [0, 0]);
}

async fn together(checkpoint: &str, speculation: bool, num_blocks: usize) -> (Vec<Answer>, EngineTotals) {
    let config = Config { speculation, ..Config::default() };
    let model = load(Device::Cpu, checkpoint, num_blocks);
    let engine = spawn(checkpoint, model, FakeModel::text(), config).unwrap();
    let mut answers = Vec::new();
    // Alone, by twos, by threes...: the fewer there are, the more is guessed.
    for crowd in 1..8 {
        let requests: Vec<Request> = (0..crowd).map(|nth| repetitive(crowd * 10 + nth)).collect();
        let streams = requests.into_iter().map(|request| {
            let choices = request.choices;
            read(engine.submit(request).unwrap(), choices)
        });
        answers.extend(futures::future::join_all(streams).await);
    }
    let status = engine.status();
    assert!(status.is_healthy, "{status:?}");
    engine.shutdown().await;
    (answers, status.totals)
}

/// A prompt that says the same several times, with any settings.
fn repetitive(index: u32) -> Request {
    let ask = request(index);
    let temperature = [0.0, 0.0, 0.3, 1.0][index as usize % 4];
    let sampling = SamplingParams { temperature, ..ask.sampling };
    Request { prompt: ask.prompt[..ask.prompt.len().min(12)].repeat(5), sampling, max_tokens: 60, ..ask }
}

#[tokio::test]
async fn real_models_give_the_same_tokens_and_log_probabilities_to_the_bit_with_and_without_guesses() {
    for checkpoint in ["tiny-llama", "qwen3-bf16", "mistral-window", "gguf/llama-q4_k_m.gguf", "gguf/qwen2-q8_0.gguf"] {
        let (without, plain) = together(checkpoint, false, 400).await;
        let (with, totals) = together(checkpoint, true, 400).await;
        assert!(with == without, "{checkpoint}: an answer differs");
        assert!(totals.draft_tokens > 0, "{checkpoint}: {totals:?}");
        assert_eq!(totals.completion_tokens, plain.completion_tokens);
        let (crowded, totals) = together(checkpoint, true, 14).await;
        assert!(crowded == without, "{checkpoint}: an answer differs where blocks are few");
        assert!(totals.preemptions > 0, "{checkpoint}: {totals:?}");
    }
}
