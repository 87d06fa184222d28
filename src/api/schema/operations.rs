//! Documents of operations.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// How the process is doing, in a word.
#[derive(ToSchema)]
pub(crate) struct Health {
    #[schema(inline)]
    status: HealthWord,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum HealthWord {
    Ok,
    Starting,
    Draining,
}
