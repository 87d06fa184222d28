//! `millgate usage`: sums of the ledger, read from the data directory, also while the server runs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use jiff::civil::Time;
use jiff::tz::TimeZone;
use jiff::{Timestamp, ToSpan as _};
use serde_json::{Value, json};

use crate::config::{Environment, Overrides, Span};
use crate::governance::ports::{UsageGroup, UsageQuery, UsageSum};
use crate::store::LedgerReader;

use super::args::{GroupBy, UsageArgs};
use super::config_command::load;
use super::fail::Hinted;
use super::output;

/// Prints who used how much.
///
/// # Errors
/// No data directory, an unknown user, or a ledger that cannot be read.
pub(super) async fn run(args: &UsageArgs, environment: &Environment) -> Result<()> {
    let data_dir = data_dir(args.data_dir.as_deref(), environment)?;
    let missing = || {
        let hint = "start the server once, or name its data directory with --data-dir";
        Hinted::context(format!("there is no ledger in `{}`", data_dir.display()), hint)
    };
    let ledger = LedgerReader::open(&data_dir).await.with_context(missing)?;
    let now = Timestamp::now();
    let user = match &args.user {
        Some(name) => Some(ledger.user(name).await?.with_context(|| format!("there is no user `{name}`"))?),
        None => None,
    };
    let query = UsageQuery {
        start_us: start(args.since.as_deref(), now)?.as_microsecond(),
        end_us: now.as_microsecond() + 1,
        group_by: args.by.iter().map(|by| group(*by)).collect(),
        user,
    };
    let sums = ledger.usage(&query).await.context("cannot read the ledger")?;
    print(args, &sums)
}

/// The data directory asked for, else the configured one.
///
/// # Errors
/// A configuration file that cannot be used.
pub(super) fn data_dir(named: Option<&Path>, environment: &Environment) -> Result<PathBuf> {
    match named {
        Some(named) => Ok(named.to_path_buf()),
        None => Ok(load(None, environment, &Overrides::default())?.data_dir),
    }
}

/// So long ago, or the first of this month in UTC.
fn start(since: Option<&str>, now: Timestamp) -> Result<Timestamp> {
    if let Some(since) = since {
        let back: Span = since.parse()?;
        let seconds = i64::try_from(back.0.as_secs()).context("that is too long ago")?;
        return now.checked_sub(seconds.seconds()).context("that is too long ago");
    }
    let first = now.to_zoned(TimeZone::UTC).date().first_of_month();
    let midnight = first.to_datetime(Time::midnight()).to_zoned(TimeZone::UTC).context("this month has a first day")?;
    Ok(midnight.timestamp())
}

fn group(by: GroupBy) -> UsageGroup {
    match by {
        GroupBy::User => UsageGroup::User,
        GroupBy::Key => UsageGroup::Key,
        GroupBy::Tier => UsageGroup::Tier,
        GroupBy::Model => UsageGroup::Model,
    }
}

fn name(by: GroupBy) -> &'static str {
    match by {
        GroupBy::User => "user",
        GroupBy::Key => "key",
        GroupBy::Tier => "tier",
        GroupBy::Model => "model",
    }
}

fn print(args: &UsageArgs, sums: &[UsageSum]) -> Result<()> {
    if args.json {
        let object = |sum: &UsageSum| {
            let mut object: serde_json::Map<String, Value> =
                args.by.iter().zip(&sum.group).map(|(by, value)| (name(*by).to_owned(), json!(value))).collect();
            object.insert("requests".into(), json!(sum.requests));
            object.insert("prompt_tokens".into(), json!(sum.usage.prompt_tokens));
            object.insert("cached_tokens".into(), json!(sum.usage.cached_tokens));
            object.insert("completion_tokens".into(), json!(sum.usage.completion_tokens));
            Value::Object(object)
        };
        return output::json(&sums.iter().map(object).collect::<Vec<_>>());
    }
    let mut header: Vec<&str> = args.by.iter().map(|by| name(*by)).collect();
    header.extend(["requests", "prompt tokens", "of them cached", "completion tokens"]);
    let row = |sum: &UsageSum| {
        let usage = &sum.usage;
        let figures = [sum.requests, usage.prompt_tokens, usage.cached_tokens, usage.completion_tokens];
        sum.group.iter().cloned().chain(figures.map(output::number)).collect()
    };
    output::table(&header, sums.iter().map(row).collect(), "no usage in this time")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_begins_with_the_month_or_as_long_ago_as_asked() {
        let now: Timestamp = "2026-11-23T05:16:07Z".parse().unwrap();
        assert_eq!(start(None, now).unwrap().to_string(), "2026-11-01T00:00:00Z");
        assert_eq!(start(Some("24h"), now).unwrap().to_string(), "2026-11-22T05:16:07Z");
        assert!(start(Some("soon"), now).is_err());
    }
}
