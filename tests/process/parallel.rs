//! Many clients at once get, to the byte, what each would get alone.

use futures::future::join_all;
use serde_json::{Value, json};

use super::server::ServerProcess;

const CLIENTS: u64 = 64;
const TEMPERATURES: [f64; 5] = [0.0, 0.5, 0.8, 1.0, 1.3];
const QUESTIONS: [&str; 8] = [
    "Hello!",
    "What is a tier?",
    "How do I make an API key?",
    "Tell me a short story.",
    "What does 429 mean?",
    "List the days of the week.",
    "Who are you, and what can you do for me?",
    "Which command starts the server?",
];

/// A request whose sampling settings differ from every other client's.
fn body_of(client: u64) -> Value {
    let nth = client as usize;
    let mut body = json!({
        "model": "demo",
        "seed": 1000 + client,
        "max_tokens": 8 + client % 41,
        "temperature": (TEMPERATURES[nth % TEMPERATURES.len()]),
        "messages": [{"role": "user", "content": (QUESTIONS[nth % QUESTIONS.len()])}],
    });
    let extra = match client % 8 {
        0 => json!({"top_p": 0.9}),
        1 => json!({"top_k": 5}),
        2 => json!({"min_p": 0.05, "presence_penalty": 0.6}),
        3 => json!({"frequency_penalty": 0.7, "n": 2}),
        4 => json!({"logprobs": true, "top_logprobs": 3}),
        5 => json!({"repetition_penalty": 1.2, "top_p": 0.7}),
        6 => json!({"logit_bias": {"40": -100, "41": 3}, "stop": ["."]}),
        _ => json!({"ignore_eos": true}),
    };
    for (field, value) in extra.as_object().expect("written as an object above") {
        body[field] = value.clone();
    }
    body
}

/// What must not depend on company: everything but ids, times and what the prefix cache found.
fn substance(mut body: Value) -> Value {
    for field in ["id", "created"] {
        body[field] = Value::Null;
    }
    body["usage"]["prompt_tokens_details"] = Value::Null;
    body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sixty_four_clients_get_the_bytes_that_each_gets_alone() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(folder.path(), &[]).await;
    let bodies: Vec<Value> = (0..CLIENTS).map(body_of).collect();
    let together = join_all(bodies.iter().map(|body| server.chat(body))).await;
    for (client, (body, together)) in bodies.iter().zip(together).enumerate() {
        let alone = server.chat(body).await;
        assert_eq!(substance(together.body), substance(alone.body), "client {client}");
    }
}
