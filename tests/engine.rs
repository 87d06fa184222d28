//! The engine over real models: whatever else is in the batch, a request's tokens and log probabilities are its own.

#![expect(clippy::unwrap_used, reason = "helpers of tests may panic as tests do")]

use std::path::PathBuf;
use std::sync::Arc;

use millgate::engine::fake::FakeModel;
use millgate::engine::{
    CacheSalt, Config, EngineHandle, Event, EventStream, FlowId, Request, RequestId, SamplingParams, spawn,
};
use millgate_kernels::Pool;
use millgate_models::{Checkpoint, Device, GpuReserve, KvDtypeChoice, LoadOptions, Model, Silent, Source};
use uuid::Uuid;

/// One checkpoint for each way of computing: f32, bf16 with head norms, a sliding window, and quantised weights.
const CHECKPOINTS: [&str; 4] = ["tiny-llama", "qwen3-bf16", "mistral-window", "gguf/llama-q4_k_m.gguf"];
/// Every test checkpoint has more tokens than this.
const SAFE_TOKENS: u32 = 250;

fn start(name: &str, num_blocks: usize) -> EngineHandle {
    start_on(Device::Cpu, name, num_blocks)
}

/// An engine over a checkpoint of the test data.
pub(crate) fn start_on(device: Device, name: &str, num_blocks: usize) -> EngineHandle {
    // Answers are compared by token ids, so any tokenizer will do; this one is there for every checkpoint.
    spawn(name, load(device, name, num_blocks), FakeModel::text(), Config::default()).unwrap()
}

/// A checkpoint of the test data. Cargo names the folder; so does who runs the tests in another checkout than theirs.
pub(crate) fn testdata(name: &str) -> PathBuf {
    let checkout = std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    PathBuf::from(checkout).join("models/testdata").join(name)
}

pub(crate) fn load(device: Device, name: &str, num_blocks: usize) -> Box<dyn Model> {
    let source: Source = testdata(name).display().to_string().parse().unwrap();
    let options = LoadOptions {
        device,
        kv_bytes: None,
        reserve: GpuReserve::default(),
        deterministic: true,
        pool: Arc::new(Pool::new(2)),
        num_blocks,
        max_step_tokens: 96,
        max_output_rows: 64,
        kv_dtype: KvDtypeChoice::Auto,
        context_window: None,
    };
    Checkpoint::open_local(&source).unwrap().load(&options, &Silent).unwrap()
}

/// 64 requests, no two alike: prompts with common beginnings, every sampling setting, one to three choices.
pub(crate) fn request(index: u32) -> Request {
    let pick = index as usize;
    Request {
        id: RequestId(Uuid::nil()),
        prompt: (0..3 + index).map(|at| (at * 37 + index % 3 * 101 + at * at) % SAFE_TOKENS).collect(),
        sampling: SamplingParams {
            temperature: [0.0, 0.7, 1.0, 1.6][pick % 4],
            top_k: [0, 5, 40][pick % 3],
            top_p: [1.0, 0.8][pick / 2 % 2],
            min_p: [0.0, 0.02][pick / 3 % 2],
            presence_penalty: [0.0, 0.6][pick / 4 % 2],
            repetition_penalty: [1.0, 1.3][pick / 5 % 2],
            seed: u64::from(index),
            logprobs: Some(2),
            ..SamplingParams::default()
        },
        choices: 1 + index % 3,
        max_tokens: 8 + index % 17,
        min_tokens: 0,
        ignore_eos: true,
        stop: Vec::new(),
        continues_text: true,
        prompt_logprobs: None,
        allowance: 1000,
        flow: FlowId(u64::from(index)),
        weight: 1,
        priority: u8::from(index.is_multiple_of(8)),
        cache_salt: CacheSalt([3; 16]),
    }
}

/// Token ids and the bits of their log probabilities, by choice.
pub(crate) type Answer = Vec<Vec<(u32, u32)>>;

pub(crate) async fn read(mut stream: EventStream, choices: u32) -> Answer {
    let mut answer = vec![Vec::new(); choices as usize];
    let mut last = None;
    while let Some(event) = stream.next().await {
        if let Event::Text { choice, logprobs, .. } = &event {
            let bits = logprobs.iter().map(|logprob| (logprob.token, logprob.logprob.to_bits()));
            answer[*choice as usize].extend(bits);
        }
        last = Some(event);
    }
    let Some(Event::Done(usage)) = last else { panic!("ended with {last:?}") };
    assert_eq!(usage.completion_tokens as usize, answer.iter().map(Vec::len).sum::<usize>());
    answer
}

pub(crate) async fn together(engine: &EngineHandle) -> Vec<Answer> {
    let submit = |index| (engine.submit(request(index)).unwrap(), request(index).choices);
    let streams: Vec<_> = (0..64).map(submit).collect();
    futures::future::join_all(streams.into_iter().map(|(stream, choices)| read(stream, choices))).await
}

#[tokio::test]
async fn real_models_answer_64_clients_to_the_bit_as_they_answer_each_alone() {
    for name in CHECKPOINTS {
        let engine = start(name, 400);
        let batched = together(&engine).await;
        let status = engine.status();
        assert!(status.is_healthy, "{status:?}");
        assert!(status.totals.steps < 400, "they were computed together: {} steps", status.totals.steps);
        engine.shutdown().await;
        let engine = start(name, 400);
        for (index, answer) in (0..).zip(&batched) {
            let alone = read(engine.submit(request(index)).unwrap(), request(index).choices).await;
            assert!(alone == *answer, "{name}: request {index} differs");
        }
        assert!(engine.status().totals.cached_tokens > 0, "some of them found their beginning in the cache");
        engine.shutdown().await;
        // So few blocks that requests lose theirs and are computed again.
        let engine = start(name, 12);
        let crowded = together(&engine).await;
        assert!(engine.status().totals.preemptions > 0);
        assert!(crowded == batched, "{name}: preemption changed an answer");
        engine.shutdown().await;
    }
}
