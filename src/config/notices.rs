//! `[notices]`: what is told about quotas, and to whom.

use std::path::PathBuf;

use super::environment::Environment;
use super::file::ConfigError;
use super::raw::RawNotices;
use super::resolve::Place;
use crate::governance::Secret;
use crate::telemetry::guard;

/// The shortest secret that signs.
const SECRET_MIN: usize = 16;

/// `[notices]` and its environment, resolved.
#[derive(Debug, Clone, Default)]
pub struct NoticeSettings {
    /// Percents of a quota whose reaching is told; sorted.
    pub thresholds: Vec<u8>,
    /// Where notices are sent.
    pub webhook: Option<WebhookSettings>,
    /// The file the secret is from.
    pub secret_file: Option<PathBuf>,
}

/// A receiver of notices.
#[derive(Debug, Clone)]
pub struct WebhookSettings {
    /// Its address.
    pub url: String,
    /// Signs what it is sent.
    pub secret: SecretSource,
}

/// Where a secret is.
#[derive(Debug, Clone)]
pub enum SecretSource {
    /// In the environment.
    Given(Secret),
    /// In a file that is read when the server starts.
    File(PathBuf),
}

impl SecretSource {
    /// The secret itself.
    ///
    /// # Errors
    /// In words: the file cannot be read, or the secret is too short.
    pub fn read(&self) -> Result<Secret, String> {
        let text = match self {
            Self::Given(secret) => secret.reveal().to_owned(),
            Self::File(file) => std::fs::read_to_string(file)
                .map_err(|error| format!("cannot read `{}`: {error}", file.display()))?
                .trim()
                .to_owned(),
        };
        if text.len() < SECRET_MIN {
            return Err(format!("the secret that signs notices must have at least {SECRET_MIN} characters"));
        }
        guard(&text);
        Ok(Secret::new(text))
    }
}

pub(super) fn resolve(
    at: &Place<'_>,
    raw: RawNotices,
    environment: &Environment,
) -> Result<NoticeSettings, ConfigError> {
    let wrong = |name: &str, problem: &str| at.wrong("notices", 0, name, problem);
    let mut thresholds = raw.thresholds.unwrap_or_else(|| vec![50, 80, 95]);
    thresholds.sort_unstable();
    thresholds.dedup();
    if thresholds.iter().any(|percent| !(1..=100).contains(percent)) || thresholds.len() > 10 {
        return Err(wrong("thresholds", "at most ten percents from 1 to 100; an empty list tells nothing"));
    }
    let Some(url) = raw.webhook_url else {
        return Ok(NoticeSettings { thresholds, webhook: None, secret_file: raw.webhook_secret_file });
    };
    if !url.starts_with("https://") && !url.starts_with("http://") {
        return Err(wrong("webhook_url", "must begin with https:// or http://"));
    }
    let authority =
        url.split_once("://").map_or("", |(_, rest)| rest.split(['/', '?', '#']).next().unwrap_or_default());
    if authority.contains('@') {
        return Err(wrong(
            "webhook_url",
            "must hold no credentials: it is shown in the log, and what is sent is signed",
        ));
    }
    let secret = match (&environment.webhook_secret, &raw.webhook_secret_file) {
        (Some(secret), _) => SecretSource::Given(Secret::new(secret.clone())),
        (None, Some(file)) => SecretSource::File(file.clone()),
        (None, None) => {
            return Err(wrong("webhook_url", "needs a secret: set MILLGATE_WEBHOOK_SECRET or webhook_secret_file"));
        }
    };
    let webhook = Some(WebhookSettings { url, secret });
    Ok(NoticeSettings { thresholds, webhook, secret_file: raw.webhook_secret_file })
}
