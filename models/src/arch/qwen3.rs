//! Qwen 3, dense: a norm on each head of queries and keys, head size of its own, no biases unless the config says so.

use crate::arch::config::FamilyDefaults;
use crate::arch::qwen2::set_upper_windows;
use crate::arch::{ConfigError, DecoderConfig, Fields};

const DEFAULTS: FamilyDefaults = FamilyDefaults { architecture: "qwen3", num_kv_heads: None, head_dim: Some(128) };

/// Reads the config of a `qwen3` model.
pub(crate) fn config(fields: &Fields) -> Result<DecoderConfig, ConfigError> {
    let mut config = DecoderConfig::common(fields, &DEFAULTS)?;
    config.qk_norm = true;
    config.qkv_bias = fields.flag("attention_bias")?;
    config.output_bias = config.qkv_bias;
    set_upper_windows(&mut config, fields)?;
    Ok(config)
}
