//! What the OpenAPI document says of every route alike, read off the router: who may call it, how it can fail, which
//! headers come back.
use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use super::router::{Access, Route};

/// The addresses that name the model in the path answer as these do without it.
const MODEL_PREFIX: &str = "/llm/{model}";

/// Completes the annotated operations of `document` with what `routes` know about them; routes that are not supported yet
/// stay out.
pub(crate) fn complete(document: &mut Value, routes: &[Route]) {
    add_components(&mut document["components"]);
    let annotated = document["paths"].take();
    let mut paths = annotated.clone();
    let mut seen = BTreeSet::new();
    for route in routes.iter().filter(|route| route.is_supported) {
        let method = route.method.as_str().to_lowercase();
        if let Some(plain) = route.path.strip_prefix(MODEL_PREFIX)
            && let Some(operation) = annotated[plain].get(&method)
        {
            paths[route.path][&method] = with_model_in_path(operation);
        }
        // The first route of a path is the main listener's; that one counts.
        if let Some(operation) = paths.get_mut(route.path).and_then(|path| path.get_mut(&method))
            && seen.insert((route.path, method))
        {
            add_rules(operation, route);
        }
    }
    document["paths"] = paths;
}

fn add_components(components: &mut Value) {
    components["securitySchemes"] = json!({
        "bearer": {"type": "http", "scheme": "bearer", "description": "An API key or a token."},
        "x_api_key": {"type": "apiKey", "in": "header", "name": "x-api-key", "description": "An API key."},
    });
    let text = |description: &str| json!({"description": description, "schema": {"type": "string"}});
    let count = |description: &str| json!({"description": description, "schema": {"type": "integer", "minimum": 0}});
    let amount = |description: &str| json!({"description": description, "schema": {"type": "number", "minimum": 0}});
    components["headers"] = json!({
        "x-request-id": text("The client's id of the request if it sent a well-formed one, else ours."),
        "x-millgate-request-id": text("Our id of the request, as the ledger has it."),
        "www-authenticate": text("The scheme to use: `Bearer`."),
        "retry-after": count("Whole seconds to wait, rounded up; absent when waiting does not help."),
        "retry-after-ms": count("The same in milliseconds."),
        "x-ratelimit-limit": amount("Amount of the tightest limit, or of the one that refused; money in US dollars. Absent when unlimited."),
        "x-ratelimit-remaining": amount("What is left of it."),
        "x-ratelimit-reset": count("When it is whole again, in seconds since the Unix epoch."),
        "x-ratelimit-limit-requests": count("Amount of the tightest limit on requests."),
        "x-ratelimit-remaining-requests": count("What is left of it."),
        "x-ratelimit-reset-requests": text("When it is whole again, as OpenAI writes it: `1s`, `6m0s`, `12ms`."),
        "x-ratelimit-limit-tokens": count("Amount of the tightest limit on tokens."),
        "x-ratelimit-remaining-tokens": count("What is left of it."),
        "x-ratelimit-reset-tokens": text("When it is whole again, as OpenAI writes it."),
        "x-millgate-quota-notice": text("Quotas that have reached a threshold: name in quotes, `threshold` and `used` in percent of the amount. Absent below all thresholds."),
        "x-millgate-soft-limit": text("Soft limits that this request is over, names in quotes: it is served with less weight. Absent when it is over none."),
        "ratelimit-policy": text("Every limit that applies, as the IETF draft writes it."),
        "ratelimit": text("What is left of each."),
    });
}

fn with_model_in_path(operation: &Value) -> Value {
    let mut operation = operation.clone();
    let id = operation["operationId"].as_str().unwrap_or_default();
    operation["operationId"] = format!("{id}_of_model").into();
    let summary = operation["summary"].as_str().unwrap_or_default();
    operation["summary"] = format!("{summary}, with the model in the address").into();
    let parameter = json!({
        "name": "model", "in": "path", "required": true, "schema": {"type": "string"},
        "description": "The model; a different one in the body is refused.",
    });
    match operation["parameters"].as_array_mut() {
        Some(parameters) => parameters.insert(0, parameter),
        None => operation["parameters"] = json!([parameter]),
    }
    operation
}

fn add_rules(operation: &mut Value, route: &Route) {
    let schemes = json!([{"bearer": []}, {"x_api_key": []}]);
    if operation.get("security").is_none() {
        operation["security"] = if route.access == Access::Open { json!([]) } else { schemes };
    }
    let takes_body = operation.get("requestBody").is_some();
    let takes_input = takes_body || operation.get("parameters").is_some();
    let is_inference = operation["tags"][0] == "Inference" && takes_body;
    let Some(responses) = operation["responses"].as_object_mut() else { return };
    for (status, description) in failures(route.access, takes_input, takes_body) {
        responses.entry(status).or_insert_with(|| json!({"description": description}));
    }
    for (status, response) in responses {
        // OpenAPI 3.1 has no words for what the events of a stream hold, and a schema of the media type would be read as one.
        if let Some(stream) = response.pointer_mut("/content/text~1event-stream") {
            *stream = json!({});
        }
        let is_failure = status.starts_with(['4', '5']);
        if is_failure && response.get("content").is_none() {
            response["content"] = json!({"application/json": {"schema": {"$ref": "#/components/schemas/ErrorBody"}}});
        }
        add_headers(response, status, is_inference);
    }
}

fn failures(access: Access, takes_input: bool, takes_body: bool) -> Vec<(&'static str, &'static str)> {
    let mut failures = vec![
        ("405", "This address has no such method; `Allow` names those it has."),
        ("431", "Too many headers, or too long ones."),
        ("500", "The server failed; the message names the request."),
    ];
    if takes_input {
        failures.push(("400", "The request is wrong; `param` names the field."));
    }
    if takes_body {
        failures.push(("408", "The body did not arrive in time."));
        failures.push(("413", "The body is too large."));
        failures.push(("415", "The body is compressed; it must be sent as it is."));
    }
    if access != Access::Open {
        failures.push(("401", "No credential, or one that does not hold."));
        failures.push(("429", "Too many failed credentials from this address, or a limit is spent."));
        failures.push(("503", "Stopping, overloaded, or a store does not answer."));
    }
    if access == Access::Admin {
        failures.push(("403", "Only administrators may do this."));
    }
    failures
}

fn add_headers(response: &mut Value, status: &str, is_inference: bool) {
    let mut names = vec!["x-request-id", "x-millgate-request-id"];
    match status {
        "401" => names.push("www-authenticate"),
        "429" | "503" => names.extend(["retry-after", "retry-after-ms"]),
        _ => {}
    }
    if is_inference && matches!(status, "200" | "429") {
        names.extend(["x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset"]);
        names.extend(["x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"]);
        names.extend(["x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"]);
        names.extend(["ratelimit-policy", "ratelimit", "x-millgate-quota-notice"]);
    }
    if is_inference && status == "200" {
        names.push("x-millgate-soft-limit");
    }
    let mut headers = response["headers"].as_object().cloned().unwrap_or_else(Map::new);
    for name in names {
        headers.entry(name).or_insert_with(|| json!({"$ref": format!("#/components/headers/{name}")}));
    }
    response["headers"] = headers.into();
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::openapi::document;
    use crate::api::router::{ops_routes, routes};

    /// Parts of the page that shows the document, not of the contract.
    const PAGE_FILES: &[&str] = &["/docs/", "/docs/{file}"];

    fn operations() -> Vec<(String, &'static Value)> {
        let paths = document()["paths"].as_object().unwrap();
        let of_path = |(path, methods): (&String, &'static Value)| {
            let methods = methods.as_object().unwrap().iter();
            methods
                .map(|(method, operation)| (format!("{} {path}", method.to_uppercase()), operation))
                .collect::<Vec<_>>()
        };
        paths.iter().flat_map(of_path).collect()
    }

    #[test]
    fn the_document_and_the_router_name_the_same_routes() {
        let documented: BTreeSet<String> = operations().into_iter().map(|(name, _)| name).collect();
        let built: BTreeSet<String> = routes(false)
            .into_iter()
            .chain(ops_routes())
            .filter(|route| route.is_supported && !PAGE_FILES.contains(&route.path))
            .map(|route| format!("{} {}", route.method, route.path))
            .collect();
        let (missing, invented) = (&built - &documented, &documented - &built);
        assert!(missing.is_empty(), "routes without #[utoipa::path] in the list of api/openapi.rs: {missing:?}");
        assert!(invented.is_empty(), "documented, but the router has no such route: {invented:?}");
    }

    #[test]
    fn every_operation_says_what_it_is_who_may_call_it_and_how_it_fails() {
        let mut ids = BTreeSet::new();
        for (name, operation) in operations() {
            let id = operation["operationId"].as_str().unwrap();
            assert!(ids.insert(id), "{name}: another operation has the id `{id}`");
            assert!(operation["summary"].as_str().is_some_and(|text| !text.is_empty()), "{name} has no summary");
            assert!(operation["security"].is_array(), "{name} says nothing about credentials");
            let responses = operation["responses"].as_object().unwrap();
            assert!(
                responses.contains_key("500") && responses.keys().any(|status| status < &"400".to_owned()),
                "{name}"
            );
            for (status, response) in responses.iter().filter(|(status, _)| status.as_str() >= "400") {
                assert!(response["content"]["application/json"].is_object(), "{name} {status} has no body");
            }
        }
    }

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(value: &Value) {
            match value {
                Value::Object(map) => {
                    if let Some(Value::String(target)) = map.get("$ref") {
                        assert!(document().pointer(&target[1..]).is_some(), "{target} does not exist");
                    }
                    map.values().for_each(walk);
                }
                Value::Array(list) => list.iter().for_each(walk),
                _ => {}
            }
        }
        walk(document());
    }

    #[test]
    fn what_is_not_supported_yet_is_not_advertised() {
        assert!(routes(false).iter().any(|route| !route.is_supported), "nothing is missing: drop this test");
        for route in routes(false).iter().filter(|route| !route.is_supported) {
            let method = route.method.as_str().to_lowercase();
            assert!(document()["paths"][route.path].get(&method).is_none(), "{method} {}", route.path);
        }
    }

    #[test]
    fn the_version_is_three_one() {
        assert_eq!(document()["openapi"], "3.1.0");
    }
}
