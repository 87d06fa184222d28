//! The environment, read once at start; nothing else in the program asks for it.

use std::fmt;
use std::path::PathBuf;

use crate::telemetry::guard;

/// What the process was given in environment variables.
#[derive(Clone, Default)]
pub struct Environment {
    /// `MILLGATE_CONFIG`: the configuration file.
    pub config_file: Option<PathBuf>,
    /// `MILLGATE_ADMIN_KEY`: the bootstrap key of `admin`.
    pub admin_key: Option<String>,
    /// `MILLGATE_WEBHOOK_SECRET`: signs notices.
    pub webhook_secret: Option<String>,
    /// `MILLGATE_LOG`, else `RUST_LOG`: the log filter.
    pub log_filter: Option<String>,
    /// `OTEL_EXPORTER_OTLP_ENDPOINT`: the collector of traces.
    pub otlp_endpoint: Option<String>,
    /// `OTEL_EXPORTER_OTLP_HEADERS`: headers for it, `name=value,...`.
    pub otlp_headers: Option<String>,
    /// `HF_HOME`: where downloads are kept.
    pub hub_home: Option<PathBuf>,
    /// `HF_TOKEN`: access to gated models.
    pub hub_token: Option<String>,
    /// `HF_ENDPOINT`: the hub or a mirror.
    pub hub_endpoint: Option<String>,
    /// `MILLGATE_URL`: the server that commands talk to.
    pub url: Option<String>,
    /// `MILLGATE_API_KEY`: the key they use.
    pub api_key: Option<String>,
    /// `KUBERNETES_SERVICE_HOST`: the API server, as every pod is told.
    pub kubernetes_host: Option<String>,
    /// `KUBERNETES_SERVICE_PORT`: its port.
    pub kubernetes_port: Option<String>,
    /// `HOME`: the reader's own folder, for the chat history and the hub's default cache.
    pub user_home: Option<PathBuf>,
}

impl Environment {
    /// Reads the process's environment. An empty variable counts as unset.
    #[must_use]
    pub fn read() -> Self {
        let environment = Self {
            config_file: variable("MILLGATE_CONFIG").map(PathBuf::from),
            admin_key: variable("MILLGATE_ADMIN_KEY"),
            webhook_secret: variable("MILLGATE_WEBHOOK_SECRET"),
            log_filter: variable("MILLGATE_LOG").or_else(|| variable("RUST_LOG")),
            otlp_endpoint: variable("OTEL_EXPORTER_OTLP_ENDPOINT"),
            otlp_headers: variable("OTEL_EXPORTER_OTLP_HEADERS"),
            hub_home: variable("HF_HOME").map(PathBuf::from),
            hub_token: variable("HF_TOKEN"),
            hub_endpoint: variable("HF_ENDPOINT"),
            url: variable("MILLGATE_URL"),
            api_key: variable("MILLGATE_API_KEY"),
            kubernetes_host: variable("KUBERNETES_SERVICE_HOST"),
            kubernetes_port: variable("KUBERNETES_SERVICE_PORT"),
            user_home: variable("HOME").map(PathBuf::from),
        };
        // From here on they cannot be printed by mistake, wherever they go.
        [&environment.admin_key, &environment.hub_token, &environment.api_key, &environment.webhook_secret]
            .into_iter()
            .flatten()
            .for_each(|s| guard(s));
        environment
    }
}

#[expect(clippy::disallowed_methods, reason = "the one place that reads the environment")]
fn variable(name: &str) -> Option<String> {
    // Secrets that come from files end with a line end more often than not; it is not part of them.
    std::env::var(name).ok().map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Secrets are masked, so that the environment can be logged.
impl fmt::Debug for Environment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Environment")
            .field("config_file", &self.config_file)
            .field("admin_key", &self.admin_key.as_ref().map(|_| "***"))
            .field("webhook_secret", &self.webhook_secret.as_ref().map(|_| "***"))
            .field("log_filter", &self.log_filter)
            .field("otlp_endpoint", &self.otlp_endpoint)
            .field("otlp_headers", &self.otlp_headers.as_ref().map(|_| "***"))
            .field("hub_home", &self.hub_home)
            .field("hub_token", &self.hub_token.as_ref().map(|_| "***"))
            .field("hub_endpoint", &self.hub_endpoint)
            .field("url", &self.url)
            .field("api_key", &self.api_key.as_ref().map(|_| "***"))
            .field("kubernetes_host", &self.kubernetes_host)
            .field("kubernetes_port", &self.kubernetes_port)
            .finish_non_exhaustive()
    }
}
