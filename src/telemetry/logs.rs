//! Log output: one line an event, as text for people or JSON for machines, on standard error.

use std::backtrace::{Backtrace, BacktraceStatus};
use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use super::redact::Redacting;

/// How log lines are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// Readable lines, coloured on a terminal.
    Text,
    /// One JSON object a line.
    Json,
}

impl FromStr for LogFormat {
    type Err = LogsError;

    fn from_str(text: &str) -> Result<Self, LogsError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(LogsError::Format { found: other.to_owned() }),
        }
    }
}

/// Settings of the log output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// Which events are written, as `level` or `module=level,...`. Default `info`: what an operator acts on.
    pub filter: String,
    /// Shape of a line. Default `text`, because a first run is read by a person.
    pub format: LogFormat,
}

impl Default for Config {
    fn default() -> Self {
        Self { filter: "info".to_owned(), format: LogFormat::Text }
    }
}

/// Why the log output could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum LogsError {
    /// The format's name is unknown.
    #[error("unknown log format `{found}`: use `text` or `json`")]
    Format {
        /// What was given.
        found: String,
    },
    /// The filter does not parse.
    #[error("log filter `{filter}` is not of the form `level` or `module=level,...`")]
    Filter {
        /// What was given.
        filter: String,
        /// Where it went wrong.
        #[source]
        source: tracing_subscriber::filter::ParseError,
    },
    /// The filter could be read in another way than it was meant.
    #[error("must be a level (off, error, warn, info, debug, trace) or `module=level` parts with commas between them")]
    Unclear,
    /// There is no log output whose filter could change.
    #[error("the log output is not set up")]
    NotInstalled,
    /// A second initialisation in one process.
    #[error("the log output is already set up")]
    Installed(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Installs the process-wide log output.
///
/// # Errors
/// [`LogsError::Filter`] when the filter does not parse, [`LogsError::Installed`] on a second call.
pub fn init_logs(config: &Config) -> Result<(), LogsError> {
    let filter = EnvFilter::try_new(&config.filter)
        .map_err(|source| LogsError::Filter { filter: config.filter.clone(), source })?;
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Redacting(std::io::stderr))
        .with_target(false)
        .with_span_events(FmtSpan::NONE);
    let replace: Replace = match config.format {
        LogFormat::Text => {
            let builder = builder.with_ansi(std::io::stderr().is_terminal()).compact().with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map_err(LogsError::Installed)?;
            Box::new(move |filter| handle.reload(filter))
        }
        LogFormat::Json => {
            let builder = builder.json().flatten_event(true).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.try_init().map_err(LogsError::Installed)?;
            Box::new(move |filter| handle.reload(filter))
        }
    };
    // Set once: a second initialisation failed above.
    let _ = REPLACE.set(replace);
    log_panics();
    Ok(())
}

type Replace = Box<dyn Fn(EnvFilter) -> Result<(), tracing_subscriber::reload::Error> + Send + Sync>;

/// The log output is the process's, and so is the way to its filter.
static REPLACE: OnceLock<Replace> = OnceLock::new();

/// Longer filters are a mistake.
const FILTER_MAX: usize = 1024;

/// A filter that was checked and is not in effect yet.
#[derive(Debug)]
pub struct NextFilter(EnvFilter);

/// Checks a filter for the running log output. Stricter than at the start: a misspelt level would be read as a module's
/// name and silence the log.
///
/// # Errors
/// [`LogsError::Filter`], [`LogsError::Unclear`], or [`LogsError::NotInstalled`] before [`init_logs`].
pub fn check_log_filter(filter: &str) -> Result<NextFilter, LogsError> {
    // An empty text parses as a level, too.
    let is_level = |part: &str| !part.is_empty() && part.parse::<LevelFilter>().is_ok();
    let is_clear = |part: &str| part.contains('=') || is_level(part);
    if filter.len() > FILTER_MAX || !filter.split(',').all(|part| is_clear(part.trim())) {
        return Err(LogsError::Unclear);
    }
    let next = EnvFilter::try_new(filter).map_err(|source| LogsError::Filter { filter: filter.to_owned(), source })?;
    if REPLACE.get().is_none() {
        return Err(LogsError::NotInstalled);
    }
    Ok(NextFilter(next))
}

impl NextFilter {
    /// From now on this filter says what is written.
    pub fn apply(self) {
        // Fails only when the log output is gone, which is the process's.
        if let Some(Err(error)) = REPLACE.get().map(|replace| replace(self.0)) {
            tracing::error!(%error, "the log filter stays as it was");
        }
    }
}

/// A panic is a log line like any other: masked, in the format asked for.
fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let message = panic.payload_as_str().unwrap_or("no message");
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let thread = std::thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        // Empty unless RUST_BACKTRACE asks for it.
        let trace = Backtrace::capture();
        match trace.status() {
            BacktraceStatus::Captured => tracing::error!(place, thread, "panicked: {message}\n{trace}"),
            _ => tracing::error!(place, thread, "panicked: {message}"),
        }
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_format_is_named_with_the_known_ones() {
        let error = "xml".parse::<LogFormat>().unwrap_err();
        assert_eq!(error.to_string(), "unknown log format `xml`: use `text` or `json`");
    }

    #[test]
    fn a_filter_that_does_not_parse_is_an_error_that_quotes_it() {
        let config = Config { filter: "info,,=x=".to_owned(), ..Config::default() };
        let error = init_logs(&config).unwrap_err();
        assert!(error.to_string().contains("info,,=x="), "{error}");
    }

    #[test]
    fn a_filter_for_the_running_log_whose_level_is_misspelt_is_refused() {
        for filter in ["", "debgu", "info,millgate", &"info,".repeat(300)] {
            assert!(matches!(check_log_filter(filter), Err(LogsError::Unclear)), "{filter}");
        }
        assert!(matches!(check_log_filter("millgate=loud"), Err(LogsError::Filter { .. })));
        for filter in ["debug", "off", "info,millgate::engine=debug"] {
            assert!(matches!(check_log_filter(filter), Err(LogsError::NotInstalled)), "{filter}");
        }
    }
}
