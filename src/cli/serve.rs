//! `millgate serve`: starts the server, says what it serves, and stops it in order when asked to.

use std::future::ready;
use std::io::{self, IsTerminal as _};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};
use millgate_models::Bar;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tracing::{debug, info};

use crate::app::Served;
use crate::config::{Environment, Overrides, Settings, show};
use crate::governance::Secret;
use crate::governance::ports::StoreError;
use crate::telemetry::init_logs;

use super::args::ServeArgs;
use super::config_command::load;
use super::fail::Hinted;
use super::output;
use super::serve_summary::summary_text;

/// Serves until SIGTERM or Ctrl-C, then lets running answers finish; a second signal stops at once.
///
/// # Errors
/// A wrong configuration, an address or data directory in use, models that do not fit or do not load.
pub(super) async fn run(args: &ServeArgs, environment: &Environment) -> Result<()> {
    let overrides = Overrides {
        listen: args.listen,
        data_dir: args.data_dir.clone(),
        device: args.device,
        models: args.models.clone(),
        quantize: args.quantize,
    };
    let settings = load(args.config.as_deref(), environment, &overrides)?;
    init_logs(&settings.log)?;
    log_settings(&settings);
    let mut signals = Signals::new()?;
    let first_key = Mutex::new(None);
    let tell_key = |key: &Secret| {
        // At once, because it is kept nowhere and the models may still fail to load.
        output::note(&format!("\nThe administrator's key, shown this once; keep it:\n\n    {}\n", key.reveal()));
        *first_key.lock().unwrap_or_else(PoisonError::into_inner) = Some(key.clone());
    };
    let served = tokio::select! {
        started = Served::start(&settings, Arc::new(Bar::new()), &tell_key) => started.map_err(hinted)?,
        () = signals.next() => return Ok(()),
    };
    let first_key = first_key.into_inner().unwrap_or_else(PoisonError::into_inner);
    output::note(&summary_text(served.summary(), first_key.as_ref().map(Secret::reveal)));
    signals.next().await;
    output::note("stopping: answers in flight may finish; once more stops at once");
    tokio::select! {
        ended = served.run_until(ready(())) => ended,
        () = signals.next() => Err(anyhow::anyhow!("stopped at once; what was running is settled at the next start")),
    }
}

/// What is in effect, secrets masked: for the log's readers; a person at a terminal sees the summary instead.
fn log_settings(settings: &Settings) {
    let text = show(settings).lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    if io::stderr().is_terminal() {
        debug!(settings = text, "settings in effect");
    } else {
        info!(settings = text, "settings in effect");
    }
}

/// Says what to do about the failures that everybody meets once.
fn hinted(error: anyhow::Error) -> anyhow::Error {
    let is_busy = |cause: &&(dyn std::error::Error + 'static)| {
        cause.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::AddrInUse)
    };
    let is_locked = |cause: &&(dyn std::error::Error + 'static)| {
        matches!(cause.downcast_ref::<StoreError>(), Some(StoreError::InUse(_)))
    };
    let hint = if error.chain().any(|cause| is_locked(&cause)) {
        "stop the Millgate that runs on it, or give this one a data directory of its own with --data-dir"
    } else if error.chain().any(|cause| is_busy(&cause)) {
        "stop the program that listens there, or choose another port: --listen 127.0.0.1:8081"
    } else {
        "docs/operations.md lists what messages mean; MILLGATE_LOG=debug shows more"
    };
    error.context(Hinted::context("the server cannot start", hint))
}

/// The two signals that mean: stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Self { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    /// Waits for the next one.
    async fn next(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}
