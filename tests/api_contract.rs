//! The OpenAPI document and its page, as a client meets them.

#![expect(clippy::unwrap_used, reason = "in a test a panic is the report")]

use serde_json::{Value, json};

use crate::support::{Reply, TestApp, contract};

#[tokio::test]
async fn the_document_is_there_without_a_credential_and_names_the_schemes() {
    let app = TestApp::new().start().await;
    let document = app.anonymous().get("/openapi.json").await.json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["components"]["securitySchemes"]["bearer"]["scheme"], "bearer");
    assert_eq!(document["components"]["securitySchemes"]["x_api_key"]["name"], "x-api-key");
    let create = &document["paths"]["/v1/api-keys"]["post"];
    assert_eq!(create["security"], json!([{"bearer": []}, {"x_api_key": []}]));
    assert_eq!(document["paths"]["/livez"]["get"]["security"], json!([]));
}

#[tokio::test]
async fn with_an_operations_listener_the_document_needs_a_credential_and_the_page_moves_there() {
    let app = TestApp::new().api(|config| config.has_ops_listener = true).start().await;
    assert_eq!(app.anonymous().get("/openapi.json").await.status, 401);
    assert_eq!(app.key("free").await.get("/openapi.json").await.status, 200);
    assert_eq!(app.anonymous().get("/docs").await.status, 404);
}

#[tokio::test]
async fn the_page_is_made_of_our_own_files_and_may_ask_nobody_else() {
    let app = TestApp::new().start().await;
    let moved = app.anonymous().get("/docs").await;
    assert_eq!((moved.status, moved.header("location")), (308, "docs/"));
    let page = Reply::read(app.anonymous().request("GET", "/docs/").send().await.unwrap()).await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-security-policy").starts_with("default-src 'self'"));
    assert!(!page.body.contains("http://") && !page.body.contains("https://"), "{}", page.body);
    let sources = page.body.split(['"', '\'']).filter(|part| part.ends_with(".js") || part.ends_with(".css"));
    let mut count = 0;
    for source in sources {
        let path = format!("/docs/{}", source.trim_start_matches("./"));
        let file = app.anonymous().request("GET", &path).send().await.unwrap();
        assert_eq!(file.status(), 200, "{path}");
        count += 1;
    }
    assert!(count >= 4, "{}", page.body);
    let start = Reply::read(app.anonymous().request("GET", "/docs/swagger-initializer.js").send().await.unwrap()).await;
    assert!(
        start.body.contains("../openapi.json") && start.body.contains(r#""validatorUrl": "none""#),
        "{}",
        start.body
    );
    assert_eq!(app.anonymous().get("/docs/nothing.js").await.status, 404);
}

/// A request body made of the examples of a schema: what the page fills in for whoever tries a route out.
fn example(schema: &Value) -> Value {
    if let Some(example) = schema.get("example") {
        return example.clone();
    }
    if let Some(target) = schema.get("$ref") {
        let target = target.as_str().unwrap();
        return example(millgate::api::openapi_document().pointer(&target[1..]).unwrap());
    }
    if let Some(parts) = schema.get("allOf") {
        let parts = parts.as_array().unwrap().iter().map(example);
        let fields = parts.flat_map(|part| part.as_object().unwrap().clone());
        return Value::Object(fields.collect());
    }
    let with_example = |(name, part): (&String, &Value)| {
        let value = part.get("example").cloned().or_else(|| Some(example(part)).filter(|value| !value.is_null()))?;
        Some((name.clone(), value))
    };
    match schema.get("properties") {
        Some(properties) => Value::Object(properties.as_object().unwrap().iter().filter_map(with_example).collect()),
        None => Value::Null,
    }
}

#[tokio::test]
async fn the_examples_work() {
    let app = TestApp::new().start().await;
    app.user("ann", &[]).await;
    let paths = millgate::api::openapi_document()["paths"].as_object().unwrap();
    let mut tried = 0;
    for (path, operation) in paths.iter().filter_map(|(path, item)| Some((path, item.get("post")?))) {
        let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
        if path.contains('{') || schema.is_null() {
            continue;
        }
        let mut body = example(schema);
        if body.get("model").is_some() {
            body["model"] = crate::support::MODEL.into();
        }
        let reply = app.admin().post(path, &body).await;
        assert!(reply.status < 300 || reply.status == 409, "{path} with {body}: {}", reply.status_and_body());
        tried += 1;
    }
    assert!(tried >= 8, "{tried}");
}

#[tokio::test]
async fn the_details_of_health_are_for_operators() {
    let app = TestApp::new().start().await;
    assert_eq!(app.anonymous().get("/health/details").await.status, 401);
    assert_eq!(app.key("free").await.get("/health/details").await.status, 403);
    let details = app.admin().get("/health/details").await.json();
    assert_eq!((&details["status"], &details["store"]["status"]), (&json!("ok"), &json!("ok")));
    assert_eq!((&details["models"][0]["name"], &details["models"][0]["status"]), (&json!("fake"), &json!("ready")));
}

#[tokio::test]
async fn figures_are_plain_prometheus_text_unless_openmetrics_is_asked_for() {
    let app = TestApp::new().tier("slow", |tier| tier.limit("1 requests / 1h")).start().await;
    let user = app.key("slow").await;
    assert_eq!(user.chat("hello").await.status, 200);
    assert_eq!(user.chat("again").await.status, 429);
    let page = app.anonymous().get("/metrics").await;
    assert_eq!(page.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    for line in [
        "vllm:num_requests_running 0",
        "vllm:request_success_total{engine=\"0\",model_name=\"fake\",finished_reason=\"stop\"} 1",
        "vllm:request_params_n_count{engine=\"0\",model_name=\"fake\"} 1",
        "vllm:request_queue_time_seconds_count{engine=\"0\",model_name=\"fake\"} 1",
        "authorized_calls{tier=\"slow\",model=\"fake\"} 1",
        "limited_calls{tier=\"slow\",model=\"\"} 1",
    ] {
        assert!(page.body.lines().any(|found| found == line), "no line `{line}` in\n{}", page.body);
    }
    assert!(!page.body.contains("slow-user"), "users are no labels on the open listener");
    let used = app.ledger().await[0].usage;
    let tokens = used.prompt_tokens + used.completion_tokens;
    assert!(
        page.body.contains(&format!("authorized_hits{{tier=\"slow\",model=\"fake\"}} {tokens}\n")),
        "{}",
        page.body
    );
    let wish =
        app.anonymous().request("GET", "/metrics").header("accept", "application/openmetrics-text; version=1.0.0");
    let page = Reply::read(wish.send().await.unwrap()).await;
    assert_eq!(page.header("content-type"), "application/openmetrics-text; version=1.0.0; charset=utf-8");
    assert!(page.body.ends_with("# EOF\n"));
}

#[test]
fn the_checker_of_answers_sees_what_is_wrong() {
    let schema = json!({"$ref": "#/components/schemas/User"});
    let good = json!({"object": "user", "id": "1", "name": "ann", "issuer": "local", "groups": [], "active": true, "created_at": "x"});
    let faults = |change: &dyn Fn(&mut Value)| {
        let mut value = good.clone();
        change(&mut value);
        let mut faults = Vec::new();
        contract::validate(&schema, &value, "it", &mut faults);
        faults
    };
    assert!(faults(&|_| ()).is_empty());
    for (change, fault) in [
        (&(|user: &mut Value| user["active"] = "yes".into()) as &dyn Fn(&mut Value), "it.active should be"),
        (&|user| user["colour"] = "red".into(), "it has a field `colour`"),
        (&|user| user["groups"] = json!([1]), "it.groups[0] should be"),
        (&|user| drop(user.as_object_mut().unwrap().remove("id")), "it has no field `id`"),
        (&|user| user["object"] = "tier".into(), "it.object should be one of"),
    ] {
        assert!(faults(change).iter().any(|found| found.starts_with(fault)), "{fault}: {:?}", faults(change));
    }
}
