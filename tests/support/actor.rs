//! Somebody who sends requests to the test server.

use std::net::SocketAddr;
use std::sync::Once;

use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use super::app::MODEL;
use super::contract;
use super::reply::Reply;

/// A caller with or without a credential.
#[derive(Clone, Debug)]
pub(crate) struct Actor {
    address: SocketAddr,
    pub(crate) key: Option<String>,
    client: Client,
}

fn http_client() -> Client {
    static PROVIDER: Once = Once::new();
    PROVIDER.call_once(|| {
        // Fails only when there is one already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
    });
    Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap()
}

impl Actor {
    pub(crate) fn new(address: SocketAddr, key: Option<String>) -> Self {
        Self { address, key, client: http_client() }
    }

    /// The same caller with another key.
    pub(crate) fn with_key(&self, key: &str) -> Self {
        Self { key: Some(key.to_owned()), ..self.clone() }
    }

    /// A request that the test completes itself.
    pub(crate) fn request(&self, method: &str, path: &str) -> RequestBuilder {
        let url = format!("http://{}{path}", self.address);
        let request = self.client.request(method.parse().unwrap(), url);
        match &self.key {
            Some(key) => request.bearer_auth(key),
            None => request,
        }
    }

    /// Sends a request without a body.
    pub(crate) async fn send(&self, method: &str, path: &str) -> Reply {
        let reply = Reply::read(self.request(method, path).send().await.unwrap()).await;
        contract::check(method, path, &reply);
        reply
    }

    /// Sends a request with a JSON body.
    pub(crate) async fn send_json(&self, method: &str, path: &str, body: &Value) -> Reply {
        let reply = Reply::read(self.request(method, path).json(body).send().await.unwrap()).await;
        contract::check(method, path, &reply);
        reply
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.send("GET", path).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Reply {
        self.send_json("POST", path, body).await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> Reply {
        self.send_json("PUT", path, body).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Reply {
        self.send("DELETE", path).await
    }

    /// Chats, with a message and nothing else.
    pub(crate) async fn chat(&self, text: &str) -> Reply {
        self.chat_with(text, json!({})).await
    }

    /// Chats, with further fields.
    pub(crate) async fn chat_with(&self, text: &str, fields: Value) -> Reply {
        self.post("/v1/chat/completions", &chat_body(text, fields)).await
    }

    /// Chats and hands over the answer as it comes in.
    pub(crate) async fn chat_stream(&self, text: &str, fields: Value) -> reqwest::Response {
        let mut body = chat_body(text, fields);
        body["stream"] = true.into();
        self.request("POST", "/v1/chat/completions").json(&body).send().await.unwrap()
    }

    /// Completes a raw prompt.
    pub(crate) async fn complete(&self, prompt: Value, fields: Value) -> Reply {
        let mut body = json!({"model": MODEL, "prompt": prompt});
        merge(&mut body, fields);
        self.post("/v1/completions", &body).await
    }
}

/// A chat request with one message.
pub(crate) fn chat_body(text: &str, fields: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": text}]});
    merge(&mut body, fields);
    body
}

fn merge(body: &mut Value, fields: Value) {
    for (name, value) in fields.as_object().unwrap() {
        body[name.as_str()] = value.clone();
    }
}
