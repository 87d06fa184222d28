//! Chat and completions as OpenAI's clients see them: documents, streams to the byte, parameters, usage.

use insta::assert_snapshot;
use millgate::governance::Status;
use serde_json::{Value, json};

use crate::support::{Reply, TestApp, chat_body, without_ids};

#[tokio::test]
async fn a_chat_answer_is_openais_document() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let reply = user.chat_with("hello", json!({"seed": 1, "max_tokens": 5})).await;
    assert_snapshot!(reply.status_and_body(), @r#"200 {"id":"chatcmpl-*","object":"chat.completion","created":1700000000,"model":"fake","choices":[{"index":0,"message":{"role":"assistant","content":"l�ifm","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"length"}],"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12,"prompt_tokens_details":{"cached_tokens":0}},"system_fingerprint":"fp_fake"}"#);
    assert_eq!(reply.header("content-type"), "application/json");
}

#[tokio::test]
async fn a_stream_is_openais_to_the_byte() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let fields = json!({"seed": 1, "max_tokens": 2, "ignore_eos": true, "stream_options": {"include_usage": true}});
    let response = user.chat_stream("hello", fields).await;
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    assert_eq!(response.headers()["cache-control"], "no-cache");
    let reply = Reply::read(response).await;
    assert_snapshot!(without_ids(&joined(&reply)), @r#"
    {"id":"chatcmpl-*","object":"chat.completion.chunk","created":1700000000,"model":"fake","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"usage":null,"system_fingerprint":"fp_fake"}
    {"id":"chatcmpl-*","object":"chat.completion.chunk","created":1700000000,"model":"fake","choices":[{"index":0,"delta":{"content":"l�"},"logprobs":null,"finish_reason":null}],"usage":null,"system_fingerprint":"fp_fake"}
    {"id":"chatcmpl-*","object":"chat.completion.chunk","created":1700000000,"model":"fake","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"length"}],"usage":null,"system_fingerprint":"fp_fake"}
    {"id":"chatcmpl-*","object":"chat.completion.chunk","created":1700000000,"model":"fake","choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2,"total_tokens":9,"prompt_tokens_details":{"cached_tokens":0}},"system_fingerprint":"fp_fake"}
    [DONE]
    "#);
}

/// The events of a stream with the texts of consecutive chunks joined: how tokens are packed into chunks depends on time.
fn joined(reply: &Reply) -> String {
    let mut lines: Vec<String> = Vec::new();
    let mut text = String::new();
    for event in reply.events() {
        let chunk: Value = serde_json::from_str(event).unwrap_or_default();
        match chunk["choices"][0]["delta"]["content"].as_str() {
            Some(more) if !more.is_empty() => {
                if !text.is_empty() {
                    lines.pop();
                }
                text.push_str(more);
                lines.push(
                    event.replace(&format!("\"content\":{}", json!(more)), &format!("\"content\":{}", json!(text))),
                );
            }
            _ => lines.push(event.to_owned()),
        }
    }
    lines.join("\n")
}

#[tokio::test]
async fn a_stream_says_the_same_as_the_whole_answer() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let fields = json!({"seed": 7, "n": 3, "max_tokens": 40, "stop": ["e"]});
    let whole = user.chat_with("tell me", fields.clone()).await.json();
    let streamed = Reply::read(user.chat_stream("tell me", fields).await).await;
    let mut texts = [String::new(), String::new(), String::new()];
    let mut reasons = [Value::Null, Value::Null, Value::Null];
    for event in streamed.events().iter().filter(|event| **event != "[DONE]") {
        let chunk: Value = serde_json::from_str(event).unwrap();
        assert!(chunk.get("usage").is_none(), "usage was not asked for");
        let choice = &chunk["choices"][0];
        let index = choice["index"].as_u64().unwrap() as usize;
        texts[index].push_str(choice["delta"]["content"].as_str().unwrap_or_default());
        if !choice["finish_reason"].is_null() {
            reasons[index] = choice["finish_reason"].clone();
        }
    }
    for index in 0..3 {
        assert_eq!(whole["choices"][index]["message"]["content"], texts[index]);
        assert_eq!(whole["choices"][index]["finish_reason"], reasons[index]);
    }
}

#[tokio::test]
async fn usage_counts_cached_prompt_tokens_within_a_user_and_never_between_users() {
    let app = TestApp::new().start().await;
    let (ann, ben) = (app.user("ann", &[]).await, app.user("ben", &[]).await);
    let long = "the same beginning, ".repeat(10);
    let cached = async |reply: Reply| reply.json()["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap();
    assert_eq!(cached(ann.chat_with(&long, json!({"max_tokens": 1})).await).await, 0);
    assert!(cached(ann.chat_with(&long, json!({"max_tokens": 1})).await).await > 100);
    assert_eq!(cached(ben.chat_with(&long, json!({"max_tokens": 1})).await).await, 0, "timing must not tell");
}

#[tokio::test]
async fn completions_take_every_form_of_prompt() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let fields = json!({"seed": 3, "max_tokens": 6, "temperature": 0});
    let text = user.complete(json!("AB"), fields.clone()).await;
    let tokens = user.complete(json!([65, 66]), fields.clone()).await;
    assert_eq!(text.text(), tokens.text());
    let several = user.complete(json!(["AB", "AB"]), json!({"seed": 3, "max_tokens": 6, "n": 2})).await.json();
    let choices = several["choices"].as_array().unwrap();
    assert_eq!(choices.iter().map(|choice| choice["index"].as_u64().unwrap()).collect::<Vec<_>>(), [0, 1, 2, 3]);
    assert_eq!(several["usage"]["prompt_tokens"], 4);
    assert_eq!(several["object"], "text_completion");
    let lists = user.complete(json!([[65], [66]]), fields).await.json();
    assert_eq!(lists["choices"].as_array().unwrap().len(), 2);
}

#[tokio::test]
async fn the_default_length_of_a_completion_is_sixteen_tokens() {
    let app = TestApp::new().fake(|fake| fake.end_logit = f32::NEG_INFINITY).start().await;
    let reply = app.user("ann", &[]).await.complete(json!("AB"), json!({})).await.json();
    assert_eq!(
        (&reply["usage"]["completion_tokens"], &reply["choices"][0]["finish_reason"]),
        (&json!(16), &json!("length"))
    );
}

#[tokio::test]
async fn an_echo_repeats_the_prompt_with_its_log_probabilities() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let fields = json!({"echo": true, "logprobs": 2, "max_tokens": 3, "ignore_eos": true, "seed": 5});
    let reply = user.complete(json!("ABC"), fields.clone()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let choice = &reply.json()["choices"][0];
    assert!(choice["text"].as_str().unwrap().starts_with("ABC"));
    let logprobs = &choice["logprobs"];
    for list in ["tokens", "token_logprobs", "top_logprobs", "text_offset"] {
        assert_eq!(logprobs[list].as_array().unwrap().len(), 6, "{list}");
    }
    assert!(logprobs["token_logprobs"][0].is_null() && logprobs["token_logprobs"][1].is_f64());
    assert_eq!(logprobs["top_logprobs"][4].as_object().unwrap().len(), 2);
    assert_eq!(logprobs["text_offset"].as_array().unwrap()[..4], [json!(0), json!(1), json!(2), json!(3)]);

    let mut streamed_fields = fields;
    streamed_fields["stream"] = true.into();
    let streamed = user.complete(json!("ABC"), streamed_fields).await;
    let chunks = streamed.events().into_iter().filter(|event| *event != "[DONE]");
    let text: String = chunks
        .map(|event| serde_json::from_str::<Value>(event).unwrap()["choices"][0]["text"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(text, choice["text"]);
}

#[tokio::test]
async fn a_prompt_alone_is_scored_when_no_token_is_asked_for() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let fields = json!({"echo": true, "logprobs": 2, "max_tokens": 0, "n": 2});
    let reply = user.complete(json!(["ABC", "DE"]), fields.clone()).await;
    assert_eq!(reply.status, 200, "{}", reply.body);
    let answer = reply.json();
    assert_eq!((&answer["usage"]["prompt_tokens"], &answer["usage"]["completion_tokens"]), (&json!(5), &json!(0)));
    for (index, text) in ["ABC", "ABC", "DE", "DE"].into_iter().enumerate() {
        let choice = &answer["choices"][index];
        assert_eq!((&choice["text"], &choice["finish_reason"]), (&json!(text), &json!("length")));
        let scores = choice["logprobs"]["token_logprobs"].as_array().unwrap();
        assert!(scores.len() == text.len() && scores[0].is_null() && scores[1..].iter().all(Value::is_f64), "{choice}");
    }
    let row = app.ledger().await.remove(0);
    assert_eq!((row.usage.prompt_tokens, row.usage.completion_tokens, row.status), (5, 0, Status::Completed));

    let mut streamed = fields.clone();
    streamed["stream"] = true.into();
    let events = user.complete(json!("ABC"), streamed).await;
    let chunks: Vec<Value> = events
        .events()
        .into_iter()
        .filter(|event| *event != "[DONE]")
        .map(|event| serde_json::from_str(event).unwrap())
        .collect();
    let text: String = chunks.iter().map(|chunk| chunk["choices"][0]["text"].as_str().unwrap()).collect();
    assert_eq!(text, "ABCABC", "both choices");
    let without = user.complete(json!("ABC"), json!({"echo": true, "max_tokens": 0})).await.json();
    assert_eq!((&without["choices"][0]["text"], &without["choices"][0]["logprobs"]), (&json!("ABC"), &Value::Null));
    let nothing = user.complete(json!("ABC"), json!({"max_tokens": 0})).await;
    assert_eq!((nothing.status, nothing.param()), (400, json!("max_tokens")));
}

#[tokio::test]
async fn chat_log_probabilities_have_bytes_and_alternatives() {
    let app = TestApp::new().start().await;
    let fields = json!({"logprobs": true, "top_logprobs": 2, "max_tokens": 2, "ignore_eos": true, "seed": 1});
    let reply = app.user("ann", &[]).await.chat_with("hi", fields).await.json();
    let tokens = reply["choices"][0]["logprobs"]["content"].as_array().unwrap();
    assert_eq!(tokens.len(), 2);
    for token in tokens {
        assert!(token["logprob"].as_f64().unwrap() <= 0.0);
        assert_eq!(token["top_logprobs"].as_array().unwrap().len(), 2);
        assert!(!token["bytes"].as_array().unwrap().is_empty());
    }
}

#[tokio::test]
async fn the_model_may_stand_in_the_path_and_must_not_contradict_the_body() {
    let app = TestApp::new().hidden_model("other").start().await;
    let user = app.user("ann", &[]).await;
    let mut body = chat_body("hi", json!({"max_tokens": 1}));
    assert_eq!(user.post("/llm/fake/v1/chat/completions", &body).await.status, 200);
    body["model"] = Value::Null;
    assert_eq!(user.post("/llm/fake/v1/chat/completions", &body).await.status, 200);
    assert_eq!(user.post("/v1/chat/completions", &body).await.param(), "model");
    body["model"] = "other".into();
    let reply = user.post("/llm/fake/v1/chat/completions", &body).await;
    assert_snapshot!(reply.status_and_body(), @r#"400 {"error":{"message":"`model` is `other` in the body and `fake` in the address","type":"invalid_request_error","code":400,"param":"model"}}"#);
    assert_eq!(user.get("/llm/fake/v1/models").await.json()["data"][0]["id"], "fake");
}

#[tokio::test]
async fn wrong_requests_name_the_field() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let reply = user.chat_with("hi", json!({"temperature": 3})).await;
    assert_snapshot!(reply.status_and_body(), @r#"400 {"error":{"message":"`temperature` must be between 0 and 2, found 3","type":"invalid_request_error","code":400,"param":"temperature"}}"#);
    for (fields, param) in [
        (json!({"tools": [{"type": "function"}]}), "tools"),
        (json!({"response_format": {"type": "json_object"}}), "response_format"),
        (json!({"max_tokens": 3, "max_completion_tokens": 4}), "max_tokens"),
        (json!({"logit_bias": {"100000": 1}}), "logit_bias"),
        (json!({"messages": []}), "messages"),
    ] {
        let reply = user.chat_with("hi", fields).await;
        assert_eq!((reply.status, reply.param()), (400, json!(param)), "{}", reply.body);
    }
    let unknown_token = user.complete(json!([99999]), json!({})).await;
    assert_eq!((unknown_token.status, unknown_token.param()), (400, json!("prompt")));
    assert!(app.ledger().await.is_empty(), "a wrong request costs nothing");
}

#[tokio::test]
async fn a_prompt_that_leaves_no_room_is_refused_with_the_figures() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let long = user.chat(&"x".repeat(2047)).await;
    assert_eq!((long.status, long.param()), (400, json!("messages")));
    assert_eq!(long.json()["error"]["detail"]["reason"], "context_length_exceeded");
    assert!(long.message().contains("maximum context length is 2048 tokens"), "{}", long.message());
    let hopeless = user.chat(&"x".repeat(3_000_000)).await;
    assert!(hopeless.message().contains("can never fit"), "{}", hopeless.message());
}

#[tokio::test]
async fn the_request_id_of_the_client_is_echoed_and_ours_is_on_the_ledger() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let request = user.request("POST", "/v1/chat/completions").header("x-request-id", "job-17");
    let reply = Reply::read(request.json(&chat_body("hi", json!({"max_tokens": 1}))).send().await.unwrap()).await;
    assert_eq!(reply.header("x-request-id"), "job-17");
    let row = app.ledger().await.remove(0);
    assert_eq!(row.request.id.to_string(), reply.header("x-millgate-request-id"));
    assert_eq!(row.request.client_request_id.as_deref(), Some("job-17"));

    let odd = user.request("GET", "/v1/me").header("x-request-id", "a b<script>");
    let reply = Reply::read(odd.send().await.unwrap()).await;
    assert_eq!(reply.header("x-request-id"), reply.header("x-millgate-request-id"), "ours in place of a malformed one");
}

#[tokio::test]
async fn an_engine_failure_is_a_server_error_that_is_not_charged() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let error_token = millgate::engine::fake::FakeModel::ERROR_TOKEN;
    let reply = user.complete(json!([65, error_token]), json!({})).await;
    assert_eq!((reply.status, reply.json()["error"]["type"].as_str()), (500, Some("server_error")));
    assert!(reply.message().contains(reply.header("x-millgate-request-id")), "{}", reply.message());
    let row = app.ledger().await.remove(0);
    assert_eq!(
        (row.status.as_str(), row.charged.iter().map(|extent| extent.prompt_tokens).sum::<u64>()),
        ("failed", 0)
    );
    assert_eq!(user.complete(json!([65]), json!({})).await.status, 200, "the next request is answered");
}

#[tokio::test]
async fn an_engine_that_ends_mid_stream_is_an_error_event_before_the_end() {
    let app = TestApp::new()
        .fake(|fake| {
            fake.end_logit = f32::NEG_INFINITY;
            fake.step_delay = std::time::Duration::from_millis(5);
        })
        .start()
        .await;
    let user = app.user("ann", &[]).await;
    let response = user.chat_stream("hello", json!({"max_tokens": 1000})).await;
    assert_eq!(response.status(), 200, "the head leaves with the first token");
    app.engine.shutdown().await;
    let reply = Reply::read(response).await;
    let events = reply.events();
    let error: Value = serde_json::from_str(events[events.len() - 2]).unwrap();
    assert_eq!((&error["error"]["type"], &error["error"]["code"]), (&json!("unavailable_error"), &json!(503)));
    assert_eq!(events[events.len() - 1], "[DONE]");
    assert!(!reply.body.contains("finish_reason\":\""), "nothing claims to be complete: {}", reply.body);
    let row = app.ledger().await.remove(0);
    let charged: u64 = row.charged.iter().map(|extent| extent.prompt_tokens + extent.completion_tokens).sum();
    assert_eq!((row.status.as_str(), charged), ("failed", 0));
}

#[tokio::test]
async fn sixty_four_concurrent_clients_get_to_the_byte_what_each_would_get_alone() {
    let app = TestApp::new().tier("open", |tier| tier).start().await;
    let user = app.key("open").await;
    let asks = (0..64).map(|number| {
        let fields = json!({
            "seed": number, "max_tokens": 5 + number, "n": 1 + number % 2, "temperature": f64::from(number % 5) * 0.4,
            "top_p": 1.0 - f64::from(number % 3) * 0.2, "top_k": number % 7, "min_p": f64::from(number % 2) * 0.05,
            "presence_penalty": f64::from(number % 4) * 0.5 - 1.0, "frequency_penalty": f64::from(number % 3) * 0.3,
            "repetition_penalty": 1.0 + f64::from(number % 2) * 0.2, "logit_bias": {"65": number % 3},
        });
        (format!("client {number} says {}", "hello ".repeat(number as usize % 9)), fields)
    });
    let asks: Vec<(String, Value)> = asks.collect();
    let together =
        futures::future::join_all(asks.iter().map(|(text, fields)| user.chat_with(text, fields.clone()))).await;
    for ((text, fields), reply) in asks.iter().zip(together) {
        assert_eq!(reply.status, 200, "{}", reply.body);
        let alone = user.chat_with(text, fields.clone()).await;
        assert_eq!(reply.json()["choices"], alone.json()["choices"], "{fields}");
    }
}
