//! `millgate usage`: who used how much, from a running server or read from the data directory, also while the server runs.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow};
use jiff::{Timestamp, ToSpan as _};
use serde_json::Value;

use crate::api::usage;
use crate::config::{Environment, Overrides, Span};
use crate::store::LedgerReader;

use super::client::{Client, segment};
use super::config_command::load;
use super::fail::Hinted;
use super::money_args::UsageArgs;
use super::output;

/// Prints who used how much.
///
/// # Errors
/// No server or no data directory, an unknown user, a wrong option, or a ledger that cannot be read.
pub(super) async fn run(args: &UsageArgs, environment: &Environment) -> Result<()> {
    let remote = &args.remote;
    let is_remote = args.mine || remote.url.is_some() || remote.key.is_some() || environment.url.is_some();
    if is_remote && args.data_dir.is_none() {
        return from_server(args, environment).await;
    }
    from_disk(args, environment).await
}

async fn from_server(args: &UsageArgs, environment: &Environment) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let path = if args.mine { "/v1/usage" } else { "/admin/v1/usage" };
    let path = format!("{path}?{}", query(args, Timestamp::now())?);
    if args.csv {
        return output::text(&client.text(&format!("{path}&format=csv")).await?);
    }
    print(args, &client.get(&path).await?)
}

async fn from_disk(args: &UsageArgs, environment: &Environment) -> Result<()> {
    let data_dir = data_dir(args.data_dir.as_deref(), environment)?;
    let missing = || {
        let hint = "start the server once, or name its data directory with --data-dir";
        Hinted::context(format!("there is no ledger in `{}`", data_dir.display()), hint)
    };
    let ledger = LedgerReader::open(&data_dir).await.with_context(missing)?;
    let now = Timestamp::now();
    // The same words as over HTTP, so that both ways read them alike.
    let asked = usage::parse(Some(&query(args, now)?), true, now.as_microsecond());
    let mut asked = asked.map_err(|error| anyhow!("{}", error.message()))?;
    if let Some(name) = &asked.user {
        let found = ledger.user(name).await?.with_context(|| format!("there is no user `{name}`"))?;
        asked.query.user = Some(found);
    }
    let sums = ledger.usage(&asked.query).await.context("cannot read the ledger")?;
    if args.csv {
        let csv = usage::to_csv(&asked, &sums).context("cannot write the report as CSV")?;
        return output::text(&String::from_utf8_lossy(&csv));
    }
    print(args, &usage::to_json(&asked, &sums))
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

/// The options as the part of an address after the question mark.
fn query(args: &UsageArgs, now: Timestamp) -> Result<String> {
    let by = args.by.join(",");
    let since = args.since.as_deref().map(|since| start(since, now)).transpose()?;
    let pairs = [
        ("group_by", Some(&by)),
        ("start", since.as_ref()),
        ("end", args.until.as_ref()),
        ("bucket", args.bucket.as_ref()),
        ("tz", args.tz.as_ref()),
        ("user", args.user.as_ref()),
        ("model", args.model.as_ref()),
    ];
    let pairs = pairs.iter().filter_map(|(name, value)| value.map(|value| format!("{name}={}", segment(value))));
    Ok(pairs.collect::<Vec<_>>().join("&"))
}

/// A moment as it is, or so long ago.
pub(super) fn start(since: &str, now: Timestamp) -> Result<String> {
    let is_moment = since.contains('-') || since.bytes().all(|byte| byte.is_ascii_digit());
    if is_moment {
        return Ok(since.to_owned());
    }
    let back: Span = since.parse()?;
    let seconds = i64::try_from(back.0.as_secs()).context("that is too long ago")?;
    Ok(now.checked_sub(seconds.seconds()).context("that is too long ago")?.to_string())
}

fn print(args: &UsageArgs, report: &Value) -> Result<()> {
    if args.json {
        return output::json(report);
    }
    let groups: Vec<&str> = report["group_by"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    let mut header: Vec<&str> = if args.bucket.is_some() { vec!["from"] } else { Vec::new() };
    header.extend(&groups);
    header.extend(["requests", "prompt tokens", "of them cached", "completion tokens", "cost USD", "refused"]);
    let row = |line: &Value| {
        let number = |field: &str| output::number(line[field].as_u64().unwrap_or_default());
        let text = |field: &str| line[field].as_str().unwrap_or_default().to_owned();
        let mut row: Vec<String> = if args.bucket.is_some() { vec![text("start")] } else { Vec::new() };
        row.extend(groups.iter().map(|group| text(group)));
        row.extend(["requests", "prompt_tokens", "cached_tokens", "completion_tokens"].map(number));
        row.extend([text("cost"), number("refusals")]);
        row
    };
    let lines = report["data"].as_array().map(Vec::as_slice).unwrap_or_default();
    output::table(&header, lines.iter().map(row).collect(), "no usage in this time")?;
    if report["counts_once_per_group"] == true {
        output::note("a request counts once for each group of its user: the lines add up to more than the whole");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usage_begins_as_long_ago_as_asked_or_at_a_moment() {
        let now: Timestamp = "2026-11-23T05:16:07Z".parse().unwrap();
        assert_eq!(start("24h", now).unwrap(), "2026-11-22T05:16:07Z");
        assert_eq!(start("2026-11-01T00:00:00Z", now).unwrap(), "2026-11-01T00:00:00Z");
        assert_eq!(start("1700000000", now).unwrap(), "1700000000");
        assert!(start("soon", now).is_err());
    }
}
