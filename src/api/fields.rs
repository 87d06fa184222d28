//! Reading a JSON object field by field, so that every complaint names the field it is about.
use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Number, Value};

use super::error::ApiError;
use crate::governance::strict_json;

/// A JSON object of a request body, with its path for error messages.
///
/// Fields are taken out one by one; what is left at the end is what nobody knows.
#[derive(Debug)]
pub(crate) struct Fields {
    map: Map<String, Value>,
    path: String,
}

impl Fields {
    /// Parses a request body, which must be one JSON object.
    pub(crate) fn parse(body: &[u8]) -> Result<Self, ApiError> {
        if body.iter().all(u8::is_ascii_whitespace) {
            return Err(ApiError::invalid(None, "the request body is empty, a JSON object is expected"));
        }
        let text = std::str::from_utf8(body).map_err(|error| {
            ApiError::invalid(
                None,
                format!("the request body is not valid UTF-8: byte {} is out of place", error.valid_up_to()),
            )
        })?;
        let value = strict_json::parse(text)
            .map_err(|problem| ApiError::invalid(None, format!("the request body {problem}")))?;
        Self::of_value(value, String::new())
    }

    /// Takes `value` as an object found at `path`.
    pub(crate) fn of_value(value: Value, path: String) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => {
                let message = format!("expected a JSON object, found {}", kind(&other));
                Err(ApiError::invalid((!path.is_empty()).then_some(path.as_str()), message))
            }
        }
    }

    /// The full name of one of this object's fields, as `param` shows it.
    pub(crate) fn name_of(&self, field: &str) -> String {
        if self.path.is_empty() { field.to_owned() } else { format!("{}.{field}", self.path) }
    }

    /// Takes a field; `null` counts as absent, as OpenAI's clients send it.
    pub(crate) fn take(&mut self, field: &str) -> Option<Value> {
        self.map.remove(field).filter(|value| !value.is_null())
    }

    /// Drops fields whose value does not matter here.
    pub(crate) fn ignore(&mut self, fields: &[&str]) {
        for field in fields {
            self.map.remove(*field);
        }
    }

    /// Complains about the first field that nobody took.
    pub(crate) fn refuse_unknown(self) -> Result<(), ApiError> {
        match self.map.keys().next() {
            None => Ok(()),
            Some(field) => {
                let name = self.name_of(field);
                Err(ApiError::invalid(Some(&name), format!("unknown field `{name}`")))
            }
        }
    }

    /// A complaint about one of this object's fields.
    pub(crate) fn complain(&self, field: &str, message: impl Display) -> ApiError {
        let name = self.name_of(field);
        ApiError::invalid(Some(&name), format!("`{name}` {message}"))
    }

    fn expected(&self, field: &str, wanted: &str, found: &Value) -> ApiError {
        self.complain(field, format!("must be {wanted}, found {}", kind(found)))
    }

    /// Takes a string.
    pub(crate) fn string(&mut self, field: &str) -> Result<Option<String>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.expected(field, "a string", &other)),
        }
    }

    /// Takes a string that must be there and not be empty.
    pub(crate) fn required_string(&mut self, field: &str) -> Result<String, ApiError> {
        match self.string(field)? {
            Some(text) if !text.is_empty() => Ok(text),
            Some(_) => Err(self.complain(field, "must not be empty")),
            None => Err(self.complain(field, "is required")),
        }
    }

    /// Takes a boolean.
    pub(crate) fn boolean(&mut self, field: &str) -> Result<Option<bool>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(self.expected(field, "true or false", &other)),
        }
    }

    /// Takes an integer of any size that fits 64 bits; `1.0` is one, as JSON schemas have it.
    pub(crate) fn integer(&mut self, field: &str) -> Result<Option<i64>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Number(number)) => match number.as_i64().or_else(|| whole(&number)) {
                Some(value) => Ok(Some(value)),
                None => Err(self.complain(field, format!("must be a whole number of 64 bits, found {number}"))),
            },
            Some(other) => Err(self.expected(field, "a whole number", &other)),
        }
    }

    /// Takes an integer inside `range`.
    pub(crate) fn integer_in<T>(&mut self, field: &str, range: RangeInclusive<T>) -> Result<Option<T>, ApiError>
    where
        T: Copy + Display + Into<i64> + TryFrom<i64>,
    {
        let Some(value) = self.integer(field)? else { return Ok(None) };
        let (least, most): (i64, i64) = ((*range.start()).into(), (*range.end()).into());
        match T::try_from(value) {
            Ok(narrow) if (least..=most).contains(&value) => Ok(Some(narrow)),
            _ => Err(self.complain(field, format!("must be between {least} and {most}, found {value}"))),
        }
    }

    /// Takes a finite number inside `range`.
    pub(crate) fn number_in(&mut self, field: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let value = match self.take(field) {
            None => return Ok(None),
            Some(Value::Number(number)) => number.as_f64().unwrap_or(f64::NAN),
            Some(other) => return Err(self.expected(field, "a number", &other)),
        };
        if range.contains(&value) {
            return Ok(Some(value));
        }
        Err(self.complain(field, format!("must be between {} and {}, found {value}", range.start(), range.end())))
    }

    /// Takes a list.
    pub(crate) fn list(&mut self, field: &str) -> Result<Option<Vec<Value>>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(Value::Array(list)) => Ok(Some(list)),
            Some(other) => Err(self.expected(field, "a list", &other)),
        }
    }

    /// Takes a list of strings.
    pub(crate) fn strings(&mut self, field: &str) -> Result<Option<Vec<String>>, ApiError> {
        let Some(list) = self.list(field)? else { return Ok(None) };
        let mut strings = Vec::with_capacity(list.len());
        for (index, value) in list.into_iter().enumerate() {
            match value {
                Value::String(text) => strings.push(text),
                other => return Err(self.expected(&format!("{field}[{index}]"), "a string", &other)),
            }
        }
        Ok(Some(strings))
    }

    /// Takes a nested object.
    pub(crate) fn object(&mut self, field: &str) -> Result<Option<Fields>, ApiError> {
        match self.take(field) {
            None => Ok(None),
            Some(value) => Fields::of_value(value, self.name_of(field)).map(Some),
        }
    }

    /// Takes a list of objects.
    pub(crate) fn objects(&mut self, field: &str) -> Result<Option<Vec<Fields>>, ApiError> {
        let Some(list) = self.list(field)? else { return Ok(None) };
        let name = self.name_of(field);
        list.into_iter()
            .enumerate()
            .map(|(index, value)| Fields::of_value(value, format!("{name}[{index}]")))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// The fields that nobody took yet, with their values.
    pub(crate) fn rest(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.map.iter().map(|(name, value)| (name.as_str(), value))
    }
}

/// A number that is written as a fraction and is none, as far as such numbers are exact.
fn whole(number: &Number) -> Option<i64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let value = number.as_f64().filter(|value| value.fract() == 0.0 && value.abs() <= EXACT)?;
    Some(value as i64)
}

/// What a value is, in words for a message.
pub(crate) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fields(json: &str) -> Fields {
        Fields::parse(json.as_bytes()).unwrap()
    }

    #[test]
    fn a_complaint_names_the_nested_field() {
        let mut outer = fields(r#"{"stream_options": {"include_usage": 1}}"#);
        let mut inner = outer.object("stream_options").unwrap().unwrap();
        let error = inner.boolean("include_usage").unwrap_err();
        assert_eq!(error.param(), Some("stream_options.include_usage"));
        assert_eq!(error.message(), "`stream_options.include_usage` must be true or false, found a number");
    }

    #[test]
    fn null_counts_as_absent() {
        assert_eq!(fields(r#"{"n": null}"#).integer("n").unwrap(), None);
    }

    #[test]
    fn integers_out_of_range_or_not_integers_are_refused() {
        for (json, message) in [
            (r#"{"n": -1}"#, "`n` must be between 1 and 128, found -1"),
            (r#"{"n": 4294967297}"#, "`n` must be between 1 and 128, found 4294967297"),
            (r#"{"n": 1.5}"#, "`n` must be a whole number of 64 bits, found 1.5"),
            (r#"{"n": 99999999999999999999}"#, "`n` must be a whole number of 64 bits, found 1e+20"),
            (r#"{"n": "3"}"#, "`n` must be a whole number, found a string"),
        ] {
            assert_eq!(fields(json).integer_in::<u32>("n", 1..=128).unwrap_err().message(), message);
        }
    }

    #[test]
    fn a_whole_number_may_be_written_as_a_fraction() {
        for (json, number) in [(r#"{"n": 3.0}"#, 3), (r#"{"n": 1e2}"#, 100), (r#"{"n": -2.0}"#, -2)] {
            assert_eq!(fields(json).integer("n").unwrap(), Some(number));
        }
    }

    #[test]
    fn what_nobody_took_is_named() {
        let error = fields(r#"{"nmae": "x"}"#).refuse_unknown().unwrap_err();
        assert_eq!((error.param(), error.message()), (Some("nmae"), "unknown field `nmae`"));
    }

    #[test]
    fn bodies_that_are_not_an_object_are_refused_with_the_reason() {
        for (body, start) in [
            (&b""[..], "the request body is empty"),
            (b"[1]", "expected a JSON object, found a list"),
            (b"{\"a\": \"\xff\"}", "the request body is not valid UTF-8: byte 7"),
            (b"{\"a\": }", "the request body is not valid JSON: expected value at line 1 column 7"),
        ] {
            let error = Fields::parse(body).unwrap_err();
            assert!(error.message().starts_with(start), "{}", error.message());
        }
    }

    #[test]
    fn deep_nesting_is_an_error_and_not_a_crash() {
        let body = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        assert!(Fields::parse(body.as_bytes()).unwrap_err().message().contains("recursion limit"));
    }
}
