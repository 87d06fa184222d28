//! `millgate config`: check a file, show what is in effect, print the reference.

use std::path::Path;

use anyhow::{Context as _, Result};

use crate::config::{
    Environment, Overrides, RawConfig, Settings, example_file, find_file, read_file, reference_page, resolve, show,
};

use super::args::{ConfigCommand, ConfigShowArgs};
use super::fail::Hinted;
use super::output;

/// Runs a config command.
///
/// # Errors
/// A file that cannot be read or used; names key and line.
pub(super) fn run(command: &ConfigCommand, environment: &Environment) -> Result<()> {
    match command {
        ConfigCommand::Check(args) => {
            load(Some(&args.file), environment, &Overrides::default())?;
            output::line(&format!("{} is fine", args.file.display()))
        }
        ConfigCommand::Show(args) => show_effective(args, environment),
        ConfigCommand::Reference => output::text(&reference_page()),
        ConfigCommand::Example => output::text(&example_file()),
    }
}

/// The settings in effect for a named or found file.
///
/// # Errors
/// As [`read_file`] and [`resolve`], with the file's name and a hint.
pub(super) fn load(named: Option<&Path>, environment: &Environment, overrides: &Overrides) -> Result<Settings> {
    let file = find_file(named, environment);
    let hint = || Hinted::context("the configuration cannot be used", "`millgate config reference` explains every key");
    let (raw, text) = match &file {
        Some(file) => read_file(file).with_context(hint)?,
        None => (RawConfig::default(), String::new()),
    };
    let settings = resolve(raw, &text, environment, overrides);
    match file {
        Some(file) => settings.with_context(|| format!("in `{}`", file.display())).with_context(hint),
        None => settings.with_context(hint),
    }
}

fn show_effective(args: &ConfigShowArgs, environment: &Environment) -> Result<()> {
    let text = show(&load(args.config.as_deref(), environment, &Overrides::default())?);
    if args.json {
        let value: toml::Value = toml::from_str(&text).context("the shown configuration reads back")?;
        return output::json(&value);
    }
    output::text(&text)
}

#[cfg(test)]
mod tests {
    use super::super::fail::report;
    use super::*;

    #[test]
    fn a_wrong_file_is_told_with_key_line_file_and_hint() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("m.toml");
        std::fs::write(&file, "[engine]\nstep_tokens = 1\n").unwrap();
        let error = load(Some(&file), &Environment::default(), &Overrides::default()).unwrap_err();
        let text = report(&error);
        assert!(
            text.contains("`engine.step_tokens` (line 2)") && text.contains("m.toml") && text.contains("hint: "),
            "{text}"
        );
        std::fs::write(&file, "[server]\nlisten = 8080\n").unwrap();
        let text = report(&load(Some(&file), &Environment::default(), &Overrides::default()).unwrap_err());
        assert!(text.contains("line 2, column") && text.contains("listen"), "{text}");
    }
}
