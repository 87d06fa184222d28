//! Traces as a collector gets them.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use std::collections::BTreeMap;
use std::time::Duration;

use axum::body::Bytes;
use axum::http::HeaderMap;
use millgate::telemetry::{Tracer, TracesConfig};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message as _;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Handle;

use crate::support::{Collector, TestApp};

fn spans(collector: &Collector) -> Vec<Span> {
    let messages = collector.messages();
    let decode = |(_, body): &(_, _)| ExportTraceServiceRequest::decode(Bytes::clone(body)).unwrap();
    let resources = messages.iter().map(decode).flat_map(|message| message.resource_spans);
    resources.flat_map(|resource| resource.scope_spans).flat_map(|scope| scope.spans).collect()
}

fn tracer(endpoint: &str) -> Tracer {
    let headers = BTreeMap::from([("authorization".to_owned(), "Basic secret".to_owned())]);
    let config = TracesConfig { endpoint: Some(endpoint.to_owned()), headers, sample_ratio: 1.0 };
    Tracer::start(&config, Duration::from_secs(1_700_000_000), &Handle::current()).unwrap()
}

fn attribute(span: &Span, name: &str) -> Option<Value> {
    span.attributes.iter().find(|attribute| attribute.key == name)?.value.clone()?.value
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_leaves_a_span_with_its_stages_below_and_nothing_of_what_was_said() {
    let (collector, endpoint) = Collector::start().await;
    let tracer = tracer(&endpoint);
    let app = TestApp::new().tracer(tracer.clone()).start().await;
    let user = app.user("ann-of-the-traces", &[]).await;
    let body = crate::support::chat_body("the secret word is xylophone", json!({"max_tokens": 5, "stop": ["zebra"]}));
    let request = user.request("POST", "/v1/chat/completions").json(&body);
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    assert_eq!(request.header("traceparent", parent).send().await.unwrap().status(), 200);
    app.stop().await;
    tracer.shutdown(Duration::from_secs(5)).await;

    let spans = spans(&collector);
    let root = spans.iter().find(|span| span.name == "chat fake").unwrap();
    assert_eq!(hex(&root.trace_id), "0af7651916cd43dd8448eb211c80319c", "the caller's trace goes on");
    assert_eq!(hex(&root.parent_span_id), "b7ad6b7169203331");
    assert_eq!(attribute(root, "gen_ai.request.model"), Some(Value::StringValue("fake".to_owned())));
    assert_eq!(attribute(root, "gen_ai.request.max_tokens"), Some(Value::IntValue(5)));
    assert!(matches!(attribute(root, "gen_ai.usage.output_tokens"), Some(Value::IntValue(1..=5))));
    let below: Vec<&str> =
        spans.iter().filter(|span| span.parent_span_id == root.span_id).map(|span| span.name.as_str()).collect();
    for stage in ["authenticate", "tokenize", "admit", "queue", "prefill", "decode", "settle"] {
        assert!(below.contains(&stage), "no `{stage}` among {below:?}");
    }
    for span in &spans {
        assert!(span.end_time_unix_nano >= span.start_time_unix_nano, "{}", span.name);
        assert!(span.start_time_unix_nano >= root.start_time_unix_nano, "{}", span.name);
    }
    let messages = collector.messages();
    assert!(messages.iter().all(|(headers, _)| headers["authorization"] == "Basic secret"));
    let key = user.key.unwrap();
    for secret in ["xylophone", "zebra", "ann-of-the-traces", &key] {
        let holds = |(_, body): &(HeaderMap, Bytes)| body.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!messages.iter().any(holds), "`{secret}` is in a trace");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_refused_leaves_a_span_with_status_and_reason_and_no_secret() {
    let (collector, endpoint) = Collector::start().await;
    let tracer = tracer(&endpoint);
    let app = TestApp::new().tracer(tracer.clone()).tier("slow", |tier| tier.limit("1 requests / 1h")).start().await;
    let user = app.key("slow").await;
    let wrong = "sk-mg_not-a-key-but-a-secret";
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
    let mut expected = vec![("chat fake".to_owned(), None, None)];
    assert_eq!(user.chat("hello").await.status, 200);
    for (actor, path, body, status, reason) in [
        (app.anonymous().with_key(wrong), "/v1/chat/completions", json!({}), 401, "authentication_error"),
        (user.clone(), "/v1/completions", json!({"model": "fake", "prompt": "xylophone"}), 429, "requests_exceeded"),
        (app.admin(), "/llm/xylophone/v1/chat/completions", json!({"messages": 1}), 400, "invalid_request_error"),
        (app.admin(), "/llm/xylophone/v1/completions", json!({"prompt": "x"}), 404, "not_found_error"),
    ] {
        let request = actor.request("POST", path).header("traceparent", parent).json(&body);
        assert_eq!(request.send().await.unwrap().status(), status, "{path}");
        let operation = if path.contains("chat") { "chat" } else { "text_completion" };
        expected.push((operation.to_owned(), Some(i64::from(status)), Some(reason.to_owned())));
    }
    assert_eq!(user.get("/v1/nowhere").await.status, 404, "which is no request for generation");
    app.stop().await;
    tracer.shutdown(Duration::from_secs(5)).await;

    let roots =
        spans(&collector).into_iter().filter(|span| span.name.starts_with(['c', 't']) && span.name != "tokenize");
    let mut found: Vec<_> = roots
        .map(|span| {
            let status = attribute(&span, "http.response.status_code");
            let reason = attribute(&span, "error.type");
            assert!(status.is_none() || hex(&span.parent_span_id) == "b7ad6b7169203331", "linked to the caller's");
            (span.name, status.map(number), reason.map(text))
        })
        .collect();
    found.sort();
    expected.sort();
    assert_eq!(found, expected);
    let messages = collector.messages();
    let key = user.key.unwrap();
    for secret in ["xylophone", wrong, &key] {
        let holds = |(_, body): &(HeaderMap, Bytes)| body.windows(secret.len()).any(|part| part == secret.as_bytes());
        assert!(!messages.iter().any(holds), "`{secret}` is in a trace");
    }
}

fn number(value: Value) -> i64 {
    let Value::IntValue(number) = value else { panic!("{value:?} is no whole number") };
    number
}

fn text(value: Value) -> String {
    let Value::StringValue(text) = value else { panic!("{value:?} is no text") };
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_collector_that_is_away_costs_traces_and_no_request() {
    // A port that was free a moment ago.
    let endpoint = format!("http://{}", TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap());
    let tracer = tracer(&endpoint);
    let app = TestApp::new().tracer(tracer.clone()).start().await;
    let user = app.user("ann", &[]).await;
    for _ in 0..20 {
        assert_eq!(user.chat("hello").await.status, 200);
    }
    app.stop().await;
    tracer.shutdown(Duration::from_secs(2)).await;
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
