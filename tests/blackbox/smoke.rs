//! S1 to S4, X11: the server is there, lists its models, answers, and lets browsers in.

use serde_json::json;

use crate::support::{Reply, TestApp};

#[tokio::test]
async fn s1_health_answers_without_a_credential() {
    let app = TestApp::new().start().await;
    for path in ["/health", "/livez", "/readyz"] {
        assert_eq!(app.anonymous().get(path).await.status, 200, "{path}");
    }
}

#[tokio::test]
async fn s2_nobody_mints_a_key_or_a_token_without_a_credential() {
    let app = TestApp::new().start().await;
    let keys = async || app.admin().get("/admin/v1/api-keys").await.json()["data"].as_array().unwrap().len();
    let before = keys().await;
    for path in ["/v1/api-keys", "/v1/tokens"] {
        let reply = app.anonymous().post(path, &json!({"name": "mine"})).await;
        assert_eq!((reply.status, reply.header("www-authenticate")), (401, "Bearer"), "{path}");
        assert_eq!(reply.json()["error"]["type"], "authentication_error");
    }
    assert_eq!(keys().await, before);
}

#[tokio::test]
async fn s3_models_are_listed_as_openai_lists_them() {
    let app = TestApp::new().start().await;
    let list = app.user("ann", &[]).await.get("/v1/models").await;
    assert_eq!((list.status, &list.json()["object"]), (200, &json!("list")));
    let models = list.json()["data"].as_array().unwrap().clone();
    assert!(!models.is_empty());
    for model in models {
        assert_eq!(model["object"], "model");
        assert!(model["id"].as_str().is_some_and(|id| !id.is_empty()), "{model}");
        assert_eq!(model["ready"], true);
        assert_eq!(model["owned_by"], "llm");
        assert!(model["created"].as_u64().is_some_and(|at| at > 1_600_000_000), "{model}");
    }
}

#[tokio::test]
async fn s4_chat_and_legacy_completions_answer_with_choices_and_usage() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let chat = user.chat_with("hello", json!({"max_tokens": 8, "ignore_eos": true})).await;
    let legacy = user.complete(json!("hello"), json!({"max_tokens": 8, "ignore_eos": true})).await;
    for (reply, object) in [(&chat, "chat.completion"), (&legacy, "text_completion")] {
        assert_eq!((reply.status, &reply.json()["object"]), (200, &json!(object)));
        assert!(!reply.text().is_empty());
        let usage = &reply.json()["usage"];
        assert_eq!(usage["completion_tokens"], 8);
        let sum = usage["prompt_tokens"].as_u64().unwrap() + 8;
        assert_eq!(usage["total_tokens"], sum);
    }
    assert_eq!(chat.json()["choices"][0]["message"]["role"], "assistant");
}

#[tokio::test]
async fn x11_a_preflight_from_an_allowed_origin_is_204_without_a_key() {
    let app = TestApp::new().api(|api| api.cors_origins = vec!["https://chat.example.com".into()]).start().await;
    let request = app.anonymous().request("OPTIONS", "/v1/chat/completions");
    let request = request
        .header("origin", "https://chat.example.com")
        .header("access-control-request-method", "POST")
        .header("access-control-request-headers", "authorization, content-type");
    let reply = Reply::read(request.send().await.unwrap()).await;
    assert_eq!((reply.status, reply.body.as_str()), (204, ""));
    assert_eq!(reply.header("access-control-allow-origin"), "https://chat.example.com");
    assert!(reply.header("access-control-allow-headers").to_lowercase().contains("authorization"));
    let call = app.anonymous().request("POST", "/v1/chat/completions").header("origin", "https://chat.example.com");
    assert_eq!(Reply::read(call.send().await.unwrap()).await.status, 401, "the call itself needs a credential");
}
