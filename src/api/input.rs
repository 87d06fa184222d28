//! What our own endpoints take: bodies as fields, limits in either form, pages of lists.
use axum::extract::Request;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use super::body::read_body;
use super::error::ApiError;
use super::fields::{Fields, kind};
use super::state::Api;
use crate::governance::Limit;
use crate::governance::calendar::parse_moment;

/// Reads a JSON object.
pub(crate) async fn read_fields(api: &Api, request: Request) -> Result<Fields, ApiError> {
    let (parts, body) = request.into_parts();
    Fields::parse(&read_body(&parts.headers, body, &api.config).await?)
}

/// Reads a JSON object whose fields are all optional; no body at all, and `null`, is an empty one.
pub(crate) async fn read_optional_fields(api: &Api, request: Request) -> Result<Fields, ApiError> {
    let (parts, body) = request.into_parts();
    let bytes = read_body(&parts.headers, body, &api.config).await?;
    if matches!(bytes.trim_ascii(), b"" | b"null") { Fields::parse(b"{}") } else { Fields::parse(&bytes) }
}

/// Takes a list of limits, each as an object or in text form.
pub(crate) fn take_limits(body: &mut Fields, field: &str) -> Result<Option<Vec<Limit>>, ApiError> {
    let Some(items) = body.list(field)? else { return Ok(None) };
    let limit = |(index, item): (usize, Value)| {
        let name = format!("{field}[{index}]");
        match item {
            Value::String(text) => text.parse().map_err(|error| body.complain(&name, format!("is wrong: {error}"))),
            Value::Object(mut limit) => {
                limit.retain(|_, value| !value.is_null());
                // Of all fields the amount alone may be something else than a word.
                if let Some((field, value)) =
                    limit.iter().find(|(field, value)| *field != "amount" && !value.is_string())
                {
                    return Err(
                        body.complain(&format!("{name}.{field}"), format!("must be a string, found {}", kind(value)))
                    );
                }
                let limit = serde_json::from_value(Value::Object(limit));
                limit.map_err(|error| body.complain(&name, format!("is wrong: {error}")))
            }
            other => Err(body.complain(&name, format!("must be an object or a string, found {}", kind(&other)))),
        }
    };
    items.into_iter().enumerate().map(limit).collect::<Result<_, _>>().map(Some)
}

/// Takes limits of a key. One that names another scope is refused: it would count per key all the same.
pub(crate) fn take_key_limits(body: &mut Fields, field: &str) -> Result<Option<Vec<Limit>>, ApiError> {
    let names_another_scope = |item: &Value| match item {
        Value::String(text) => {
            let words: Vec<&str> = text.split_whitespace().collect();
            words.windows(2).any(|pair| matches!(pair, ["per", "user" | "tier"]))
        }
        other => other.get("scope").is_some_and(|scope| !scope.is_null() && scope != "key"),
    };
    let wrong = body
        .rest()
        .find(|(name, _)| *name == field)
        .and_then(|(_, list)| list.as_array().into_iter().flatten().position(names_another_scope));
    match wrong {
        None => take_limits(body, field),
        Some(index) => {
            let name = format!("{field}[{index}]");
            Err(body.complain(&name, "must count per key, as all limits of a key do: leave the scope out"))
        }
    }
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

/// What the cursor of a list in the order of names begins with, before it is encoded.
const NAME_CURSOR: &str = "after:";

/// Where a list in the order of names goes on after `name`; nobody should look inside.
pub(crate) fn name_cursor(name: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{NAME_CURSOR}{name}"))
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

    /// The name after which the page begins, of a list in the order of names.
    pub(crate) fn after_name(&self) -> Result<Option<String>, ApiError> {
        let Some(cursor) = &self.cursor else { return Ok(None) };
        match URL_SAFE_NO_PAD.decode(cursor).ok().and_then(|bytes| String::from_utf8(bytes).ok()) {
            Some(text) if text.starts_with(NAME_CURSOR) => Ok(Some(text[NAME_CURSOR.len()..].to_owned())),
            _ => Err(ApiError::invalid(Some("cursor"), "`cursor` is not one that this list gave")),
        }
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
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
    /// What was taken once.
    taken: Vec<String>,
}

impl Query {
    /// Takes the query apart.
    pub(crate) fn parse(query: Option<&str>) -> Result<Self, ApiError> {
        let uri = format!("/?{}", query.unwrap_or_default());
        let parsed = uri.parse().ok().and_then(|uri| axum::extract::Query::try_from_uri(&uri).ok());
        match parsed {
            Some(axum::extract::Query(pairs)) => Ok(Self { pairs, taken: Vec::new() }),
            None => Err(ApiError::invalid(None, "the query of the address is malformed")),
        }
    }

    /// Takes a parameter.
    pub(crate) fn take(&mut self, name: &str) -> Option<String> {
        let index = self.pairs.iter().position(|(key, _)| key == name)?;
        let (name, value) = self.pairs.remove(index);
        self.taken.push(name);
        Some(value)
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
        match self.pairs.first() {
            None => Ok(()),
            Some((name, _)) if self.taken.contains(name) => {
                Err(ApiError::invalid(Some(name), format!("query parameter `{name}` is there twice")))
            }
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
    fn a_list_in_the_order_of_names_goes_on_after_a_name_and_takes_no_other_cursor() {
        let page = |cursor: &str| Page { limit: None, cursor: Some(cursor.to_owned()) }.after_name();
        assert_eq!(page(&name_cursor("ann é")).unwrap().as_deref(), Some("ann é"));
        for garbage in ["ann", "YW5u", "", "%%", "_w"] {
            assert_eq!(page(garbage).unwrap_err().param(), Some("cursor"), "{garbage}");
        }
    }

    #[test]
    fn a_parameter_that_is_there_twice_is_not_called_unknown() {
        let mut query = Query::parse(Some("limit=1&limit=2")).unwrap();
        assert_eq!(query.take("limit").as_deref(), Some("1"));
        assert_eq!(query.refuse_unknown().unwrap_err().message(), "query parameter `limit` is there twice");
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
    fn a_limit_of_a_key_counts_per_key_and_says_nothing_else() {
        let take = |limit: &str| {
            let body = format!(r#"{{"limits": ["5 requests / 2m", {limit}]}}"#);
            take_key_limits(&mut Fields::parse(body.as_bytes()).unwrap(), "limits")
        };
        let object =
            |scope: &str| format!(r#"{{"resource": "tokens", "amount": 9, "window": "1m", "scope": {scope}}}"#);
        for fine in [object("\"key\""), object("null"), "\"9 tokens / 1m per key\"".to_owned()] {
            assert!(take(&fine).is_ok(), "{fine}");
        }
        for wrong in [object("\"tier\""), object("\"user\""), "\"9 tokens / 1m per tier\"".to_owned()] {
            assert_eq!(take(&wrong).unwrap_err().param(), Some("limits[1]"), "{wrong}");
        }
    }

    #[test]
    fn a_wrong_limit_is_named_by_its_position() {
        let mut body =
            Fields::parse(br#"{"limits": ["5 requests / 2m", {"resource": "tokens", "amount": 0, "window": "1m"}]}"#)
                .unwrap();
        let error = take_limits(&mut body, "limits").unwrap_err();
        assert_eq!(error.param(), Some("limits[1]"));
        assert!(error.message().contains("amount"), "{}", error.message());
        let mut body =
            Fields::parse(br#"{"limits": [{"resource": "tokens", "amount": 1, "window": "1m", "scope": 7}]}"#).unwrap();
        let error = take_limits(&mut body, "limits").unwrap_err();
        assert_eq!(error.message(), "`limits[0].scope` must be a string, found a number");
    }
}
