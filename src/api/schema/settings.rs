//! Documents of the settings in effect.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// What the server runs with; secrets are masked.
#[derive(ToSchema)]
pub(crate) struct ServerSettings {
    #[schema(inline)]
    object: ConfigWord,
    /// By table and key, as the configuration file has them.
    settings: BTreeMap<String, Value>,
    /// Secrets that come from the environment: `***`, or `null` when not set.
    environment: BTreeMap<String, Option<String>>,
    /// What `PUT` can change.
    changeable: Vec<String>,
    /// What is no longer as it was at the start.
    changed_since_start: Vec<String>,
    /// How long a change lasts.
    note: String,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ConfigWord {
    Config,
}

/// What to change; what `GET` answers may be sent back whole.
#[derive(ToSchema)]
pub(crate) struct SettingsChange {
    /// By table and key.
    #[schema(example = json!({"log": {"level": "info,millgate::governance=debug"}}))]
    settings: BTreeMap<String, Value>,
}
