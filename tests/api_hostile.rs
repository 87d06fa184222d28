//! Hostile input over HTTP: each gets a clear error, and the server goes on.

use std::time::Duration;

use serde_json::json;
use tokio::io::AsyncWriteExt;

use crate::support::{TestApp, exchange, exchange_slowly};

#[tokio::test]
async fn a_body_of_a_hundred_megabytes_is_refused_with_413() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let reply = user.request("POST", "/v1/chat/completions").body(vec![b'x'; 100 << 20]).send().await.unwrap();
    assert_eq!(reply.status(), 413);
    assert!(reply.text().await.unwrap().contains("larger than 4194304 bytes"));
    let chunks = futures::stream::iter((0..100).map(|_| Ok::<_, std::io::Error>(vec![b'x'; 1 << 20])));
    let unannounced = user.request("POST", "/v1/chat/completions").body(reqwest::Body::wrap_stream(chunks));
    assert_eq!(unannounced.send().await.unwrap().status(), 413);
    assert_eq!(user.chat_with("hi", json!({"max_tokens": 1})).await.status, 200);
}

#[tokio::test]
async fn ten_thousand_headers_are_refused_with_431() {
    let app = TestApp::new().start().await;
    let headers: String = (0..10_000).map(|number| format!("x-{number}: y\r\n")).collect();
    let request = format!("GET /v1/me HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n");
    let answer = exchange(app.address, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    let body: serde_json::Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(body["error"]["type"], "invalid_request_error", "{answer}");
    assert!(answer.contains("\r\nx-millgate-request-id: "), "{answer}");
    let long = format!("GET /v1/me HTTP/1.1\r\nhost: x\r\nx-long: {}\r\n\r\n", "y".repeat(1 << 20));
    let answer = exchange(app.address, long.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 431 "), "{answer}");
    assert_eq!(app.anonymous().get("/livez").await.status, 200);
}

#[tokio::test]
async fn who_speaks_http_2_unasked_is_told_which_version_is_spoken_here() {
    let app = TestApp::new().start().await;
    let opening = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    let answer = exchange(app.address, opening).await;
    assert!(answer.starts_with("HTTP/1.1 505 HTTP Version Not Supported\r\n"), "{answer}");
    assert!(answer.contains("this server speaks HTTP/1.1"), "{answer}");
    assert_eq!(app.anonymous().get("/livez").await.status, 200);
}

#[tokio::test]
async fn answers_to_what_is_no_request_are_counted_like_the_others() {
    let app = TestApp::new().start().await;
    let long = format!("GET /{} HTTP/1.1\r\nhost: x\r\n\r\n", "y".repeat(70_000));
    for bytes in [&b"\0\r\n\r\n"[..], long.as_bytes(), b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"] {
        exchange(app.address, bytes).await;
    }
    let page = app.anonymous().get("/metrics").await.body;
    let counted: Vec<&str> = page.lines().filter(|line| line.contains("route=\"unparsed\"")).collect();
    let of = |status: &str| counted.iter().any(|line| line.contains(status) && line.ends_with(" 1"));
    assert!(of("\"400\"") && of("\"505\"") && counted.len() == 3, "{counted:?}");
}

#[tokio::test]
async fn negative_and_huge_parameters_are_refused_by_name() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    for (field, value) in [
        ("max_tokens", "-1"),
        ("max_tokens", "0"),
        ("max_tokens", "1e30"),
        ("max_tokens", "18446744073709551616"),
        ("n", "-5"),
        ("n", "1000000"),
        ("temperature", "-1"),
        ("temperature", "1e308"),
        ("top_p", "-0.1"),
        ("top_k", "-7"),
        ("top_k", "99999999999"),
        ("seed", "1e40"),
        ("presence_penalty", "1000"),
        ("repetition_penalty", "-1"),
        ("stop", "[1,2]"),
        ("logprobs", "7"),
    ] {
        let body = format!(r#"{{"model":"fake","messages":[{{"role":"user","content":"hi"}}],"{field}":{value}}}"#);
        let reply = user.request("POST", "/v1/chat/completions").body(body).send().await.unwrap();
        assert_eq!(reply.status(), 400, "{field}: {value}");
        let error: serde_json::Value = reply.json().await.unwrap();
        assert_eq!(error["error"]["param"], field, "{error}");
    }
    let huge = user.chat_with("hi", json!({"max_tokens": u32::MAX, "top_k": u32::MAX, "seed": i64::MIN})).await;
    assert!(matches!(huge.status, 200 | 429), "huge but meaningful: {}", huge.body);
}

#[tokio::test]
async fn malformed_bodies_are_refused_with_the_reason() {
    let app = TestApp::new().start().await;
    let user = app.user("ann", &[]).await;
    let nested = format!("{{\"messages\":{}{}}}", "[".repeat(100_000), "]".repeat(100_000));
    for (body, reason) in [
        (b"{\"model\": \"\xff\xfe\"}".to_vec(), "not valid UTF-8"),
        (b"{\"model\": \"\\ud800\"}".to_vec(), "not valid JSON"),
        (b"{".to_vec(), "not valid JSON"),
        (b"[]".to_vec(), "expected a JSON object"),
        (Vec::new(), "empty"),
        (vec![0; 1000], "not valid JSON"),
        (nested.into_bytes(), "recursion limit"),
    ] {
        let reply = user.request("POST", "/v1/chat/completions").body(body).send().await.unwrap();
        assert_eq!(reply.status(), 400);
        let error: serde_json::Value = reply.json().await.unwrap();
        assert!(error["error"]["message"].as_str().unwrap().contains(reason), "{error} should say {reason}");
    }
}

#[tokio::test]
async fn a_field_that_is_there_twice_is_refused_and_so_is_a_compressed_body() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    for (path, body) in [
        ("/admin/v1/users", r#"{"name": "ann", "name": "admin"}"#),
        (
            "/v1/api-keys",
            r#"{"name": "x", "limits": [{"resource": "tokens", "amount": 1, "amount": 2, "window": "1m"}]}"#,
        ),
        ("/v1/completions", r#"{"model": "fake", "prompt": "x", "max_tokens": 1, "max_tokens": 1000}"#),
    ] {
        let reply = admin.request("POST", path).body(body).send().await.unwrap();
        assert_eq!(reply.status(), 400, "{path}");
        assert!(reply.text().await.unwrap().contains("` is there twice"), "{path}");
    }
    for (encoding, status) in [("gzip", 415), ("identity", 201)] {
        let request = admin.request("POST", "/admin/v1/users").header("content-encoding", encoding);
        let reply = request.body(format!(r#"{{"name": "{encoding}"}}"#)).send().await.unwrap();
        assert_eq!(reply.status(), status, "{encoding}");
        assert_eq!(reply.text().await.unwrap().contains("encoded as `gzip`"), encoding == "gzip");
    }
}

#[tokio::test]
async fn addresses_that_make_no_sense_are_answered_in_the_one_shape() {
    let app = TestApp::new().start().await;
    let admin = app.admin();
    for (path, status) in [
        ("/v1/models/%ff%fe", 400),
        ("/admin/v1/tiers/..%2f..%2fetc", 404),
        ("/v1/api-keys/%00", 404),
        ("/v1/api-keys?limit=-1", 400),
        ("/v1/api-keys?color=red", 400),
        ("/admin/v1/usage?start=2026-01-01T00:00:00%2B25:00", 400),
        ("/admin/v1/reconciliation?start=-62135596801", 400),
        ("/nothing/here", 404),
        ("/v1", 404),
    ] {
        let reply = admin.get(path).await;
        assert_eq!(reply.status, status, "{path}: {}", reply.body);
        assert!(reply.json()["error"]["message"].is_string());
    }
    let wrong_method = admin.send("DELETE", "/v1/models").await;
    assert_eq!(
        (wrong_method.status, wrong_method.json()["error"]["type"].as_str()),
        (405, Some("invalid_request_error"))
    );
}

#[tokio::test]
async fn who_sends_slowly_is_cut_off() {
    let app = TestApp::new().api(|api| api.read_timeout = Duration::from_millis(200)).start().await;
    let key = app.user("ann", &[]).await.key.unwrap();
    let silent = exchange_slowly(app.address, b"GET /v1/me HTTP/1.1\r\nhost: x\r\nx-begun:").await;
    assert!(silent.is_empty() || silent.starts_with("HTTP/1.1 408"), "{silent}");
    let head = format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\ncontent-length: 50\r\n\r\n{{"
    );
    let answer = exchange_slowly(app.address, head.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 408 "), "{answer}");
    assert!(answer.contains("did not arrive within"), "{answer}");
}

#[tokio::test]
async fn a_refusal_reaches_a_client_that_is_still_sending() {
    let app = TestApp::new().tier("slow", |tier| tier.limit("1 requests / 1h")).start().await;
    let key = app.key("slow").await.key.unwrap();
    let send = async |path: &str, key: &str| {
        let head = format!(
            "POST {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\nconnection: close\r\ncontent-length: 8000000\r\n\r\n"
        );
        exchange(app.address, &[head.into_bytes(), vec![b' '; 8_000_000]].concat()).await
    };
    let stranger = send("/v1/chat/completions", "nobody").await;
    assert!(stranger.starts_with("HTTP/1.1 401 "), "{stranger}");
    let user = send("/admin/v1/tiers", &key).await;
    assert!(user.starts_with("HTTP/1.1 403 "), "{user}");
    let actor = app.anonymous().with_key(&key);
    assert_eq!(actor.complete(json!([65]), json!({"max_tokens": 1})).await.status, 200);
    let spent = send("/v1/completions", &key).await;
    assert!(spent.starts_with("HTTP/1.1 429 ") && spent.contains("retry-after: "), "{spent}");
}

#[tokio::test]
async fn a_client_that_takes_no_answers_is_cut_off() {
    let app = TestApp::new()
        .api(|api| {
            api.stall_timeout = Duration::from_millis(300);
            api.max_connections = 1;
        })
        .start()
        .await;
    let mut greedy = tokio::net::TcpStream::connect(app.address).await.unwrap();
    let ask = b"GET /metrics HTTP/1.1\r\nhost: x\r\n\r\n".repeat(100);
    // Asks without ever reading, until the server can say no more and stops listening.
    while let Ok(sent) = tokio::time::timeout(Duration::from_millis(100), greedy.write_all(&ask)).await {
        if sent.is_err() {
            break;
        }
    }
    let next = tokio::time::timeout(Duration::from_secs(10), exchange(app.address, PROBE));
    assert!(next.await.expect("the one place is free again").starts_with("HTTP/1.1 200 "));
}

const PROBE: &[u8] = b"GET /livez HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";

#[tokio::test]
async fn bytes_that_are_not_http_end_the_connection_and_nothing_else() {
    let app = TestApp::new().start().await;
    for bytes in [&b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"[..], b"\0\0\0\0\r\n\r\n", b"GET / SPDY/9\r\n\r\n"] {
        let answer = exchange(app.address, bytes).await;
        assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
        assert!(answer.is_empty() || answer.contains(r#""type":"invalid_request_error""#), "{answer}");
    }
    assert_eq!(app.anonymous().get("/livez").await.status, 200);
}
