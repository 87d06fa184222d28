//! `millgate reconcile`: whether what must be the same is the same, from a running server or read from the data directory.

use anyhow::{Context as _, Result, anyhow, bail};
use jiff::Timestamp;
use serde_json::Value;

use crate::api::reconciliation;
use crate::config::Environment;
use crate::governance::reconcile::check_books;
use crate::store::LedgerReader;

use super::client::{Client, segment};
use super::fail::Hinted;
use super::output;
use super::reconcile_args::ReconcileArgs;
use super::simulate::moment;
use super::usage::{data_dir, start};

/// Compares and prints; what differs is an error.
///
/// # Errors
/// Something differs, no server or no data directory, or a ledger that cannot be read.
pub(super) async fn run(args: &ReconcileArgs, environment: &Environment) -> Result<()> {
    let now = Timestamp::now();
    let (from, to) = (start(&args.from, now)?, args.to.clone().unwrap_or_else(|| now.to_string()));
    let is_remote = args.remote.url.is_some() || args.remote.key.is_some() || environment.url.is_some();
    let report = if is_remote && args.data_dir.is_none() {
        let path = format!("/admin/v1/reconciliation?start={}&end={}", segment(&from), segment(&to));
        Client::new(&args.remote, environment)?.get(&path).await?
    } else {
        from_disk(args, environment, (&from, &to)).await?
    };
    if args.json {
        output::json(&report)?;
    } else {
        print(&report)?;
    }
    if report["is_equal"] == true {
        return Ok(());
    }
    bail!("figures that must be the same differ")
}

async fn from_disk(args: &ReconcileArgs, environment: &Environment, (from, to): (&str, &str)) -> Result<Value> {
    let data_dir = data_dir(args.data_dir.as_deref(), environment)?;
    let missing = || {
        let hint = "start the server once, or name its data directory with --data-dir";
        Hinted::context(format!("there is no ledger in `{}`", data_dir.display()), hint)
    };
    let ledger = LedgerReader::open(&data_dir).await.with_context(missing)?;
    let (from_us, to_us) = (moment(from, "--from")?, moment(to, "--to")?);
    if from_us >= to_us {
        return Err(anyhow!("--from must be before --to"));
    }
    let prices = ledger.policy().await.context("cannot read the prices")?.prices;
    let report = check_books(&ledger, &prices, from_us, to_us).await.context("cannot check the ledger")?;
    Ok(reconciliation::to_json(&report, None, from_us, to_us))
}

fn print(report: &Value) -> Result<()> {
    let disk = &report["disk"];
    let number = |value: &Value| output::number(value.as_u64().unwrap_or_default());
    let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
    let lines = |value: &Value| value.as_array().cloned().unwrap_or_default();
    output::line(&format!(
        "{} rows on the disk, {} contradict themselves",
        number(&disk["rows"]),
        number(&disk["contradictions"])
    ))?;
    for row in lines(&disk["rows_that_differ"]) {
        output::line(&format!("  request {}: {}", word(&row["request_id"]), word(&row["what"])))?;
    }
    for one in lines(&disk["roll_ups_that_differ"]) {
        output::line(&format!(
            "  roll-up {} from {} of {}: {} prompt tokens, {} completion tokens, {} requests more than its rows",
            word(&one["bucket"]),
            word(&one["start"]),
            word(&one["subject"]),
            one["prompt_tokens"],
            one["completion_tokens"],
            one["requests"],
        ))?;
    }
    let live = &report["since_start"];
    if live.is_null() {
        output::note(
            "only what is on the disk was compared; with --url a running server compares engines and limiter, too",
        );
        return Ok(());
    }
    let row = |one: &Value| {
        let tokens = |sums: &Value| number(&sums["prompt_tokens"]) + " + " + &number(&sums["completion_tokens"]);
        vec![word(&one["between"]), tokens(&one["found"]), tokens(&one["expected"]), number(&one["difference_tokens"])]
    };
    let rows = lines(&live["comparisons"]).iter().map(row).collect();
    output::line("")?;
    output::table(&["since start", "tokens found", "by the ledger", "difference"], rows, "")?;
    output::line(&format!(
        "{} requests in flight have made {} + {} tokens so far",
        number(&live["open_requests"]),
        number(&live["in_flight"]["prompt_tokens"]),
        number(&live["in_flight"]["completion_tokens"]),
    ))?;
    for one in lines(&live["answers"]) {
        output::line(&format!(
            "  request {} was told {} and has {} on the ledger",
            word(&one["request_id"]),
            one["told"],
            one["ledger"]
        ))?;
    }
    Ok(())
}
