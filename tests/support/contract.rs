//! Holds every answer of the test server against the OpenAPI document: status, content type, and each field.

use std::collections::BTreeSet;

use millgate::api::openapi_document;
use serde_json::Value;

use super::reply::Reply;

/// Keywords that say nothing a value could break, or that only requests need.
const NOTES: &[&str] = &["description", "title", "example", "examples", "format", "pattern", "default", "deprecated"];

/// Panics when `reply` is not what the document promises of this route; routes that it does not name are left alone.
pub(crate) fn check(method: &str, path: &str, reply: &Reply) {
    let path = path.split('?').next().unwrap();
    let Some(operation) = operation(method, path) else { return };
    let name = format!("{method} {path}");
    let Some(answer) = operation["responses"].get(reply.status.to_string()) else {
        panic!("{name} answered {}, which its #[utoipa::path] does not name: {}", reply.status, reply.body);
    };
    let kind = reply.header("content-type").split(';').next().unwrap().trim();
    let Some(content) = answer.get("content") else {
        assert!(reply.body.is_empty(), "{name} {}: the document knows of no body: {}", reply.status, reply.body);
        return;
    };
    let Some(media) = content.get(kind) else {
        panic!("{name} {}: `{kind}` is not a documented content type", reply.status);
    };
    if kind == "application/json" {
        let mut faults = Vec::new();
        validate(&media["schema"], &reply.json(), "the answer", &mut faults);
        assert!(
            faults.is_empty(),
            "{name} {} is not as documented in src/api/schema:\n  {}\n{}",
            reply.status,
            faults.join("\n  "),
            reply.body
        );
    }
}

/// The operation whose path pattern fits; literal segments win over parameters.
pub(crate) fn operation(method: &str, path: &str) -> Option<&'static Value> {
    let fits = |pattern: &str| {
        let (pattern, path): (Vec<_>, Vec<_>) = (pattern.split('/').collect(), path.split('/').collect());
        pattern.len() == path.len() && pattern.iter().zip(&path).all(|(a, b)| a == b || a.starts_with('{'))
    };
    let paths = openapi_document()["paths"].as_object().unwrap();
    let (_, item) =
        paths.iter().filter(|(pattern, _)| fits(pattern)).min_by_key(|(pattern, _)| pattern.matches('{').count())?;
    item.get(method.to_lowercase())
}

/// Collects what is wrong with `value`. Objects with named properties hold no others unless the schema says so.
pub(crate) fn validate(schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
    let before = faults.len();
    keywords(schema, value, at, faults);
    if faults.len() == before
        && let (Some(known), Value::Object(map)) = (known_properties(schema), value)
    {
        let unknown = map.keys().filter(|name| !known.contains(name.as_str()));
        faults.extend(unknown.map(|name| format!("{at} has a field `{name}` that is not documented")));
    }
}

fn keywords(schema: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
    for (keyword, rule) in schema.as_object().unwrap() {
        match keyword.as_str() {
            "$ref" => keywords(resolve(rule), value, at, faults),
            "allOf" => rule.as_array().unwrap().iter().for_each(|part| keywords(part, value, at, faults)),
            "oneOf" | "anyOf" => {
                let fits = |part: &Value| {
                    let mut faults = Vec::new();
                    validate(part, value, at, &mut faults);
                    faults.is_empty()
                };
                if !rule.as_array().unwrap().iter().any(fits) {
                    faults.push(format!("{at} fits none of the documented forms: {value}"));
                }
            }
            "type" => {
                let kinds = rule.as_array().cloned().unwrap_or_else(|| vec![rule.clone()]);
                if !kinds.iter().any(|kind| is_of_kind(value, kind.as_str().unwrap())) {
                    faults.push(format!("{at} should be {rule}, found {value}"));
                }
            }
            "enum" => {
                if !rule.as_array().unwrap().contains(value) {
                    faults.push(format!("{at} should be one of {rule}, found {value}"));
                }
            }
            "required" => {
                let names = rule.as_array().unwrap().iter().map(|name| name.as_str().unwrap());
                if let Value::Object(map) = value {
                    let missing = names.filter(|name| !map.contains_key(*name));
                    faults.extend(missing.map(|name| format!("{at} has no field `{name}`")));
                }
            }
            "properties" => {
                for (name, part) in rule.as_object().unwrap() {
                    if let Some(inner) = value.get(name) {
                        validate(part, inner, &format!("{at}.{name}"), faults);
                    }
                }
            }
            "additionalProperties" => {
                if let (Value::Object(_), Value::Object(map)) = (rule, value) {
                    let named = &schema["properties"];
                    for (name, inner) in map.iter().filter(|(name, _)| named.get(name).is_none()) {
                        validate(rule, inner, &format!("{at}.{name}"), faults);
                    }
                }
            }
            "items" => {
                for (index, inner) in value.as_array().into_iter().flatten().enumerate() {
                    validate(rule, inner, &format!("{at}[{index}]"), faults);
                }
            }
            "minimum" | "maximum" => bounds(keyword, rule, value, at, faults),
            "minItems" | "maxItems" | "minLength" | "maxLength" | "propertyNames" => {}
            note => assert!(NOTES.contains(&note), "the checker does not know the keyword `{note}` at {at}: {schema}"),
        }
    }
}

fn bounds(keyword: &str, rule: &Value, value: &Value, at: &str, faults: &mut Vec<String>) {
    let (Some(bound), Some(number)) = (rule.as_f64(), value.as_f64()) else { return };
    if (keyword == "minimum" && number < bound) || (keyword == "maximum" && number > bound) {
        faults.push(format!("{at} is {number}, outside its {keyword} {bound}"));
    }
}

fn is_of_kind(value: &Value, kind: &str) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        other => panic!("`{other}` is not a type of JSON schema"),
    }
}

fn resolve(target: &Value) -> &'static Value {
    let target = target.as_str().unwrap();
    openapi_document().pointer(&target[1..]).unwrap_or_else(|| panic!("{target} does not exist"))
}

/// The names an object may have, all parts of it together; `None` when it may have any.
fn known_properties(schema: &Value) -> Option<BTreeSet<&str>> {
    if let Some(target) = schema.get("$ref") {
        return known_properties(resolve(target));
    }
    if let Some(parts) = schema.get("allOf") {
        let parts = parts.as_array().unwrap().iter().map(known_properties).collect::<Option<Vec<_>>>()?;
        return Some(parts.into_iter().flatten().collect());
    }
    let is_open = schema.get("additionalProperties").is_some_and(|rule| *rule != Value::Bool(false));
    let properties = schema.get("properties").filter(|_| !is_open)?;
    Some(properties.as_object().unwrap().keys().map(String::as_str).collect())
}
