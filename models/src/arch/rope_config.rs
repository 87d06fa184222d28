//! Rotary settings in both generations of config files.

use serde_json::Value;

use crate::arch::{ConfigError, Fields};
use crate::layers::RopeScaling;

/// What every family here assumed before its files named a base.
const DEFAULT_THETA: f64 = 10_000.0;
const SUPPORTED: &str = "default, linear, llama3";

/// Base and scaling, from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before).
pub(crate) fn rope(fields: &Fields) -> Result<(f64, RopeScaling), ConfigError> {
    refuse_partial(fields)?;
    let outer_theta = fields.optional_positive("rope_theta")?;
    for key in ["rope_parameters", "rope_scaling"] {
        let Some(value) = fields.get(key) else { continue };
        let Value::Object(values) = value else { return Err(fields.kind_error(key, value, "an object")) };
        if values.values().any(Value::is_object) {
            return Err(ConfigError::unsupported(key, "one setting a layer type", "one for all layers"));
        }
        let inner = fields.nested(key, values);
        refuse_partial(&inner)?;
        let theta = inner.optional_positive("rope_theta")?.or(outer_theta).unwrap_or(DEFAULT_THETA);
        return Ok((theta, scaling(&inner)?));
    }
    Ok((outer_theta.unwrap_or(DEFAULT_THETA), RopeScaling::None))
}

fn refuse_partial(fields: &Fields) -> Result<(), ConfigError> {
    match fields.optional_positive("partial_rotary_factor")? {
        Some(factor) if factor != 1.0 => Err(ConfigError::unsupported("partial_rotary_factor", factor, "1")),
        _ => Ok(()),
    }
}

fn scaling(fields: &Fields) -> Result<RopeScaling, ConfigError> {
    let kind = match fields.optional_text("rope_type")? {
        Some(kind) => Some(kind),
        None => fields.optional_text("type")?,
    };
    match kind {
        Some("default") => Ok(RopeScaling::None),
        // An object without a type but with a factor would scale: nobody may guess how.
        None if fields.mentions("factor") => Err(fields.missing("rope_type")),
        None => Ok(RopeScaling::None),
        Some("linear") => Ok(RopeScaling::Linear { factor: fields.positive("factor")? }),
        Some("llama3") => {
            let low_frequency_factor = fields.positive("low_freq_factor")?;
            let high_frequency_factor = fields.positive("high_freq_factor")?;
            if high_frequency_factor <= low_frequency_factor {
                let found = Value::from(high_frequency_factor);
                return Err(fields.kind_error("high_freq_factor", &found, "above low_freq_factor"));
            }
            Ok(RopeScaling::Llama3 {
                factor: fields.positive("factor")?,
                low_frequency_factor,
                high_frequency_factor,
                original_context: fields.positive("original_max_position_embeddings")?,
            })
        }
        Some(other) => Err(ConfigError::unsupported("rope type", other, SUPPORTED)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<(f64, RopeScaling), ConfigError> {
        rope(&Fields::from_json(text.as_bytes()).unwrap())
    }

    #[test]
    fn both_generations_of_files_say_the_same() {
        let old = read(
            r#"{"rope_theta": 500000.0, "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#,
        );
        let new = read(
            r#"{"rope_parameters": {"rope_theta": 500000.0, "rope_type": "llama3", "factor": 8.0,
                "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}}"#,
        );
        assert_eq!(old, new);
        assert_eq!(old.unwrap().0, 500_000.0);
        assert_eq!(read(r#"{"rope_scaling": null}"#), Ok((10_000.0, RopeScaling::None)));
        let linear = RopeScaling::Linear { factor: 2.0 };
        assert_eq!(read(r#"{"rope_scaling": {"type": "linear", "factor": 2.0}}"#), Ok((10_000.0, linear)));
    }

    #[test]
    fn a_scaling_that_is_not_understood_is_never_ignored() {
        for (text, named) in [
            (r#"{"rope_scaling": {"type": "yarn", "factor": 4.0}}"#, "`yarn`"),
            (r#"{"rope_parameters": {"rope_type": "longrope"}}"#, "`longrope`"),
            (r#"{"rope_scaling": {"factor": 4.0}}"#, "`rope_scaling.rope_type`"),
            (r#"{"rope_scaling": {"type": "linear", "factor": -1}}"#, "`rope_scaling.factor`"),
            (r#"{"rope_scaling": "linear"}"#, "`rope_scaling`"),
            (r#"{"partial_rotary_factor": 0.5}"#, "partial_rotary_factor"),
            (r#"{"rope_parameters": {"full_attention": {"rope_type": "default"}}}"#, "rope_parameters"),
        ] {
            let message = read(text).unwrap_err().to_string();
            assert!(message.contains(named), "{text}: {message}");
        }
    }
}
