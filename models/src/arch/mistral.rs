//! Mistral: Llama with a sliding window over all layers, unless the config sets it to null.

use crate::arch::config::{FamilyDefaults, sliding_window};
use crate::arch::{ConfigError, DecoderConfig, Fields};

const DEFAULTS: FamilyDefaults = FamilyDefaults { architecture: "mistral", num_kv_heads: Some(8), head_dim: None };
/// The first Mistral's window, assumed where the key is absent.
const DEFAULT_WINDOW: u32 = 4096;

/// Reads the config of a `mistral` model.
pub(crate) fn config(fields: &Fields) -> Result<DecoderConfig, ConfigError> {
    let mut config = DecoderConfig::common(fields, &DEFAULTS)?;
    let window = sliding_window(fields, Some(DEFAULT_WINDOW))?;
    config.set_windows(fields, window, |_| window.is_some())?;
    Ok(config)
}
