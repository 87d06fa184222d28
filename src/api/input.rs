//! What our own endpoints take: bodies as fields, limits in either form, pages of lists.
use axum::extract::Request;
use jiff::Timestamp;
use serde_json::Value;

use super::body::read_body;
use super::error::ApiError;
use super::fields::{Fields, kind};
use super::state::Api;
use crate::governance::Limit;

/// Reads a JSON object.
pub(crate) async fn read_fields(api: &Api, request: Request) -> Result<Fields, ApiError> {
    let (parts, body) = request.into_parts();
    Fields::parse(&read_body(&parts.headers, body, &api.config).await?)
}

/// Reads a JSON object whose fields are all optional; no body at all is an empty one.
pub(crate) async fn read_optional_fields(api: &Api, request: Request) -> Result<Fields, ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = read_body(&parts.headers, body, &api.config).await?;
    if bytes.is_empty() { Fields::parse(b"{}") } else { Fields::parse(&bytes) }
}

/// Takes a list of limits, each as an object or in text form.
pub(crate) fn take_limits(body: &mut Fields, field: &str) -> Result<Option<Vec<Limit>>, ApiError> {
    let Some(items) = body.list(field)? else { return Ok(None) };
    let limit = |(index, item): (usize, Value)| {
        let name = format!("{field}[{index}]");
        match item {
            Value::String(text) => text.parse().map_err(|error| body.complain(&name, format!("is wrong: {error}"))),
            Value::Object(_) => {
                serde_json::from_value(item).map_err(|error| body.complain(&name, format!("is wrong: {error}")))
            }
            other => Err(body.complain(&name, format!("must be an object or a string, found {}", kind(&other)))),
        }
    };
    items.into_iter().enumerate().map(limit).collect::<Result<_, _>>().map(Some)
}

/// Takes a moment: RFC 3339 or seconds since the Unix epoch, in microseconds.
pub(crate) fn take_moment(body: &mut Fields, field: &str) -> Result<Option<i64>, ApiError> {
    let moment = match body.take(field) {
        None => return Ok(None),
        Some(Value::String(text)) => parse_moment(&text),
        Some(Value::Number(number)) => parse_moment(&number.to_string()),
        Some(_) => None,
    };
    moment.map(Some).ok_or_else(|| body.complain(field, A_MOMENT))
}

const A_MOMENT: &str = "must be a moment like `2026-11-23T05:16:07Z`, or seconds since 1970";

/// RFC 3339 or seconds since the Unix epoch, in microseconds.
pub(crate) fn parse_moment(text: &str) -> Option<i64> {
    let seconds = || text.parse().ok().and_then(|seconds| Timestamp::from_second(seconds).ok());
    text.parse().ok().or_else(seconds).map(Timestamp::as_microsecond)
}

/// Which part of a list is wanted.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Page {
    pub(crate) limit: Option<u32>,
    pub(crate) cursor: Option<String>,
}

impl Page {
    /// Reads `limit` and `cursor`; anything else is an error.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let mut query = Query::parse(query)?;
        let page = Self::take(&mut query)?;
        query.refuse_unknown()?;
        Ok(page)
    }

    /// Takes `limit` and `cursor` out of a query that may hold more.
    pub(crate) fn take(query: &mut Query) -> Result<Self, ApiError> {
        let limit = query.take("limit").map(|text| match text.parse() {
            Ok(limit @ 1..=1000) => Ok(limit),
            _ => Err(ApiError::invalid(Some("limit"), "`limit` must be a number between 1 and 1000")),
        });
        Ok(Self { limit: limit.transpose()?, cursor: query.take("cursor") })
    }
}

/// The part of an address after the question mark.
#[derive(Debug)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    /// Takes the query apart.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let uri = format!("/?{}", query.unwrap_or_default());
        let parsed = uri.parse().ok().and_then(|uri| axum::extract::Query::try_from_uri(&uri).ok());
        match parsed {
            Some(axum::extract::Query(pairs)) => Ok(Self(pairs)),
            None => Err(ApiError::invalid(None, "the query of the address is malformed")),
        }
    }

    /// Takes a parameter.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        let index = self.0.iter().position(|(key, _)| key == name)?;
        Some(self.0.remove(index).1)
    }

    /// Takes a parameter as often as it is there.
    pub(crate) fn take_each(&mut self, name: &str) -> Vec<String> {
        std::iter::from_fn(|| self.take(name)).collect()
    }

    /// Takes a moment: RFC 3339 or seconds since the Unix epoch, in microseconds.
    pub(crate) fn take_moment(&mut self, name: &str) -> Result<Option<i64>, ApiError> {
        let Some(text) = self.take(name) else { return Ok(None) };
        match parse_moment(&text) {
            Some(us) => Ok(Some(us)),
            None => Err(ApiError::invalid(Some(name), format!("`{name}` {A_MOMENT}"))),
        }
    }

    /// Takes a switch.
    pub(crate) fn take_switch(&mut self, name: &str) -> Result<bool, ApiError> {
        match self.take(name).as_deref() {
            None | Some("false") => Ok(false),
            Some("true") => Ok(true),
            Some(_) => Err(ApiError::invalid(Some(name), format!("`{name}` must be true or false"))),
        }
    }

    /// Complains about what nobody took.
    pub(crate) fn refuse_unknown(self) -> Result<(), ApiError> {
        match self.0.first() {
            None => Ok(()),
            Some((name, _)) => Err(ApiError::invalid(Some(name), format!("unknown query parameter `{name}`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_a_limit_and_a_cursor_and_nothing_else() {
        let page = Page::parse(Some("limit=20&cursor=a%20b")).unwrap();
        assert_eq!(page, Page { limit: Some(20), cursor: Some("a b".into()) });
        for (query, param) in [("limit=0", "limit"), ("limit=x", "limit"), ("color=red", "color")] {
            assert_eq!(Page::parse(Some(query)).unwrap_err().param(), Some(param));
        }
    }

    #[test]
    fn a_moment_is_a_date_or_epoch_seconds() {
        let mut query = Query::parse(Some("start=1700000000&end=2023-11-14T22:13:20Z&odd=soon")).unwrap();
        assert_eq!(query.take_moment("start").unwrap(), Some(1_700_000_000_000_000));
        assert_eq!(query.take_moment("end").unwrap(), Some(1_700_000_000_000_000));
        assert_eq!(query.take_moment("none").unwrap(), None);
        assert_eq!(query.take_moment("odd").unwrap_err().param(), Some("odd"));
    }

    #[test]
    fn limits_are_taken_as_objects_and_as_text() {
        let mut body =
            Fields::parse(br#"{"limits": ["5 requests / 2m", {"resource": "tokens", "amount": 9, "window": "day"}]}"#)
                .unwrap();
        let limits = take_limits(&mut body, "limits").unwrap().unwrap();
        assert_eq!(limits.iter().map(ToString::to_string).collect::<Vec<_>>(), ["5 requests / 2m", "9 tokens / day"]);
    }

    #[test]
    fn a_wrong_limit_is_named_by_its_position() {
        let mut body =
            Fields::parse(br#"{"limits": ["5 requests / 2m", {"resource": "tokens", "amount": 0, "window": "1m"}]}"#)
                .unwrap();
        let error = take_limits(&mut body, "limits").unwrap_err();
        assert_eq!(error.param(), Some("limits[1]"));
        assert!(error.message().contains("amount"), "{}", error.message());
    }
}
