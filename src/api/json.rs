//! JSON answers of our own endpoints, and the words their lists and times are written with.
use axum::body::Body;
use axum::http::{HeaderValue, StatusCode, header};
use axum::response::Response;
use jiff::Timestamp;
use serde::Serialize;
use serde_json::{Value, json};

/// A document with its status.
pub(crate) fn json_response(status: StatusCode, document: &impl Serialize) -> Response {
    let body = serde_json::to_vec(document).expect("documents of strings and numbers always serialise");
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// A list as every list of ours looks.
pub(crate) fn list(data: Vec<Value>, next_cursor: Option<String>) -> Value {
    json!({"object": "list", "data": data, "has_more": next_cursor.is_some(), "next_cursor": next_cursor})
}

/// A moment in RFC 3339, in UTC.
///
/// # Units
/// Microseconds since the Unix epoch; moments that no calendar has are `null`.
pub(crate) fn moment(us: i64) -> Value {
    Timestamp::from_microsecond(us).map_or(Value::Null, |time| time.to_string().into())
}
