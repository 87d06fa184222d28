//! Qwen 2 and 2.5: biases on queries, keys and values; a sliding window only where the config turns it on.

use crate::arch::config::{FamilyDefaults, sliding_window};
use crate::arch::{ConfigError, DecoderConfig, Fields};

const DEFAULTS: FamilyDefaults = FamilyDefaults { architecture: "qwen2", num_kv_heads: None, head_dim: None };
/// Assumed where the window is turned on without a length.
const DEFAULT_WINDOW: u32 = 4096;
/// Layers below this one see everything, where the config does not say.
const DEFAULT_MAX_WINDOW_LAYERS: usize = 28;

/// Reads the config of a `qwen2` model.
pub(crate) fn config(fields: &Fields) -> Result<DecoderConfig, ConfigError> {
    let mut config = DecoderConfig::common(fields, &DEFAULTS)?;
    config.qkv_bias = true;
    set_upper_windows(&mut config, fields)?;
    Ok(config)
}

/// The window of the Qwen families: off, or over the layers from `max_window_layers` on.
pub(crate) fn set_upper_windows(config: &mut DecoderConfig, fields: &Fields) -> Result<(), ConfigError> {
    let window = if fields.flag("use_sliding_window")? { sliding_window(fields, Some(DEFAULT_WINDOW))? } else { None };
    let first = fields.optional_count("max_window_layers", 0..=usize::MAX)?.unwrap_or(DEFAULT_MAX_WINDOW_LAYERS);
    config.set_windows(fields, window, |layer| window.is_some() && layer >= first)
}
