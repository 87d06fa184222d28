//! Turns the standing of a caller's limits into response headers: ours, OpenAI's and the IETF draft's.
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, HeaderValue};

use crate::governance::pricing::usd;

/// What a limit counts, as far as headers can say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    Requests,
    Tokens,
    Concurrent,
    /// Nano-dollars.
    Money,
}

/// One limit as the headers show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Gauge {
    pub(crate) unit: Unit,
    pub(crate) amount: u64,
    pub(crate) remaining: u64,
    /// The window's length; `None` for what has no window.
    pub(crate) window: Option<Duration>,
    /// How long until the limit is whole again; zero when it is.
    pub(crate) reset: Duration,
    /// The same as a moment, since the Unix epoch: the one that `/v1/me` names, too.
    pub(crate) reset_at: Duration,
}

impl Gauge {
    /// A figure of it as people read it: money in dollars.
    fn figure(&self, amount: u64) -> String {
        if self.unit == Unit::Money { usd(amount) } else { amount.to_string() }
    }

    fn window_seconds(&self) -> Option<u64> {
        self.window.map(whole_seconds_up)
    }

    /// The two parts of its policy's name.
    fn policy(&self) -> (&'static str, Option<u64>) {
        match self.unit {
            Unit::Requests => ("requests", self.window_seconds()),
            Unit::Tokens => ("tokens", self.window_seconds()),
            Unit::Money => ("cost", self.window_seconds()),
            Unit::Concurrent => ("concurrent", None),
        }
    }

    /// A figure of it as the IETF draft allows: integers of at most 15 digits. Money in micro-dollars, never more than there is.
    fn ietf(&self, amount: u64) -> u64 {
        if self.unit == Unit::Money { amount / 1000 } else { amount }
    }
}

// Names that are checked while compiling: an answer has a dozen of them.
const LIMIT: HeaderName = HeaderName::from_static("x-ratelimit-limit");
const REMAINING: HeaderName = HeaderName::from_static("x-ratelimit-remaining");
const RESET: HeaderName = HeaderName::from_static("x-ratelimit-reset");
const LIMIT_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-limit-requests");
const REMAINING_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-requests");
const RESET_REQUESTS: HeaderName = HeaderName::from_static("x-ratelimit-reset-requests");
const LIMIT_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-limit-tokens");
const REMAINING_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-remaining-tokens");
const RESET_TOKENS: HeaderName = HeaderName::from_static("x-ratelimit-reset-tokens");
const IETF_POLICIES: HeaderName = HeaderName::from_static("ratelimit-policy");
const IETF_STANDINGS: HeaderName = HeaderName::from_static("ratelimit");

/// Headers of a governed answer, with those that others add to them.
const HEADERS_MAX: usize = 24;

/// The headers of a governed answer: `gauges` are all hard limits that apply, `refused` is the one that said no.
pub(crate) fn limit_headers(gauges: &[Gauge], refused: Option<&Gauge>) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(HEADERS_MAX);
    let tightest = |unit| gauges.iter().filter(move |gauge| gauge.unit == unit).min_by(|a, b| tighter(a, b));
    let (requests, tokens) = (tightest(Unit::Requests), tightest(Unit::Tokens));
    if let Some(shown) = refused.or(requests).or(tokens) {
        put(&mut headers, LIMIT, shown.figure(shown.amount));
        put(&mut headers, REMAINING, shown.figure(shown.remaining));
        put_number(&mut headers, RESET, whole_seconds_up(shown.reset_at));
    }
    if let Some(gauge) = requests {
        put_number(&mut headers, LIMIT_REQUESTS, gauge.amount);
        put_number(&mut headers, REMAINING_REQUESTS, gauge.remaining);
        put(&mut headers, RESET_REQUESTS, openai_duration(gauge.reset));
    }
    if let Some(gauge) = tokens {
        put_number(&mut headers, LIMIT_TOKENS, gauge.amount);
        put_number(&mut headers, REMAINING_TOKENS, gauge.remaining);
        put(&mut headers, RESET_TOKENS, openai_duration(gauge.reset));
    }
    if !gauges.is_empty() {
        put(&mut headers, IETF_POLICIES, ietf_policies(gauges));
        put(&mut headers, IETF_STANDINGS, ietf_standings(gauges));
    }
    headers
}

/// Less of its amount left first; of equals the one that takes longer to be whole again.
fn tighter(a: &Gauge, b: &Gauge) -> std::cmp::Ordering {
    let (left, right) =
        (u128::from(a.remaining) * u128::from(b.amount), u128::from(b.remaining) * u128::from(a.amount));
    left.cmp(&right).then(b.reset.cmp(&a.reset))
}

fn put(headers: &mut HeaderMap, name: HeaderName, value: String) {
    let value = HeaderValue::try_from(value).expect("numbers, durations and quoted names are header text");
    headers.insert(name, value);
}

fn put_number(headers: &mut HeaderMap, name: HeaderName, value: u64) {
    headers.insert(name, HeaderValue::from(value));
}

/// A duration as OpenAI writes it: `12ms`, `1s`, `6m0s`, `2h3m0s`; never less than the truth.
pub(crate) fn openai_duration(length: Duration) -> String {
    if length < Duration::from_secs(1) {
        return format!("{}ms", length.as_micros().div_ceil(1000));
    }
    let seconds = whole_seconds_up(length);
    match (seconds / 3600, seconds / 60 % 60, seconds % 60) {
        (0, 0, seconds) => format!("{seconds}s"),
        (0, minutes, seconds) => format!("{minutes}m{seconds}s"),
        (hours, minutes, seconds) => format!("{hours}h{minutes}m{seconds}s"),
    }
}

fn whole_seconds_up(length: Duration) -> u64 {
    length.as_secs() + u64::from(length.subsec_nanos() > 0)
}

/// `"requests-60";q=5;w=60, "tokens-60";q=100;w=60;qu="tokens"` (draft-ietf-httpapi-ratelimit-headers-10).
fn ietf_policies(gauges: &[Gauge]) -> String {
    list(gauges, |text, gauge| {
        text.push_str(";q=");
        push_number(text, gauge.ietf(gauge.amount));
        if let Some(seconds) = gauge.window_seconds() {
            text.push_str(";w=");
            push_number(text, seconds);
        }
        text.push_str(match gauge.unit {
            Unit::Requests => "",
            Unit::Tokens => ";qu=\"tokens\"",
            Unit::Concurrent => ";qu=\"concurrent-requests\"",
            Unit::Money => ";qu=\"micro-usd\"",
        });
    })
}

/// `"requests-60";r=4;t=60, ...`, in the order of the policies.
fn ietf_standings(gauges: &[Gauge]) -> String {
    list(gauges, |text, gauge| {
        text.push_str(";r=");
        push_number(text, gauge.ietf(gauge.remaining));
        if gauge.unit != Unit::Concurrent {
            text.push_str(";t=");
            push_number(text, whole_seconds_up(gauge.reset));
        }
    })
}

/// Each gauge under a policy name that is unique in this answer, followed by what `figures` says of it.
fn list(gauges: &[Gauge], figures: impl Fn(&mut String, &Gauge)) -> String {
    let mut text = String::with_capacity(64 * gauges.len());
    for (index, gauge) in gauges.iter().enumerate() {
        let (name, seconds) = gauge.policy();
        let earlier = gauges[..index].iter().filter(|other| other.policy() == (name, seconds)).count();
        text.push_str(if index == 0 { "\"" } else { ", \"" });
        text.push_str(name);
        if let Some(seconds) = seconds {
            text.push('-');
            push_number(&mut text, seconds);
        }
        if earlier > 0 {
            text.push('-');
            push_number(&mut text, earlier as u64 + 1);
        }
        text.push('"');
        figures(&mut text, gauge);
    }
    text
}

/// Adds a number, without the machinery of formatting: an answer has some twenty of them.
fn push_number(text: &mut String, number: u64) {
    text.push_str(itoa::Buffer::new().format(number));
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    fn gauge(unit: Unit, amount: u64, remaining: u64, window_s: u64, reset_ms: u64) -> Gauge {
        let window = (window_s > 0).then(|| Duration::from_secs(window_s));
        let reset = Duration::from_millis(reset_ms);
        Gauge { unit, amount, remaining, window, reset, reset_at: NOW + reset }
    }

    fn shown(headers: &HeaderMap) -> String {
        let line = |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}\n", value.to_str().unwrap());
        headers.iter().map(line).collect()
    }

    const NOW: Duration = Duration::from_secs(1_700_000_000);

    #[test]
    fn the_tightest_request_limit_is_shown_and_every_limit_is_listed() {
        let gauges = [
            gauge(Unit::Requests, 5, 4, 120, 118_500),
            gauge(Unit::Requests, 1000, 10, 86_400, 3_600_000),
            gauge(Unit::Tokens, 100_000, 99_000, 60, 12),
            gauge(Unit::Concurrent, 4, 3, 0, 0),
        ];
        assert_snapshot!(shown(&limit_headers(&gauges, None)), @r#"
        x-ratelimit-limit: 1000
        x-ratelimit-remaining: 10
        x-ratelimit-reset: 1700003600
        x-ratelimit-limit-requests: 1000
        x-ratelimit-remaining-requests: 10
        x-ratelimit-reset-requests: 1h0m0s
        x-ratelimit-limit-tokens: 100000
        x-ratelimit-remaining-tokens: 99000
        x-ratelimit-reset-tokens: 12ms
        ratelimit-policy: "requests-120";q=5;w=120, "requests-86400";q=1000;w=86400, "tokens-60";q=100000;w=60;qu="tokens", "concurrent";q=4;qu="concurrent-requests"
        ratelimit: "requests-120";r=4;t=119, "requests-86400";r=10;t=3600, "tokens-60";r=99000;t=1, "concurrent";r=3
        "#);
    }

    #[test]
    fn a_refusal_shows_the_limit_that_refused() {
        let gauges = [gauge(Unit::Requests, 5, 4, 120, 0), gauge(Unit::Tokens, 100, 0, 60, 41_724)];
        let headers = limit_headers(&gauges, Some(&gauges[1]));
        assert_eq!(headers["x-ratelimit-limit"], "100");
        assert_eq!(headers["x-ratelimit-remaining"], "0");
        assert_eq!(headers["x-ratelimit-reset"], "1700000042");
    }

    #[test]
    fn money_is_shown_in_dollars_and_never_taken_for_tokens() {
        let money = gauge(Unit::Money, 20_000_000_000, 500_000_001, 30 * 86_400, 60_000);
        let headers = limit_headers(std::slice::from_ref(&money), None);
        assert_snapshot!(shown(&headers), @r#"
        ratelimit-policy: "cost-2592000";q=20000000;w=2592000;qu="micro-usd"
        ratelimit: "cost-2592000";r=500000;t=60
        "#);
        let headers = limit_headers(std::slice::from_ref(&money), Some(&money));
        assert_eq!(
            (&headers["x-ratelimit-limit"], &headers["x-ratelimit-remaining"]),
            (&"20".parse::<HeaderValue>().unwrap(), &"0.500000001".parse().unwrap())
        );
    }

    #[test]
    fn an_unlimited_caller_gets_no_limit_headers() {
        assert!(limit_headers(&[], None).is_empty());
    }

    #[test]
    fn policies_of_one_kind_and_window_get_different_names() {
        let gauges = [gauge(Unit::Tokens, 10, 10, 60, 0), gauge(Unit::Tokens, 20, 20, 60, 0)];
        assert_eq!(limit_headers(&gauges, None)["ratelimit"], r#""tokens-60";r=10;t=0, "tokens-60-2";r=20;t=0"#);
    }

    #[test]
    fn durations_are_written_as_openai_writes_them() {
        for (millis, text) in [
            (0, "0ms"),
            (12, "12ms"),
            (1000, "1s"),
            (1001, "2s"),
            (360_000, "6m0s"),
            (59_999, "1m0s"),
            (7_383_000, "2h3m3s"),
        ] {
            assert_eq!(openai_duration(Duration::from_millis(millis)), text);
        }
    }
}
