//! The engine thread: waits for work, computes step after step, and leaves no request without its terminal event.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::{Duration, Instant};

use millgate_models::Model;
use millgate_models::text::ModelText;
use tracing::{error, info};
use uuid::Uuid;

use super::config::Config;
use super::handle::{EngineHandle, Lines};
use super::inbox::Inbox;
use super::pulse::Pulse;
use super::request::Failure;
use super::stepper::{Step, Stepper};

/// Longest wait without a heartbeat.
const IDLE_BEAT: Duration = Duration::from_secs(1);

/// An engine that had nothing to do for so long is idle; under load there are many shorter pauses.
const SETTLED: Duration = Duration::from_millis(20);

/// Why an engine could not be started.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The model cannot serve at all with these sizes.
    #[error("model `{name}` has {what} of zero")]
    Size {
        /// The model.
        name: String,
        /// The size.
        what: &'static str,
    },
    /// The system gave no thread.
    #[error("cannot start the engine thread of `{name}`")]
    Thread {
        /// The model.
        name: String,
        /// The system's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Starts the thread that runs `model` and returns the way to it.
///
/// # Errors
/// [`EngineError`]; the model is dropped then.
pub fn spawn(name: &str, model: Box<dyn Model>, text: ModelText, config: Config) -> Result<EngineHandle, EngineError> {
    let facts = model.spec();
    let sizes = [
        ("a context window", facts.context_window),
        ("a vocabulary", facts.vocab_size),
        ("a number of blocks", facts.num_blocks),
        ("a step size", facts.max_step_tokens),
        ("a number of output rows", facts.max_output_rows),
    ];
    if let Some((what, _)) = sizes.into_iter().find(|&(_, size)| size == 0) {
        return Err(EngineError::Size { name: name.to_owned(), what });
    }
    let inbox = Arc::new(Inbox::new(&config));
    let pulse = Arc::new(Pulse::new());
    let stuck_after = config.stuck_after;
    let stepper = Stepper::new(name, model, text, config, Arc::clone(&inbox));
    let spec = stepper.spec().clone();
    let body = {
        let (inbox, pulse, name) = (Arc::clone(&inbox), Arc::clone(&pulse), name.to_owned());
        move || live(&name, stepper, &inbox, &pulse)
    };
    let thread = std::thread::Builder::new()
        .name(format!("engine {name}"))
        .spawn(body)
        .map_err(|source| EngineError::Thread { name: name.to_owned(), source })?;
    Ok(EngineHandle::new(name.to_owned(), spec, stuck_after, Lines { inbox, pulse, thread }))
}

/// The life of the thread, with its end in any case.
fn live(name: &str, mut stepper: Stepper, inbox: &Inbox, pulse: &Pulse) {
    // The stepper is not used after a panic, so a state that it left broken is seen by nobody.
    let end = catch_unwind(AssertUnwindSafe(|| run(&mut stepper, inbox, pulse)));
    let failure = match end {
        Ok(()) => Failure::Shutdown,
        Err(panic) => {
            let reference = Uuid::new_v4();
            let reason = panic.downcast_ref::<String>().map(String::as_str);
            let reason = reason.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
            error!(error.id = %reference, "the engine thread of `{name}` panicked: {reason}");
            inbox.report_fault(format!("the engine thread panicked: {reason}"));
            Failure::Internal(reference)
        }
    };
    inbox.close(failure);
    info!("engine `{name}` has stopped");
}

fn run(stepper: &mut Stepper, inbox: &Inbox, pulse: &Pulse) {
    let mut patience = Duration::ZERO;
    let (mut is_checked, mut idle_since) = (true, None);
    loop {
        let mail = inbox.take(patience);
        if mail.is_stopping {
            return;
        }
        let now = Instant::now();
        pulse.beat();
        mail.arrived.into_iter().for_each(|submission| stepper.accept(submission, now));
        stepper.heed_wishes(now);
        let step = stepper.step(now);
        stepper.observe(step, now.elapsed());
        match step {
            Step::Worked { .. } => {
                patience = Duration::ZERO;
                (is_checked, idle_since) = (false, None);
            }
            Step::Idle { until } => {
                let until = until.map(|until| until.saturating_duration_since(Instant::now()));
                patience = until.map_or(IDLE_BEAT, |until| until.min(IDLE_BEAT));
                if !is_checked {
                    if idle_since.get_or_insert(now).elapsed() >= SETTLED {
                        is_checked = true;
                        check(stepper, inbox);
                    } else {
                        patience = patience.min(SETTLED);
                    }
                }
            }
        }
    }
}

/// Compares the books once each time that the engine has nothing to do: then it costs nobody anything.
fn check(stepper: &Stepper, inbox: &Inbox) {
    if let Err(disagreement) = stepper.check() {
        error!("the engine's books disagree: {disagreement}");
        inbox.report_fault(disagreement);
    }
}

#[cfg(test)]
#[path = "worker_tests.rs"]
mod tests;
