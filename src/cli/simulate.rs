//! `millgate tier simulate`: what other tiers would have done to the requests of the past, from a running server or read from the
//! data directory, also while the server runs.

use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow};
use jiff::Timestamp;
use reqwest::Method;
use serde_json::{Value, json};

use crate::api::simulation;
use crate::config::{Environment, Overrides};
use crate::governance::calendar::parse_moment;
use crate::governance::replay::{Question, Stage, simulate, tiers_after};
use crate::store::{LedgerReader, MemoryCounters};

use super::client::Client;
use super::config_command::load;
use super::fail::Hinted;
use super::simulate_args::SimulateArgs;
use super::usage::{data_dir, start};
use super::{output, tier};

/// Users and limits in a table at most; `--json` has more.
const LINES: usize = 20;

/// Plays the past under other tiers and prints who would have been refused.
///
/// # Errors
/// A file that declares no tiers, no server or no data directory, or a ledger that cannot be read.
pub(super) async fn run(args: &SimulateArgs, environment: &Environment) -> Result<()> {
    let now = Timestamp::now();
    let (from, to) = (start(&args.from, now)?, args.to.clone().unwrap_or_else(|| now.to_string()));
    let is_remote = args.remote.url.is_some() || args.remote.key.is_some() || environment.url.is_some();
    let report = if is_remote && args.data_dir.is_none() {
        let (content, format) = tier::read_file(&args.file)?;
        let body = json!({"content": content, "format": format, "start": from, "end": to, "cases": args.cases});
        let client = Client::new(&args.remote, environment)?;
        client.json(Method::POST, "/admin/v1/tier-simulations", Some(&body)).await?
    } else {
        from_disk(args, environment, (&from, &to)).await?
    };
    if args.json { output::json(&report) } else { print(&report) }
}

async fn from_disk(args: &SimulateArgs, environment: &Environment, (from, to): (&str, &str)) -> Result<Value> {
    let (content, format) = tier::read_file(&args.file)?;
    let declared = tier::declaration(&args.file, &content, format)?;
    let data_dir = data_dir(args.data_dir.as_deref(), environment)?;
    let settings = load(None, environment, &Overrides::default())?;
    let missing = || {
        let hint = "start the server once, or name its data directory with --data-dir";
        Hinted::context(format!("there is no ledger in `{}`", data_dir.display()), hint)
    };
    let ledger = LedgerReader::open(&data_dir).await.with_context(missing)?;
    let tables = ledger.policy().await.context("cannot read the tiers")?;
    let plan = declared.plan(&tables.tiers, &settings.new_tier_limits).context("these tiers cannot be applied")?;
    let (from_us, to_us) = (moment(from, "--from")?, moment(to, "--to")?);
    if from_us >= to_us {
        return Err(anyhow!("--from must be before --to"));
    }
    let tiers = tiers_after(&tables.tiers, plan);
    let instance = settings.tier_instance.as_str().into();
    let question = Question { tables, tiers, from_us, to_us, cases: args.cases as usize, instance };
    let stage = Stage::new(|clock| Arc::new(MemoryCounters::new(clock)));
    Ok(simulation::to_json(&simulate(&ledger, stage, question).await?))
}

/// A moment in an option, in microseconds.
pub(super) fn moment(text: &str, option: &str) -> Result<i64> {
    parse_moment(text).with_context(|| format!("{option} `{text}` is no moment: write 2026-11-01T00:00:00Z"))
}

fn print(report: &Value) -> Result<()> {
    let total = &report["total"];
    output::line(&format!(
        "{} requests from {} to {}: {} would have been refused, {} cut short, {} over a soft limit",
        count(&total["requests"]),
        word(&report["start"]),
        word(&report["end"]),
        count(&total["refused"]),
        count(&total["cut"]),
        count(&total["slowed"]),
    ))?;
    let saved = &total["saved"];
    output::line(&format!(
        "saved: {} requests, {} tokens, {} USD\n",
        count(&saved["requests"]),
        count(&saved["tokens"]),
        word(&saved["cost"])
    ))?;
    let lines = |name: &str| report[name].as_array().cloned().unwrap_or_default();
    let fared = |line: &Value| vec![count(&line["requests"]), count(&line["refused"]), count(&line["cut"])];
    let row = |first: Vec<String>, line: &Value| {
        let spared = [count(&line["saved"]["tokens"]), word(&line["saved"]["cost"])];
        first.into_iter().chain(fared(line)).chain(spared).collect::<Vec<_>>()
    };
    let tiers = lines("tiers").iter().map(|line| row(vec![word(&line["tier"])], line)).collect();
    output::table(
        &["tier", "requests", "refused", "cut", "tokens saved", "USD saved"],
        tiers,
        "no requests in this time",
    )?;
    let is_told = |line: &&Value| line["first"].is_string() || line["tier_before"] != line["tier_after"];
    let told: Vec<Value> = lines("users").iter().filter(is_told).cloned().collect();
    if !told.is_empty() {
        output::line("")?;
        let user = |line: &Value| {
            let tier = match (word(&line["tier_before"]), word(&line["tier_after"])) {
                (before, after) if before == after => after,
                (before, after) => format!("{before} -> {after}"),
            };
            row(vec![word(&line["user"]), tier, output::moment(&line["first"])], line)
        };
        let header = ["user", "tier", "first refused", "requests", "refused", "cut", "tokens saved", "USD saved"];
        output::table(&header, told.iter().take(LINES).map(user).collect(), "")?;
    }
    let limits = lines("limits");
    if !limits.is_empty() {
        output::line("")?;
        let limit = |line: &Value| {
            vec![word(&line["limit"]), count(&line["refused"]), count(&line["cut"]), count(&line["saved"]["tokens"])]
        };
        output::table(
            &["limit", "refused", "cut", "tokens saved"],
            limits.iter().take(LINES).map(limit).collect(),
            "",
        )?;
    }
    let cases = lines("cases");
    if !cases.is_empty() {
        output::line("")?;
        let case = |case: &Value| {
            let of = ["user", "model", "outcome", "limit", "request_id"].map(|name| word(&case[name]));
            std::iter::once(word(&case["at"])).chain(of).collect()
        };
        output::table(&["when", "user", "model", "outcome", "limit", "request"], cases.iter().map(case).collect(), "")?;
    }
    notes(report, told.len().max(limits.len()) > LINES);
    Ok(())
}

fn notes(report: &Value, has_more: bool) {
    if has_more || report["cases_left_out"].as_u64().is_some_and(|more| more > 0) {
        output::note("there is more; --json tells all of it, --cases more single requests");
    }
    let unknown = report["unknown_groups"].as_u64().unwrap_or_default();
    if unknown > 0 {
        output::note(&format!(
            "{unknown} requests are older than the record of groups; they keep the tier of that name"
        ));
    }
    output::note("what this cannot know:");
    for line in report["cannot_know"].as_array().into_iter().flatten() {
        output::note(&format!("- {}", word(line)));
    }
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or("-").to_owned()
}

fn count(value: &Value) -> String {
    output::number(value.as_u64().unwrap_or_default())
}
