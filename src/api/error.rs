//! The one error shape, and the only place that knows status codes.
use std::fmt::Display;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde_json::Value;

use crate::telemetry::redact;

/// What went wrong, in the words of the contract.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Invalid,
    Unauthenticated,
    Forbidden,
    NotFound,
    MethodNotAllowed,
    TimedOut,
    Conflict,
    TooLarge,
    UnsupportedEncoding,
    TooManyHeaders,
    AddressTooLong,
    HttpVersion,
    RateLimited,
    QuotaExceeded,
    Internal,
    Overloaded,
    Unavailable,
}

impl Kind {
    fn status(self) -> StatusCode {
        match self {
            Self::Invalid => StatusCode::BAD_REQUEST,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::TimedOut => StatusCode::REQUEST_TIMEOUT,
            Self::Conflict => StatusCode::CONFLICT,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::UnsupportedEncoding => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::TooManyHeaders => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::AddressTooLong => StatusCode::URI_TOO_LONG,
            Self::HttpVersion => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::RateLimited | Self::QuotaExceeded => StatusCode::TOO_MANY_REQUESTS,
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
            Self::Overloaded | Self::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        }
    }

    fn type_name(self) -> &'static str {
        match self {
            Self::Invalid
            | Self::TooLarge
            | Self::UnsupportedEncoding
            | Self::TooManyHeaders
            | Self::AddressTooLong
            | Self::HttpVersion
            | Self::MethodNotAllowed
            | Self::TimedOut => "invalid_request_error",
            Self::Unauthenticated => "authentication_error",
            Self::Forbidden => "authorization_error",
            Self::NotFound => "not_found_error",
            Self::Conflict => "conflict_error",
            Self::RateLimited => "rate_limit_error",
            Self::QuotaExceeded => "quota_error",
            Self::Internal => "server_error",
            Self::Overloaded => "overloaded_error",
            Self::Unavailable => "unavailable_error",
        }
    }
}

/// An error as a client sees it: as an answer of its own, or as an event of a stream that has begun.
#[derive(Clone, Debug)]
pub(crate) struct ApiError(Box<Parts>);

#[derive(Clone, Debug)]
struct Parts {
    kind: Kind,
    message: String,
    param: Option<String>,
    detail: Option<Value>,
    retry_after: Option<Duration>,
    should_retry: Option<bool>,
    headers: HeaderMap,
}

#[derive(Serialize)]
struct Envelope<'a> {
    error: Shape<'a>,
}

#[derive(Serialize)]
struct Shape<'a> {
    message: &'a str,
    #[serde(rename = "type")]
    type_name: &'static str,
    code: u16,
    param: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    detail: Option<&'a Value>,
}

impl ApiError {
    /// An error of this kind with a message and nothing else.
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            kind,
            message: message.into(),
            param: None,
            detail: None,
            retry_after: None,
            should_retry: None,
            headers: HeaderMap::new(),
        }))
    }

    /// 400: the request is wrong, in the field `param` if one is to blame.
    pub(crate) fn invalid(param: Option<&str>, message: impl Into<String>) -> Self {
        let mut error = Self::new(Kind::Invalid, message);
        error.0.param = param.map(str::to_owned);
        error
    }

    /// 401: no credential, or one that does not hold.
    pub(crate) fn unauthenticated(reason: &str) -> Self {
        let mut error = Self::new(Kind::Unauthenticated, format!("Invalid or expired token: {reason}"));
        error.0.headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        error
    }

    /// 403: authenticated, but not allowed to.
    pub(crate) fn forbidden(what: impl Display) -> Self {
        Self::new(Kind::Forbidden, format!("Access denied. {what}"))
    }

    /// 403: the tier does not hold this model.
    pub(crate) fn model_forbidden() -> Self {
        Self::forbidden("Your tier does not have permission to access this model.")
    }

    /// 404: `thing` does not exist, or not for this caller.
    pub(crate) fn not_found(thing: impl Display) -> Self {
        Self::new(Kind::NotFound, format!("{thing} not found"))
    }

    /// 413: the body is larger than allowed.
    pub(crate) fn body_too_large(most_bytes: usize) -> Self {
        Self::new(Kind::TooLarge, format!("the request body is larger than {most_bytes} bytes"))
    }

    /// 500: our own fault; the log has the details, the client the request id.
    pub(crate) fn internal() -> Self {
        Self::new(Kind::Internal, "the server failed on this request")
    }

    /// 503: too much to do right now.
    pub(crate) fn overloaded(retry_after: Duration) -> Self {
        Self::new(Kind::Overloaded, "The server has more requests than it can queue. Please retry later.")
            .with_retry_after(retry_after)
    }

    /// 503: something this request needs is not there right now.
    pub(crate) fn unavailable(what: impl Into<String>, retry_after: Duration) -> Self {
        Self::new(Kind::Unavailable, what).with_retry_after(retry_after)
    }

    /// Adds `Retry-After` and `retry-after-ms`.
    pub(crate) fn with_retry_after(mut self, retry_after: Duration) -> Self {
        self.0.retry_after = Some(retry_after);
        self
    }

    /// Names the field to blame.
    pub(crate) fn with_param(mut self, param: &str) -> Self {
        self.0.param = Some(param.to_owned());
        self
    }

    /// Tells clients whether repeating helps at all.
    pub(crate) fn with_should_retry(mut self, should_retry: bool) -> Self {
        self.0.should_retry = Some(should_retry);
        self
    }

    /// Adds the machine-readable part.
    pub(crate) fn with_detail(mut self, detail: Value) -> Self {
        self.0.detail = Some(detail);
        self
    }

    /// Adds headers of the answer; in a stream they are lost.
    pub(crate) fn with_headers(mut self, headers: HeaderMap) -> Self {
        self.0.headers.extend(headers);
        self
    }

    /// The field to blame.
    pub(crate) fn param(&self) -> Option<&str> {
        self.0.param.as_deref()
    }

    /// What the client reads.
    pub(crate) fn message(&self) -> &str {
        &self.0.message
    }

    /// The reason for machines, as metrics count it.
    pub(crate) fn reason(&self) -> &str {
        let reason = self.0.detail.as_ref().and_then(|detail| detail.get("reason")?.as_str());
        reason.unwrap_or(self.0.kind.type_name())
    }

    /// The HTTP status as a number.
    pub(crate) fn status(&self) -> StatusCode {
        self.0.kind.status()
    }

    /// The body: also what an error event of a stream carries.
    pub(crate) fn to_json(&self) -> String {
        // What a client sent may stand in a message; a credential among it goes no further, not even back.
        let (message, param) = (redact(&self.0.message), self.param().map(redact));
        let shape = Shape {
            message: &message,
            type_name: self.0.kind.type_name(),
            code: self.status().as_u16(),
            param: param.as_deref(),
            detail: self.0.detail.as_ref(),
        };
        serde_json::to_string(&Envelope { error: shape }).expect("strings and JSON values always serialise")
    }

    /// Adds the request id to the message of an internal error, once, so that an operator can find the log line.
    pub(crate) fn naming_request(mut self, id: impl Display) -> Self {
        let name = format!(" (request {id})");
        if self.0.kind == Kind::Internal && !self.0.message.ends_with(&name) {
            self.0.message.push_str(&name);
        }
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let mut response = Response::new(Body::from(self.to_json()));
        *response.status_mut() = self.status();
        response.extensions_mut().insert(ErrorReason(self.reason().to_owned()));
        let headers = response.headers_mut();
        headers.extend(self.0.headers);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Some(wait) = self.0.retry_after {
            insert_retry_after(headers, wait);
        }
        if let Some(should_retry) = self.0.should_retry {
            let value = if should_retry { "true" } else { "false" };
            headers.insert(HeaderName::from_static("x-should-retry"), HeaderValue::from_static(value));
        }
        response
    }
}

/// The reason of an error, for those who see only the answer.
#[derive(Clone, Debug)]
pub(crate) struct ErrorReason(pub(crate) String);

/// Brings answers that axum or a layer made by itself into the one shape.
pub(crate) fn in_one_shape(response: Response) -> Response {
    let status = response.status();
    let is_ours = response.headers().get(header::CONTENT_TYPE).is_some_and(|kind| kind == "application/json");
    if is_ours || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }
    let kind = match status {
        StatusCode::NOT_FOUND => Kind::NotFound,
        StatusCode::METHOD_NOT_ALLOWED => Kind::MethodNotAllowed,
        StatusCode::PAYLOAD_TOO_LARGE => Kind::TooLarge,
        status if status.is_client_error() => Kind::Invalid,
        _ => Kind::Internal,
    };
    let message = status.canonical_reason().unwrap_or("the request is malformed").to_lowercase();
    ApiError::new(kind, message).into_response()
}

/// Whole seconds, rounded up, so that waiting that long is always enough; and the exact milliseconds, rounded up too.
fn insert_retry_after(headers: &mut HeaderMap, wait: Duration) {
    let millis = retry_after_ms(wait);
    headers.insert(header::RETRY_AFTER, HeaderValue::from(millis.div_ceil(1000)));
    headers.insert(HeaderName::from_static("retry-after-ms"), HeaderValue::from(millis));
}

/// The wait in milliseconds, rounded up.
pub(crate) fn retry_after_ms(wait: Duration) -> u64 {
    u64::try_from(wait.as_micros().div_ceil(1000)).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    #[test]
    fn the_body_has_the_shape_of_the_contract() {
        let error = ApiError::invalid(Some("n"), "`n` must be between 1 and 128, found 0");
        assert_snapshot!(error.to_json(), @r#"{"error":{"message":"`n` must be between 1 and 128, found 0","type":"invalid_request_error","code":400,"param":"n"}}"#);
        let error = ApiError::new(Kind::RateLimited, "slow").with_detail(serde_json::json!({"used": 5}));
        assert_snapshot!(error.to_json(), @r#"{"error":{"message":"slow","type":"rate_limit_error","code":429,"param":null,"detail":{"used":5}}}"#);
    }

    #[test]
    fn retry_after_is_rounded_up_in_both_headers() {
        let response = ApiError::overloaded(Duration::from_micros(41_723_001)).into_response();
        assert_eq!(response.headers()["retry-after"], "42");
        assert_eq!(response.headers()["retry-after-ms"], "41724");
    }

    #[test]
    fn an_internal_error_names_its_request_once() {
        let error = ApiError::internal().naming_request("7").naming_request("7");
        assert_eq!(error.message(), "the server failed on this request (request 7)");
    }

    #[test]
    fn a_missing_credential_is_answered_with_the_scheme_to_use() {
        let response = ApiError::unauthenticated("no credential was given").into_response();
        assert_eq!(
            (response.status().as_u16(), &response.headers()["www-authenticate"]),
            (401, &HeaderValue::from_static("Bearer"))
        );
    }
}
