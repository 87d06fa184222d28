//! How failures reach a person: once, with their causes, and with a hint what to do next.

use std::fmt;

use crate::telemetry::redact;

/// An error that knows what the reader can do about it.
#[derive(Debug)]
pub(super) struct Hinted {
    message: String,
    hint: String,
}

impl Hinted {
    /// An error with a hint, ready to be returned.
    pub(super) fn error(message: impl Into<String>, hint: impl Into<String>) -> anyhow::Error {
        anyhow::Error::new(Self { message: message.into(), hint: hint.into() })
    }

    /// The hint as a context of another error.
    pub(super) fn context(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { message: message.into(), hint: hint.into() }
    }
}

impl fmt::Display for Hinted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Hinted {}

/// The whole failure as text: the message, each cause that adds something, the hint.
pub(super) fn report(error: &anyhow::Error) -> String {
    let mut text = format!("error: {error}");
    let mut said = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some libraries repeat their source in their own message; say it once.
        if !said.contains(&cause) {
            text.push_str(&format!("\n  because: {}", cause.trim_end().replace('\n', "\n    ")));
            said = cause;
        }
    }
    if let Some(hint) = hint(error) {
        text.push_str(&format!("\n  hint: {hint}"));
    }
    redact(&text).into_owned()
}

fn hint(error: &anyhow::Error) -> Option<String> {
    if let Some(hinted) = error.downcast_ref::<Hinted>() {
        return Some(hinted.hint.clone());
    }
    error.chain().find_map(|cause| cause.downcast_ref::<Hinted>()).map(|hinted| hinted.hint.clone())
}

#[cfg(test)]
mod tests {
    use anyhow::Context as _;

    use super::*;

    #[test]
    fn a_failure_is_told_once_with_causes_and_hint() {
        let error = std::fs::read("/nonexistent/file")
            .context("cannot read it")
            .context(Hinted::context("cannot start", "check the path"))
            .unwrap_err();
        let text = report(&error);
        assert!(text.starts_with("error: cannot start\n  because: cannot read it\n  because: No such file"), "{text}");
        assert!(text.ends_with("\n  hint: check the path"), "{text}");
    }
}
