//! Named, checked access to the keys of a config, whether it came as `config.json` or as GGUF metadata.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::arch::ConfigError;

/// The keys of one config under their Hugging Face names.
#[derive(Debug, Clone, Default)]
pub(crate) struct Fields {
    values: Map<String, Value>,
    /// How the file itself spells a key, for messages.
    spelled: BTreeMap<String, String>,
    /// The object that all keys are in, for messages.
    outer: Option<String>,
}

impl Fields {
    /// Reads the text of a `config.json`.
    pub(crate) fn from_json(text: &[u8]) -> Result<Self, ConfigError> {
        let values =
            serde_json::from_slice(text).map_err(|error| ConfigError::NotJson { reason: error.to_string() })?;
        Ok(Self { values, ..Self::default() })
    }

    /// The keys of a nested object, named `outer.inner` in messages.
    pub(crate) fn nested(&self, outer: &str, values: &Map<String, Value>) -> Self {
        Self { values: values.clone(), spelled: BTreeMap::new(), outer: Some(self.spelling(outer)) }
    }

    /// Says how the file spells a key, whether or not it has it.
    pub(crate) fn spell(&mut self, key: &str, spelled: String) {
        self.spelled.insert(key.to_owned(), spelled);
    }

    /// Sets a key that the file spells otherwise.
    pub(crate) fn set(&mut self, key: &str, spelled: String, value: Value) {
        self.spell(key, spelled);
        self.values.insert(key.to_owned(), value);
    }

    fn spelling(&self, key: &str) -> String {
        match (self.spelled.get(key), &self.outer) {
            (Some(spelled), _) => spelled.clone(),
            (None, Some(outer)) => format!("{outer}.{key}"),
            (None, None) => key.to_owned(),
        }
    }

    /// The value of a key; `null` counts as absent.
    pub(crate) fn get(&self, key: &str) -> Option<&Value> {
        self.values.get(key).filter(|value| !value.is_null())
    }

    /// Whether the key is there, be it as `null`.
    pub(crate) fn mentions(&self, key: &str) -> bool {
        self.values.contains_key(key)
    }

    pub(crate) fn missing(&self, key: &str) -> ConfigError {
        ConfigError::Missing { key: self.spelling(key) }
    }

    pub(crate) fn kind_error(&self, key: &str, found: &Value, wanted: impl ToString) -> ConfigError {
        let mut found = found.to_string();
        if found.len() > 80 {
            let end = (0..=80).rev().find(|&end| found.is_char_boundary(end)).unwrap_or(0);
            found.truncate(end);
            found.push_str("...");
        }
        ConfigError::Kind { key: self.spelling(key), found, wanted: wanted.to_string() }
    }

    /// A count within `range`; `None` when absent.
    pub(crate) fn optional_count(&self, key: &str, range: RangeInclusive<usize>) -> Result<Option<usize>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let count = value.as_u64().and_then(|count| usize::try_from(count).ok()).filter(|count| range.contains(count));
        match count {
            Some(count) => Ok(Some(count)),
            None => {
                let wanted = format!("a whole number from {} to {}", range.start(), range.end());
                Err(self.kind_error(key, value, wanted))
            }
        }
    }

    /// A count within `range`.
    pub(crate) fn count(&self, key: &str, range: RangeInclusive<usize>) -> Result<usize, ConfigError> {
        self.optional_count(key, range)?.ok_or_else(|| self.missing(key))
    }

    /// A finite number above 0; `None` when absent.
    pub(crate) fn optional_positive(&self, key: &str) -> Result<Option<f64>, ConfigError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(number) if number.is_finite() && number > 0.0 => Ok(Some(number)),
            _ => Err(self.kind_error(key, value, "a number above 0")),
        }
    }

    /// A finite number above 0.
    pub(crate) fn positive(&self, key: &str) -> Result<f64, ConfigError> {
        self.optional_positive(key)?.ok_or_else(|| self.missing(key))
    }

    /// A truth value; `None` when absent.
    pub(crate) fn optional_flag(&self, key: &str) -> Result<Option<bool>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(other) => Err(self.kind_error(key, other, "true or false")),
        }
    }

    /// A truth value, false when absent.
    pub(crate) fn flag(&self, key: &str) -> Result<bool, ConfigError> {
        Ok(self.optional_flag(key)?.unwrap_or(false))
    }

    /// A text; `None` when absent.
    pub(crate) fn optional_text(&self, key: &str) -> Result<Option<&str>, ConfigError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.kind_error(key, other, "a text")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wrong_value_is_reported_with_its_key_and_what_it_must_be() {
        let fields = Fields::from_json(br#"{"heads": 0, "eps": "x", "tied": 1, "width": -3, "big": 1e30}"#).unwrap();
        let message = |result: Result<Option<usize>, ConfigError>| result.unwrap_err().to_string();
        assert_eq!(
            message(fields.optional_count("heads", 1..=8)),
            "`heads` is 0, it must be a whole number from 1 to 8"
        );
        assert!(message(fields.optional_count("width", 1..=8)).contains("`width` is -3"));
        assert!(message(fields.optional_count("big", 1..=8)).contains("`big` is 1e+30"));
        assert!(fields.positive("eps").unwrap_err().to_string().contains("`eps`"));
        assert!(fields.flag("tied").unwrap_err().to_string().contains("`tied`"));
        assert_eq!(fields.count("layers", 1..=8).unwrap_err().to_string(), "`layers` is missing");
    }
}
