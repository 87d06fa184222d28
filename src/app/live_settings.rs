//! The settings as the API shows them, and the way to the log's filter.

use tokio_util::task::TaskTracker;

use crate::api::{ApplyFilter, LiveSettings, StartSettings};
use crate::config::{KEYS, Settings, effective_document, environment_secrets};
use crate::telemetry::check_log_filter;

/// What administrators see of the settings that the server was started with.
pub(super) fn live_settings(settings: &Settings, tasks: TaskTracker) -> LiveSettings {
    LiveSettings::new(StartSettings {
        document: effective_document(settings),
        keys: KEYS.iter().map(|key| (key.table, key.name)).collect(),
        secrets: environment_secrets(settings),
        check_filter: Box::new(|filter| match check_log_filter(filter) {
            Ok(next) => Ok(Box::new(move || next.apply()) as ApplyFilter),
            Err(error) => Err(error.to_string()),
        }),
        tasks,
    })
}
