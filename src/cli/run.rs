//! Dispatches a command and turns its failure into an exit code.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::runtime::Runtime;

use crate::config::Environment;

use super::args::{Cli, Command};
use super::{
    audit, bench, chat, config_command, fail, key, model, output, price, reconcile, serve, tier, token, usage, user,
};

/// How long threads that read files may go on after everything else has ended.
const LAST_WAIT: Duration = Duration::from_secs(1);

/// Runs the command line to its end; a failure is printed once, with its causes and a hint.
#[must_use]
pub fn run(cli: &Cli) -> ExitCode {
    let environment = Environment::read();
    match dispatch(&cli.command, &environment) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            output::note(&fail::report(&error));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: &Command, environment: &Environment) -> Result<()> {
    let runtime = || Runtime::new().context("cannot start the runtime");
    match command {
        Command::Serve(args) => {
            let runtime = runtime()?;
            let outcome = runtime.block_on(serve::run(args, environment));
            // A model that is still being read must not keep a stopped process alive.
            runtime.shutdown_timeout(LAST_WAIT);
            outcome
        }
        Command::Chat(args) => chat::run(args, environment, &runtime()?),
        Command::Bench(args) => runtime()?.block_on(bench::run(args, environment)),
        Command::Key(command) => runtime()?.block_on(key::run(command, environment)),
        Command::Token(command) => runtime()?.block_on(token::run(command, environment)),
        Command::Tier(command) => runtime()?.block_on(tier::run(command, environment)),
        Command::User(command) => runtime()?.block_on(user::run(command, environment)),
        Command::Model(command) => runtime()?.block_on(model::run(command, environment)),
        Command::Audit(command) => runtime()?.block_on(audit::run(command, environment)),
        Command::Usage(args) => runtime()?.block_on(usage::run(args, environment)),
        Command::Reconcile(args) => runtime()?.block_on(reconcile::run(args, environment)),
        Command::Price(command) => runtime()?.block_on(price::run(command, environment)),
        Command::Config(command) => config_command::run(command, environment),
    }
}
