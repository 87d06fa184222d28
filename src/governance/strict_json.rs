//! JSON with nothing in it that two readers could read differently: no object has a name twice, at any depth.
use std::fmt;

use serde::de::{self, Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use serde_json::{Map, Number, Value};

/// Parses a text.
///
/// # Errors
/// Says what is wrong and where: not JSON, nested too deeply, or a field that an object has twice.
pub fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map(|Strict(value)| value).map_err(|error| match error.classify() {
        Category::Data => format!("cannot be read: {error}"),
        Category::Io | Category::Syntax | Category::Eof => format!("is not valid JSON: {error}"),
    })
}

/// A value whose objects have each name once. Plain `Value` would keep the last of two and say nothing.
pub(super) struct Strict(pub(super) Value);

impl<'de> Deserialize<'de> for Strict {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Reader).map(Self)
    }
}

struct Reader;

impl<'de> Visitor<'de> for Reader {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Number::from_f64(value).map_or(Value::Null, Value::Number))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(Strict(value)) = list.next_element()? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if map.contains_key(&name) {
                return Err(de::Error::custom(format_args!("`{name}` is there twice")));
            }
            let Strict(value) = fields.next_value()?;
            map.insert(name, value);
        }
        Ok(Value::Object(map))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_field_that_is_there_twice_is_an_error_at_any_depth() {
        for text in [r#"{"a": 1, "a": 2}"#, r#"{"x": [{"a": 1, "b": 2, "a": 1}]}"#, r#"{"a": null, "\u0061": 1}"#] {
            let error = parse(text).unwrap_err();
            assert!(error.starts_with("cannot be read: `a` is there twice at line 1 column "), "{error}");
        }
        assert!(parse(r#"{"a": {"a": 1}, "b": {"a": 1}}"#).is_ok(), "two objects may have one each");
    }

    #[test]
    fn anything_else_is_read_as_any_reader_does() {
        let text = r#"{"a": [null, true, -1, 18446744073709551615, 1.5e3, "é\n"], "b": {}}"#;
        assert_eq!(parse(text), Ok(serde_json::from_str::<Value>(text).unwrap()));
        for text in ["", "{", "[1,]", "{\"a\" 1}", "1e999", "nul"] {
            assert!(parse(text).unwrap_err().starts_with("is not valid JSON: "), "{text}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_read_that_is_not_json_and_none_differently(text in "[\\[\\]{}:,\"a0-9.eE+nulltrue -]{0,30}") {
            if let Ok(value) = parse(&text) {
                prop_assert_eq!(value, serde_json::from_str::<Value>(&text).unwrap());
            }
        }
    }
}
