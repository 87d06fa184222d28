//! The bundled model answers what it was trained for, through the whole real path.

use std::fs;
use std::path::Path;

use futures::StreamExt;
use serde_json::{Value, json};

use super::server::ServerProcess;

/// How many answers hold one of their facts, and how many ended by themselves.
struct Score {
    asked: usize,
    right: usize,
    ended: usize,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_bundled_model_answers_its_questions_and_most_paraphrases_and_always_ends() {
    let folder = tempfile::tempdir().unwrap();
    let server = ServerProcess::start(folder.path(), &[]).await;
    let listed = score(&server, "questions.json").await;
    assert_eq!((listed.asked, listed.ended), (50, 50));
    assert!(listed.right >= 45, "{} of 50 listed questions", listed.right);
    let unseen = score(&server, "paraphrases.json").await;
    assert!(unseen.right * 100 >= unseen.asked * 60, "{} of {} paraphrases", unseen.right, unseen.asked);
}

async fn score(server: &ServerProcess, file: &str) -> Score {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/demo").join(file);
    let entries: Vec<Value> = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
    let answers: Vec<(bool, bool)> =
        futures::stream::iter(&entries).map(|entry| ask(server, entry)).buffer_unordered(16).collect().await;
    Score {
        asked: answers.len(),
        right: answers.iter().filter(|(is_right, _)| *is_right).count(),
        ended: answers.iter().filter(|(_, is_ended)| *is_ended).count(),
    }
}

/// Whether the greedy answer holds one of the entry's facts, and whether it ended by itself.
async fn ask(server: &ServerProcess, entry: &Value) -> (bool, bool) {
    let body = json!({
        "model": "demo", "temperature": 0, "max_tokens": 200,
        "messages": [{"role": "user", "content": (entry["question"])}],
    });
    let answer = server.chat(&body).await.body;
    let text = answer["choices"][0]["message"]["content"].as_str().expect("an answer is text").to_lowercase();
    let facts = entry["facts"].as_array().expect("every question lists its facts");
    let is_right = facts.iter().filter_map(Value::as_str).any(|fact| text.contains(fact));
    (is_right, answer["choices"][0]["finish_reason"] == "stop")
}
