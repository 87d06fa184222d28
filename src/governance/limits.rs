//! A limit: how much of what, in which window, shared by whom; its text form and its JSON form.
//!
//! `100000 tokens / 1m`, `4 concurrent`, `2000000 tokens / day Europe/Paris`, `20 usd / month`, optionally followed by `per key`
//! or `per tier`, `on MODEL`, and `soft` or `shadow`.

use std::collections::HashSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::pricing::{parse_usd, usd};

/// What is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resource {
    /// Requests; one each, spent at admission and given back only when the answer is an error.
    Requests,
    /// Prompt and completion tokens together.
    Tokens,
    /// Prompt tokens, cached ones in full.
    PromptTokens,
    /// Completion tokens.
    CompletionTokens,
    /// Sequences being answered at this moment (prompts x n).
    Concurrent,
    /// Money, in nano-dollars; what tokens cost at the admission's price.
    Cost,
}

impl Resource {
    /// The word used in JSON, text and error reasons.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Requests => "requests",
            Self::Tokens => "tokens",
            Self::PromptTokens => "prompt_tokens",
            Self::CompletionTokens => "completion_tokens",
            Self::Concurrent => "concurrent",
            Self::Cost => "cost",
        }
    }

    /// The machine-readable reason of a refusal by a limit on this resource.
    pub fn exceeded(self) -> &'static str {
        match self {
            Self::Requests => "requests_exceeded",
            Self::Tokens => "tokens_exceeded",
            Self::PromptTokens => "prompt_tokens_exceeded",
            Self::CompletionTokens => "completion_tokens_exceeded",
            Self::Concurrent => "concurrency_exceeded",
            Self::Cost => "cost_exceeded",
        }
    }
}

impl FromStr for Resource {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        Ok(match text {
            "request" | "requests" => Self::Requests,
            "token" | "tokens" => Self::Tokens,
            "prompt_token" | "prompt_tokens" => Self::PromptTokens,
            "completion_token" | "completion_tokens" => Self::CompletionTokens,
            "concurrent" => Self::Concurrent,
            "usd" | "cost" => Self::Cost,
            other => return Err(LimitError::Resource(other.to_owned())),
        })
    }
}

/// Who shares one counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// Each user has their own, over all their keys.
    #[default]
    User,
    /// Each key has its own.
    Key,
    /// Everybody in the tier shares one.
    Tier,
}

impl Scope {
    /// The word used in JSON and text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::User => "user",
            Self::Key => "key",
            Self::Tier => "tier",
        }
    }
}

/// What happens above the amount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// Refuse.
    #[default]
    Hard,
    /// Admit with a lower scheduling weight.
    Soft,
    /// Count only.
    Shadow,
}

/// The stretch of time an amount is for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Window {
    /// Any interval of this length.
    Sliding(Rate),
    /// One calendar period.
    Calendar(Period, Zone),
    /// No time at all: what is in flight now.
    Now,
}

/// A length as it was written, so that `60s` stays `60s` although it means the same as `1m`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rate {
    count: u32,
    unit: char,
}

impl Rate {
    /// The length in microseconds.
    pub fn length_us(self) -> i64 {
        let seconds = match self.unit {
            's' => 1,
            'm' => 60,
            _ => 3600,
        };
        i64::from(self.count) * seconds * 1_000_000
    }
}

/// A calendar period; weeks begin on Monday.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Period {
    /// From midnight to midnight.
    Day,
    /// From Monday to Monday.
    Week,
    /// From the first to the first.
    Month,
}

impl Period {
    /// The word used in JSON and text.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Day => "day",
            Self::Week => "week",
            Self::Month => "month",
        }
    }
}

/// A time zone of the IANA data base that is known to exist.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Zone(Arc<str>);

impl Zone {
    /// Coordinated universal time.
    pub fn utc() -> Self {
        Self("UTC".into())
    }

    /// Its IANA name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl FromStr for Zone {
    type Err = LimitError;

    fn from_str(name: &str) -> Result<Self, LimitError> {
        match jiff::tz::TimeZone::get(name) {
            Ok(zone) => Ok(Self(zone.iana_name().unwrap_or(name).into())),
            Err(_) => Err(LimitError::Zone(name.to_owned())),
        }
    }
}

/// Why a limit cannot be configured.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LimitError {
    /// The resource is unknown.
    #[error("`{0}` is not a resource: use requests, tokens, prompt_tokens, completion_tokens, cost or concurrent")]
    Resource(String),
    /// The amount of money is not a number above zero that fits.
    #[error("amount `{0}` must be US dollars with at most 9 decimals, above 0 and at most 9007199.254740991")]
    Money(String),
    /// The amount is not a number above zero that fits.
    #[error("amount `{0}` must be a whole number from 1 to 9007199254740991")]
    Amount(String),
    /// The window is unknown.
    #[error("window `{0}` must be like `30s`, `1m`, `2h` (1 to 99999), or `day`, `week`, `month`")]
    Window(String),
    /// The time zone is unknown.
    #[error("`{0}` is not an IANA time zone")]
    Zone(String),
    /// A zone was given for something that is no calendar period.
    #[error("a time zone belongs to `day`, `week` or `month` only")]
    ZoneWithoutPeriod,
    /// A window was given for concurrency, or none for anything else.
    #[error("`{0}`: every limit but `concurrent` has a window, and `concurrent` has none")]
    WindowPresence(String),
    /// The text form has a word too many.
    #[error("cannot read `{0}` in a limit: write for example `100000 tokens / 1m per key on llama soft`")]
    Word(String),
    /// Two limits would share one counter and one mode.
    #[error("`{0}` is there twice: two limits on the same thing, window, scope, model and mode")]
    Twice(String),
}

/// Amounts stay exact in JSON numbers everywhere.
pub const AMOUNT_MAX: u64 = (1 << 53) - 1;

/// One limit of a tier or a key.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "LimitSpec", into = "LimitSpec")]
pub struct Limit {
    /// What is counted.
    pub resource: Resource,
    /// How much of it passes; at least 1. Money in nano-dollars.
    pub amount: u64,
    /// In which time.
    pub window: Window,
    /// Shared by whom.
    pub scope: Scope,
    /// Only for this model; `None`: all models together.
    pub model: Option<Arc<str>>,
    /// What happens above it.
    pub mode: Mode,
}

impl Limit {
    /// A hard limit per user over all models.
    ///
    /// # Errors
    /// [`LimitError`] names what is wrong.
    pub fn new(resource: Resource, amount: u64, window: &str) -> Result<Self, LimitError> {
        LimitSpec::plain(resource, AmountSpec::of(resource, amount), window).try_into()
    }

    /// The window's part of the text form and of messages: `1m`, `day`, `day Europe/Paris`.
    pub fn window_text(&self) -> String {
        self.window.to_string()
    }

    /// True for a quota: an amount for a calendar period, or of money.
    pub fn is_quota(&self) -> bool {
        self.resource == Resource::Cost || matches!(self.window, Window::Calendar(..))
    }

    /// True when both would count on the same counter.
    pub fn same_counter(&self, other: &Self) -> bool {
        let same_window = match (&self.window, &other.window) {
            (Window::Sliding(a), Window::Sliding(b)) => a.length_us() == b.length_us(),
            (a, b) => a == b,
        };
        same_window && self.resource == other.resource && self.scope == other.scope && self.model == other.model
    }
}

/// Checks a list as a whole.
///
/// # Errors
/// [`LimitError::Twice`] when two limits could not be told apart.
pub fn check_limits(limits: &[Limit]) -> Result<(), LimitError> {
    let mut seen = HashSet::new();
    for limit in limits {
        // Lengths, not texts: `60s` and `1m` are one window.
        let window = match &limit.window {
            Window::Sliding(rate) => (Some(rate.length_us()), None),
            other => (None, Some(other)),
        };
        if !seen.insert((limit.mode, limit.resource, limit.scope, &limit.model, window)) {
            return Err(LimitError::Twice(limit.to_string()));
        }
    }
    Ok(())
}

/// A limit as JSON, YAML and TOML spell it, unchecked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LimitSpec {
    /// What is counted.
    pub resource: String,
    /// How much: a whole number above 0; money as dollars in a decimal string.
    pub amount: AmountSpec,
    /// `30s`, `1m`, `2h`, `day`, `week`, `month`; absent for `concurrent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub window: Option<String>,
    /// Shared by whom; `user` when absent.
    #[serde(default)]
    pub scope: Scope,
    /// Only for this model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// What happens above it; `hard` when absent.
    #[serde(default)]
    pub mode: Mode,
    /// IANA zone of a calendar period; UTC when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
}

/// An amount as JSON, YAML and TOML spell it, unchecked.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(untagged, expecting = "`amount` must be a whole number, or US dollars in a string")]
pub enum AmountSpec {
    /// `100000`
    Whole(u64),
    /// `0.5`, for money written without quotes.
    Fraction(f64),
    /// `"0.5"`, as money is written in JSON.
    Text(String),
}

impl AmountSpec {
    /// The amount of a limit, as it is shown.
    pub fn of(resource: Resource, amount: u64) -> Self {
        match resource {
            Resource::Cost => Self::Text(usd(amount)),
            _ => Self::Whole(amount),
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Whole(amount) => amount.to_string(),
            // The shortest form that reads back alike: what was written, as far as money goes.
            Self::Fraction(amount) => amount.to_string(),
            Self::Text(text) => text.clone(),
        }
    }

    fn check(&self, resource: Resource) -> Result<u64, LimitError> {
        let text = self.text();
        let digits = ungrouped(&text);
        let (amount, wrong) = match resource {
            Resource::Cost => (digits.and_then(|digits| parse_usd(&digits)), LimitError::Money(text)),
            _ => (digits.and_then(|digits| digits.parse().ok()), LimitError::Amount(text)),
        };
        amount.filter(|amount| (1..=AMOUNT_MAX).contains(amount)).ok_or(wrong)
    }
}

/// A number without the commas or underscores that group its digits by three.
///
/// Anywhere else they are refused: `1,5` is one and a half to many, and would be fifteen to us.
fn ungrouped(number: &str) -> Option<String> {
    let (whole, decimals) = number.split_at(number.find('.').unwrap_or(number.len()));
    let groups: Vec<&str> = whole.split([',', '_']).collect();
    let is_grouped = groups.len() == 1 || (groups[0].len() <= 3 && groups[1..].iter().all(|group| group.len() == 3));
    let is_plain = groups.iter().all(|group| !group.is_empty() && group.bytes().all(|byte| byte.is_ascii_digit()));
    (is_grouped && is_plain).then(|| groups.concat() + decimals)
}

impl LimitSpec {
    fn plain(resource: Resource, amount: AmountSpec, window: &str) -> Self {
        Self {
            resource: resource.as_str().into(),
            amount,
            window: (!window.is_empty()).then(|| window.into()),
            scope: Scope::User,
            model: None,
            mode: Mode::Hard,
            timezone: None,
        }
    }
}

impl TryFrom<LimitSpec> for Limit {
    type Error = LimitError;

    fn try_from(spec: LimitSpec) -> Result<Self, LimitError> {
        let resource: Resource = spec.resource.parse()?;
        let amount = spec.amount.check(resource)?;
        let window = match (resource, spec.window) {
            (Resource::Concurrent, None) => Window::Now,
            (Resource::Concurrent, Some(_)) => return Err(LimitError::WindowPresence("concurrent".into())),
            (_, None) => return Err(LimitError::WindowPresence(resource.as_str().into())),
            (_, Some(text)) => parse_window(&text, spec.timezone.as_deref())?,
        };
        if spec.timezone.is_some() && !matches!(window, Window::Calendar(..)) {
            return Err(LimitError::ZoneWithoutPeriod);
        }
        Ok(Self { resource, amount, window, scope: spec.scope, model: spec.model.map(Into::into), mode: spec.mode })
    }
}

impl From<Limit> for LimitSpec {
    fn from(limit: Limit) -> Self {
        let (window, timezone) = match &limit.window {
            Window::Sliding(rate) => (Some(rate.to_string()), None),
            Window::Calendar(period, zone) => (Some(period.as_str().into()), Some(zone.name().to_owned())),
            Window::Now => (None, None),
        };
        Self {
            resource: limit.resource.as_str().into(),
            amount: AmountSpec::of(limit.resource, limit.amount),
            window,
            scope: limit.scope,
            model: limit.model.map(|model| model.to_string()),
            mode: limit.mode,
            timezone,
        }
    }
}

fn parse_window(text: &str, zone: Option<&str>) -> Result<Window, LimitError> {
    let period = match text {
        "day" => Period::Day,
        "week" => Period::Week,
        "month" => Period::Month,
        rate => return rate.parse().map(Window::Sliding),
    };
    let zone = zone.map_or_else(|| Ok(Zone::utc()), str::parse)?;
    Ok(Window::Calendar(period, zone))
}

impl FromStr for Rate {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let wrong = || LimitError::Window(text.to_owned());
        let unit = text.chars().last().filter(|unit| "smh".contains(*unit)).ok_or_else(wrong)?;
        let digits = &text[..text.len() - 1];
        let plain = !digits.is_empty()
            && digits.len() <= 5
            && digits.bytes().all(|b| b.is_ascii_digit())
            && !digits.starts_with('0');
        if !plain {
            return Err(wrong());
        }
        let count = digits.parse().map_err(|_| wrong())?;
        Ok(Self { count, unit })
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.count, self.unit)
    }
}

impl fmt::Display for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sliding(rate) => rate.fmt(f),
            Self::Calendar(period, zone) if zone.name() == "UTC" => f.write_str(period.as_str()),
            Self::Calendar(period, zone) => write!(f, "{} {}", period.as_str(), zone.name()),
            Self::Now => f.write_str("now"),
        }
    }
}

impl fmt::Display for Limit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.resource {
            Resource::Cost => write!(f, "{} usd", usd(self.amount))?,
            resource => write!(f, "{} {}", self.amount, resource.as_str())?,
        }
        if self.window != Window::Now {
            write!(f, " / {}", self.window)?;
        }
        if self.scope != Scope::User {
            write!(f, " per {}", self.scope.as_str())?;
        }
        if let Some(model) = &self.model {
            write!(f, " on {model}")?;
        }
        match self.mode {
            Mode::Hard => Ok(()),
            Mode::Soft => f.write_str(" soft"),
            Mode::Shadow => f.write_str(" shadow"),
        }
    }
}

impl FromStr for Limit {
    type Err = LimitError;

    fn from_str(text: &str) -> Result<Self, LimitError> {
        let mut words = text.split_whitespace().peekable();
        let amount = words.next().unwrap_or_default();
        if !amount.starts_with(|c: char| c.is_ascii_digit()) {
            return Err(LimitError::Amount(amount.to_owned()));
        }
        let mut spec = LimitSpec::plain(Resource::Tokens, AmountSpec::Text(amount.to_owned()), "");
        spec.resource = words.next().unwrap_or_default().to_owned();
        if words.next_if_eq(&"/").is_some() {
            let window = words.next().unwrap_or_default();
            spec.window = Some(window.to_owned());
            if matches!(window, "day" | "week" | "month") {
                spec.timezone = words.next_if(|word| !is_tail(word)).map(str::to_owned);
            }
        }
        while let Some(word) = words.next() {
            match (word, words.peek().copied()) {
                ("per", Some(scope @ ("user" | "key" | "tier"))) => {
                    spec.scope = match scope {
                        "key" => Scope::Key,
                        "tier" => Scope::Tier,
                        _ => Scope::User,
                    };
                    words.next();
                }
                ("on", Some(model)) => {
                    spec.model = Some(model.to_owned());
                    words.next();
                }
                ("hard", _) => spec.mode = Mode::Hard,
                ("soft", _) => spec.mode = Mode::Soft,
                ("shadow", _) => spec.mode = Mode::Shadow,
                (other, _) => return Err(LimitError::Word(other.to_owned())),
            }
        }
        spec.try_into()
    }
}

fn is_tail(word: &str) -> bool {
    matches!(word, "per" | "on" | "hard" | "soft" | "shadow")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_text_form_reads_what_the_documents_write() {
        for text in [
            "100000 tokens / 1m",
            "1000 requests / 1m",
            "4 concurrent",
            "2000000 tokens / day Europe/Paris",
            "5 requests / 2m per key on llama-3 soft",
            "10 prompt_tokens / month",
            "10 completion_tokens / 60s per tier shadow",
            "20 usd / month",
            "0.000000001 usd / 1m per key on llama-3",
            "9007199.254740991 usd / day Europe/Paris per tier soft",
        ] {
            assert_eq!(text.parse::<Limit>().expect(text).to_string(), text);
        }
        for (text, amount) in [("1,000,000 tokens / 1m", 1_000_000), ("10_000 tokens / 1m", 10_000)] {
            assert_eq!(text.parse::<Limit>().expect(text).amount, amount);
        }
        assert_eq!("1,000.5 usd / month".parse::<Limit>().expect("money").amount, 1_000_500_000_000);
    }

    #[test]
    fn a_wrong_limit_is_refused_with_the_word_that_is_wrong() {
        for (text, says) in [
            ("0 tokens / 1m", "amount `0`"),
            ("-1 tokens / 1m", "amount `-1`"),
            ("99999999999999999999 tokens / 1m", "amount `99999999999999999999`"),
            ("10 tokens", "has a window"),
            ("10 tokens /", "window ``"),
            ("10 tokens / 0m", "window `0m`"),
            ("10 tokens / 100000s", "window `100000s`"),
            ("10 tokens / 1d", "window `1d`"),
            ("10 tokens / é", "window `é`"),
            ("10 bananas / 1m", "`bananas`"),
            ("4 concurrent / 1m", "`concurrent`"),
            ("10 tokens / day Mars/Olympus", "`Mars/Olympus`"),
            ("0 usd / month", "amount `0` must be US dollars"),
            ("0.0000000001 usd / month", "amount `0.0000000001` must be US dollars"),
            ("9007199.254740992 usd / month", "must be US dollars"),
            ("1.5 tokens / 1m", "amount `1.5` must be a whole number"),
            ("1,5 tokens / 1m", "amount `1,5` must be a whole number"),
            ("1,5 usd / month", "amount `1,5` must be US dollars"),
            ("0.1,5 usd / month", "amount `0.1,5` must be US dollars"),
            ("1000,000 tokens / 1m", "amount `1000,000`"),
            ("1,,000 tokens / 1m", "amount `1,,000`"),
            ("1__0 tokens / 1m", "amount `1__0`"),
            ("20 usd", "has a window"),
            ("10 tokens / 1m maybe", "`maybe`"),
            ("", "amount ``"),
        ] {
            let error = text.parse::<Limit>().expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }

    #[test]
    fn json_has_the_shape_of_the_contract() {
        let limit: Limit =
            serde_json::from_str(r#"{"resource":"tokens","amount":5,"window":"1m"}"#).expect("plain limit");
        assert_eq!(limit.to_string(), "5 tokens / 1m");
        let unknown = serde_json::from_str::<Limit>(r#"{"resource":"tokens","amount":5,"window":"1m","colour":"red"}"#);
        assert!(unknown.expect_err("unknown field").to_string().contains("colour"));
        for amount in [r#""20.5""#, "20.5"] {
            let json = format!(r#"{{"resource":"cost","amount":{amount},"window":"month"}}"#);
            let limit: Limit = serde_json::from_str(&json).expect("money");
            assert_eq!((limit.to_string().as_str(), limit.amount), ("20.5 usd / month", 20_500_000_000));
            assert!(serde_json::to_string(&limit).expect("json").contains(r#""amount":"20.5""#));
        }
        let whole: Limit = serde_json::from_str(r#"{"resource":"cost","amount":5,"window":"1h"}"#).expect("money");
        assert_eq!(whole.amount, 5_000_000_000);
        for amount in ["-1", "1.5", "true", r#""+5""#, r#""1,5""#] {
            let json = format!(r#"{{"resource":"tokens","amount":{amount},"window":"1m"}}"#);
            assert!(serde_json::from_str::<Limit>(&json).expect_err(amount).to_string().contains("amount"), "{amount}");
        }
    }

    #[test]
    fn two_limits_on_one_counter_may_differ_in_mode_only() {
        let list = |texts: &[&str]| texts.iter().map(|t| t.parse().expect("limit")).collect::<Vec<Limit>>();
        assert!(check_limits(&list(&["10 tokens / 1m", "5 tokens / 1m soft", "10 tokens / 1h"])).is_ok());
        assert!(check_limits(&list(&["10 tokens / 1m", "20 tokens / 60s"])).is_err());
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(amount in 1..=AMOUNT_MAX, count in 1..=99_999u32, unit in "[smh]", per in 0..3usize, mode in 0..3usize) {
            let per = ["", " per key", " per tier"][per];
            let mode = ["", " soft", " shadow"][mode];
            for what in [format!("{amount} tokens"), format!("{} usd", usd(amount))] {
                let limit: Limit = format!("{what} / {count}{unit}{per}{mode}").parse().expect("limit");
                prop_assert_eq!(limit.amount, amount);
                prop_assert_eq!(&limit.to_string().parse::<Limit>().expect("text"), &limit);
                let json = serde_json::to_string(&limit).expect("json");
                prop_assert_eq!(&serde_json::from_str::<Limit>(&json).expect("json"), &limit);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,40}") {
            let _ = text.parse::<Limit>();
        }
    }
}
