//! Llama 2 and 3 and models in their shape: rotary attention with grouped keys, biases only where the config says so.

use crate::arch::config::{FamilyDefaults, sliding_window};
use crate::arch::{ConfigError, DecoderConfig, Fields};

const DEFAULTS: FamilyDefaults = FamilyDefaults { architecture: "llama", num_kv_heads: None, head_dim: None };

/// Reads the config of a `llama` model.
pub(crate) fn config(fields: &Fields) -> Result<DecoderConfig, ConfigError> {
    let mut config = DecoderConfig::common(fields, &DEFAULTS)?;
    let is_biased = fields.flag("attention_bias")?;
    config.qkv_bias = is_biased;
    // GGUF files of this architecture may have the one without the other.
    config.output_bias = fields.optional_flag("attention_output_bias")?.unwrap_or(is_biased);
    config.mlp_bias = fields.flag("mlp_bias")?;
    // Mistral becomes `llama` in GGUF files and keeps its window there. Hugging Face's Llama never has one.
    if fields.mentions("gguf_architecture") {
        let window = sliding_window(fields, None)?;
        config.set_windows(fields, window, |_| true)?;
    }
    Ok(config)
}
