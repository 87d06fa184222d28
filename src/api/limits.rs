//! What governance says about limits, as errors and headers of the HTTP side.
use std::time::Duration;

use axum::http::{HeaderMap, HeaderValue};
use serde_json::{Value, json};

use super::error::{ApiError, Kind, retry_after_ms};
use super::headers::{Gauge, Unit, limit_headers};
use crate::governance::pricing::usd;
use crate::governance::{AuthFailure, Denied, LimitStanding, Mode, Refusal, Resource, ServiceError};

/// A quota that frees later than this is not worth an automatic retry.
const LONGEST_USEFUL_WAIT: Duration = Duration::from_secs(3600);
/// When to look again after a store that did not answer.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// The headers of an admitted request: where limits stand, which `thresholds` of quotas are reached, which soft limits it is over.
pub(crate) fn standing_headers(standing: &[LimitStanding], thresholds: &[u8]) -> HeaderMap {
    let gauges: Vec<Gauge> = hard(standing).map(gauge).collect();
    let mut headers = limit_headers(&gauges, None);
    if let Some(notice) = notices(standing, thresholds) {
        headers.insert("x-millgate-quota-notice", notice);
    }
    if let Some(over) = over_soft(standing) {
        headers.insert("x-millgate-soft-limit", over);
    }
    headers
}

/// Limits told in one header at most.
const TOLD_MAX: usize = 8;

/// `"free: 10 requests / 1m soft", ...`: the soft limits that the request is over, so that it is computed with less weight.
fn over_soft(standing: &[LimitStanding]) -> Option<HeaderValue> {
    let over = standing.iter().filter(|limit| limit.is_over_soft());
    told(over.take(TOLD_MAX).map(|limit| quoted(&limit.limit)))
}

/// A name as a structured field may hold it: names of models may hold anything, these printable ASCII.
fn quoted(name: &str) -> String {
    let name: String =
        name.chars().map(|c| if matches!(c, ' '..='~') && !"\"\\".contains(c) { c } else { '?' }).collect();
    format!("\"{name}\"")
}

/// The items of a header; none without any.
fn told(items: impl Iterator<Item = String>) -> Option<HeaderValue> {
    let text = items.collect::<Vec<_>>().join(", ");
    HeaderValue::try_from(text).ok().filter(|text| !text.is_empty())
}

/// `"free: 500000 tokens / day";threshold=80;used=83, ...`: quotas that have reached a threshold, in percent of the amount,
/// those used most first.
fn notices(standing: &[LimitStanding], thresholds: &[u8]) -> Option<HeaderValue> {
    let share = |limit: &LimitStanding| u128::from(limit.used) * 100 / u128::from(limit.amount.max(1));
    let mut reached: Vec<_> = standing
        .iter()
        .filter(|limit| limit.mode != Mode::Shadow)
        .filter_map(|limit| Some((share(limit), limit.notice(thresholds)?, limit)))
        .collect();
    reached.sort_by_key(|(share, ..)| std::cmp::Reverse(*share));
    let item = |(share, threshold, limit): &(u128, u8, &LimitStanding)| {
        format!("{};threshold={threshold};used={share}", quoted(&limit.limit))
    };
    told(reached.iter().take(TOLD_MAX).map(item))
}

fn hard(standing: &[LimitStanding]) -> impl Iterator<Item = &LimitStanding> {
    standing.iter().filter(|limit| limit.mode == Mode::Hard)
}

fn gauge(standing: &LimitStanding) -> Gauge {
    let unit = match standing.resource {
        Resource::Requests => Unit::Requests,
        Resource::Concurrent => Unit::Concurrent,
        Resource::Tokens | Resource::PromptTokens | Resource::CompletionTokens => Unit::Tokens,
        Resource::Cost => Unit::Money,
    };
    Gauge {
        unit,
        amount: standing.amount,
        remaining: standing.remaining,
        window: window_length(&standing.window),
        reset: standing.reset_after,
        reset_at: Duration::from_micros(u64::try_from(standing.reset_at_us).unwrap_or(0)),
    }
}

/// The window as a length; a calendar period counts as its usual one.
fn window_length(window: &str) -> Option<Duration> {
    const DAY: u64 = 86_400;
    let seconds = match window.split(' ').next().unwrap_or_default() {
        "day" => DAY,
        "week" => 7 * DAY,
        "month" => 30 * DAY,
        rate => {
            let (count, unit) = rate.split_at_checked(rate.len().checked_sub(1)?)?;
            let factor = match unit {
                "s" => 1,
                "m" => 60,
                "h" => 3600,
                _ => return None,
            };
            count.parse::<u64>().ok()? * factor
        }
    };
    Some(Duration::from_secs(seconds))
}

/// The window in the words of a sentence: `minute`, `2 minutes`, `day`.
fn window_words(window: &str) -> String {
    let word = window.split(' ').next().unwrap_or_default();
    let Some((count, unit)) = word.len().checked_sub(1).and_then(|at| word.split_at_checked(at)) else {
        return word.to_owned();
    };
    let name = match unit {
        "s" => "second",
        "m" => "minute",
        "h" => "hour",
        _ => return word.to_owned(),
    };
    match count {
        "1" => name.to_owned(),
        count if count.bytes().all(|byte| byte.is_ascii_digit()) => format!("{count} {name}s"),
        _ => word.to_owned(),
    }
}

/// An amount of a resource in JSON: a number; money as dollars in a decimal string.
pub(crate) fn figure(resource: Resource, amount: u64) -> Value {
    match resource {
        Resource::Cost => usd(amount).into(),
        _ => amount.into(),
    }
}

/// The machine-readable part of a refusal: also what a stream's last chunk says when a limit ended it.
pub(crate) fn denied_detail(denied: &Denied) -> Value {
    let mut detail = json!({
        "reason": denied.reason,
        "limit": &*denied.limit,
        "scope": denied.scope,
        "used": figure(denied.resource, denied.used),
        "requested": figure(denied.resource, denied.requested),
    });
    if let Some(wait) = denied.retry_after {
        detail["retry_after_ms"] = retry_after_ms(wait).into();
    }
    if denied.is_estimate {
        detail["estimate"] = true.into();
    }
    detail
}

/// 429 with everything a client needs to decide when to come back.
pub(crate) fn denied_error(denied: &Denied) -> ApiError {
    let window = window_words(&denied.window);
    let (kind, mut message) = match denied.resource {
        Resource::Requests => (
            Kind::RateLimited,
            format!(
                "Rate limit exceeded. You have exceeded the maximum number of requests per {window} for your tier."
            ),
        ),
        Resource::Concurrent => (
            Kind::RateLimited,
            "Rate limit exceeded. You have exceeded the maximum number of concurrent requests for your tier."
                .to_owned(),
        ),
        Resource::Cost => (
            Kind::QuotaExceeded,
            format!(
                "Money quota exceeded. You have consumed the maximum amount of money allowed per {window} for your tier."
            ),
        ),
        Resource::Tokens | Resource::PromptTokens | Resource::CompletionTokens => (
            Kind::QuotaExceeded,
            format!(
                "Token quota exceeded. You have consumed the maximum number of tokens allowed per {window} for your tier."
            ),
        ),
    };
    if denied.retry_after.is_none() {
        let asked = match denied.resource {
            Resource::Cost => format!("up to {} USD", usd(denied.requested)),
            _ => denied.requested.to_string(),
        };
        message.push_str(&format!(" This request needs {asked}, more than the whole limit: it can never fit."));
    }
    let gauges: Vec<Gauge> = hard(&denied.standing).map(gauge).collect();
    let refused = hard(&denied.standing).find(|standing| standing.limit == denied.limit).map(gauge);
    let error = ApiError::new(kind, message)
        .with_detail(denied_detail(denied))
        .with_headers(limit_headers(&gauges, refused.as_ref()));
    match denied.retry_after {
        None => error.with_should_retry(false),
        Some(wait) if wait > LONGEST_USEFUL_WAIT => error.with_retry_after(wait).with_should_retry(false),
        Some(wait) => error.with_retry_after(wait),
    }
}

/// A refused admission.
pub(crate) fn refusal_error(refusal: &Refusal) -> ApiError {
    match refusal {
        Refusal::Denied(denied) => denied_error(denied),
        Refusal::ModelForbidden => ApiError::model_forbidden(),
        Refusal::NoTier => ApiError::forbidden("No tier holds any of your groups."),
        Refusal::Unavailable { retry_after } => {
            ApiError::unavailable("Limits cannot be checked at the moment. Please retry later.", *retry_after)
        }
    }
}

/// A credential that opens nothing.
pub(crate) fn auth_error(failure: &AuthFailure) -> ApiError {
    match failure {
        AuthFailure::Invalid => ApiError::unauthenticated("the credential is not valid"),
        AuthFailure::Throttled { retry_after } => {
            ApiError::new(Kind::RateLimited, "Rate limit exceeded. Too many failed credentials from this address.")
                .with_retry_after(*retry_after)
                .with_detail(json!({"reason": "failed_credentials", "retry_after_ms": retry_after_ms(*retry_after)}))
        }
        AuthFailure::Unavailable => {
            ApiError::unavailable("Credentials cannot be checked at the moment. Please retry later.", STORE_PAUSE)
        }
    }
}

impl From<ServiceError> for ApiError {
    fn from(error: ServiceError) -> Self {
        match error {
            ServiceError::NotFound(thing) => Self::not_found(capitalised(thing)),
            ServiceError::Conflict(message) => Self::new(Kind::Conflict, message),
            ServiceError::Invalid { param, message } => Self::invalid(Some(param), message),
            ServiceError::Forbidden(message) => Self::new(Kind::Forbidden, message),
            ServiceError::TooManyChanges { retry_after } => {
                Self::new(Kind::RateLimited, "Rate limit exceeded. Too many changes to your keys and tokens.")
                    .with_retry_after(retry_after)
                    .with_detail(json!({"reason": "too_many_changes", "retry_after_ms": retry_after_ms(retry_after)}))
            }
            ServiceError::Unavailable(source) => {
                tracing::error!(error = %source, "the store failed on a request");
                Self::unavailable("The store cannot be used at the moment. Please retry later.", STORE_PAUSE)
            }
        }
    }
}

fn capitalised(thing: &str) -> String {
    let mut letters = thing.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_named_in_words_and_measured_in_seconds() {
        for (window, words, seconds) in [
            ("1m", "minute", Some(60)),
            ("2m", "2 minutes", Some(120)),
            ("1h", "hour", Some(3600)),
            ("30s", "30 seconds", Some(30)),
            ("day", "day", Some(86_400)),
            ("week Europe/Paris", "week", Some(604_800)),
            ("now", "now", None),
            ("", "", None),
        ] {
            assert_eq!(
                (window_words(window).as_str(), window_length(window)),
                (words, seconds.map(Duration::from_secs))
            );
        }
    }
}
