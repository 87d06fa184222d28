//! Prompts, answers and keys stay out of everything the server prints, at the loudest log level.

use serde_json::{Value, json};

use super::server::{ADMIN_KEY, ServerProcess, chat_body};

const PROMPT: &str = "xyzzy-plugh: tell me about limits";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_said_and_no_key_is_ever_logged() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("loud.toml");
    std::fs::write(&config, "[log]\nlevel = \"trace\"\n").unwrap();
    let mut server = ServerProcess::start(folder.path(), &["--config", config.to_str().unwrap()]).await;

    let made: Value = server.post("/v1/api-keys", &json!({"name": "n"})).send().await.unwrap().json().await.unwrap();
    let key = made["key"].as_str().unwrap();
    let answer = server.chat(&chat_body(PROMPT, 1)).await.body;
    let text = answer["choices"][0]["message"]["content"].as_str().unwrap().to_owned();
    // Every way of being wrong that could end up in a line for the operator.
    for body in [
        json!({"model": "demo", "messages": PROMPT}),
        json!({"model": PROMPT, "messages": [{"role": "user", "content": PROMPT}]}),
        json!({"model": "demo", "messages": [{"role": PROMPT, "content": PROMPT}]}),
        json!({"model": "demo", (PROMPT): 1, "messages": [{"role": "user", "content": PROMPT, "name": PROMPT}], "n": 0}),
        json!({"model": "demo", "messages": [{"role": "user", "content": PROMPT.repeat(2000)}]}),
    ] {
        let reply = server.post("/v1/chat/completions", &body).send().await.unwrap();
        assert!(reply.status().is_client_error(), "{body}");
    }
    let wrong = server.get("/v1/me").header("x-api-key", key).header("x-request-id", PROMPT).send().await.unwrap();
    assert_eq!(wrong.status(), 200);
    server.signal("-TERM");
    assert!(server.ended().await.success());

    let printed = server.rest_of_output().await;
    assert!(printed.contains("/v1/chat/completions answered 200"), "requests are logged: {printed}");
    let secret = key.rsplit('_').next().unwrap();
    for hidden in ["xyzzy", secret, ADMIN_KEY] {
        assert!(!printed.contains(hidden), "`{hidden}` was printed");
    }
    assert!(text.len() < 8 || !printed.contains(&text), "the answer was printed");
}
