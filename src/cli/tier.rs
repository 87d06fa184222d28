//! `millgate tier`: list tiers, and bring a server's tiers in line with a file.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use reqwest::Method;
use serde_json::{Value, json};

use crate::config::Environment;
use crate::governance::Limit;
use crate::governance::records::{TierOrigin, TierRecord};
use crate::governance::tier_files::Declaration;

use super::args::{ListArgs, TierApplyArgs, TierCommand};
use super::client::Client;
use super::fail::Hinted;
use super::{output, simulate};

const PATH: &str = "/admin/v1/tiers";
/// Users of a deleted tier told by name.
const AFFECTED_SHOWN: usize = 20;

/// Runs a tier command.
///
/// # Errors
/// A file that is no declaration, or what the server refuses.
pub(super) async fn run(command: &TierCommand, environment: &Environment) -> Result<()> {
    match command {
        TierCommand::List(args) => list(args, environment).await,
        TierCommand::Apply(args) => apply(args, environment).await,
        TierCommand::Simulate(args) => simulate::run(args, environment).await,
    }
}

async fn list(args: &ListArgs, environment: &Environment) -> Result<()> {
    let found = Client::new(&args.remote, environment)?.list(PATH).await?;
    if args.json {
        return output::json(&found);
    }
    let tiers = found.iter().map(read_tier).collect::<Result<Vec<TierRecord>>>()?;
    let row = |tier: &TierRecord| {
        vec![
            tier.name.clone(),
            tier.display_name.clone(),
            tier.level.to_string(),
            tier.groups.join("\n"),
            limits(&tier.limits, "\n"),
        ]
    };
    output::table(&["name", "display name", "level", "groups", "limits"], tiers.iter().map(row).collect(), "no tiers")
}

async fn apply(args: &TierApplyArgs, environment: &Environment) -> Result<()> {
    let (content, format) = read_file(&args.file)?;
    // Here as well as on the server: a mistake is found without one, and the message can name the file.
    check(&args.file, &content, format)?;
    let client = Client::new(&args.remote, environment)?;
    let path = format!("{PATH}/apply?dry_run={}", args.dry_run);
    let outcome = client.json(Method::POST, &path, Some(&json!({"content": content, "format": format}))).await?;
    if args.json {
        return output::json(&outcome);
    }
    let lines = lines(&outcome)?;
    if lines.is_empty() {
        return output::line("nothing to change");
    }
    lines.iter().try_for_each(|line| output::line(line))?;
    if args.dry_run {
        output::note("nothing was changed (--dry-run)");
    }
    Ok(())
}

/// The text of a file of tiers, and whether it is YAML or TOML.
pub(super) fn read_file(file: &Path) -> Result<(String, &'static str)> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    } else {
        text = std::fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    }
    let is_toml = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
    Ok((text, if is_toml { "toml" } else { "yaml" }))
}

fn check(file: &Path, content: &str, format: &str) -> Result<()> {
    declaration(file, content, format).map(drop)
}

/// The tiers that a file declares; the message names the file.
pub(super) fn declaration(file: &Path, content: &str, format: &str) -> Result<Declaration> {
    let declared = if format == "toml" { Declaration::from_toml(content) } else { Declaration::from_yaml(content) };
    declared.map_err(|error| {
        let hint = "`millgate tier apply --help` shows the format; limits are written like \"100000 tokens / 1m\"";
        anyhow::Error::new(error).context(Hinted::context(format!("`{}` declares no tiers", file.display()), hint))
    })
}

/// What the server did or would do, for people.
fn lines(outcome: &Value) -> Result<Vec<String>> {
    let list = |name: &str| outcome[name].as_array().cloned().unwrap_or_default();
    let mut lines = Vec::new();
    for tier in list("created") {
        let tier = read_tier(&tier)?;
        let (groups, limits) = (tier.groups.join(", "), limits(&tier.limits, ", "));
        lines.push(format!("create {}: level {}, groups {groups}, {limits}", tier.name, tier.level));
    }
    for change in list("updated") {
        lines.push(changed(&read_tier(&change["before"])?, &read_tier(&change["after"])?));
    }
    for tier in list("deleted") {
        let name = tier["name"].as_str().unwrap_or_default();
        let count = tier["affected_count"].as_u64().unwrap_or_default();
        lines.push(format!(
            "delete {name}: {count} {}",
            if count == 1 { "user is affected" } else { "users are affected" }
        ));
        for one in tier["affected"].as_array().into_iter().flatten().take(AFFECTED_SHOWN) {
            let user = one["user"].as_str().unwrap_or_default();
            let next = one["falls_to"].as_str().map_or("no tier".to_owned(), |tier| format!("`{tier}`"));
            lines.push(format!("  {user} falls to {next}"));
        }
    }
    Ok(lines)
}

fn changed(before: &TierRecord, after: &TierRecord) -> String {
    let fields = [
        ("display name", before.display_name.clone(), after.display_name.clone()),
        ("description", before.description.clone(), after.description.clone()),
        ("level", before.level.to_string(), after.level.to_string()),
        ("groups", before.groups.join(", "), after.groups.join(", ")),
        ("limits", limits(&before.limits, ", "), limits(&after.limits, ", ")),
        ("weight", before.weight.to_string(), after.weight.to_string()),
    ];
    let changed = fields.iter().filter(|(_, old, new)| old != new);
    let changed: Vec<String> = changed.map(|(name, old, new)| format!("\n  {name}: {old} -> {new}")).collect();
    if changed.is_empty() {
        return format!("take over {}: from now on the file declares it", after.name);
    }
    format!("change {}:{}", after.name, changed.concat())
}

fn limits(limits: &[Limit], separator: &str) -> String {
    if limits.is_empty() {
        return "unlimited".into();
    }
    limits.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

fn read_tier(value: &Value) -> Result<TierRecord> {
    let name = value["name"].as_str().unwrap_or_default().to_owned();
    let field = |name: &str| value.get(name).cloned().unwrap_or_default();
    let number = |name: &str| serde_json::from_value::<u32>(field(name));
    let word = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    let read = || -> Result<TierRecord, serde_json::Error> {
        Ok(TierRecord {
            name: name.clone(),
            display_name: word("display_name"),
            description: word("description"),
            level: number("level")?,
            groups: serde_json::from_value(field("groups"))?,
            limits: serde_json::from_value(field("limits"))?,
            weight: number("weight").unwrap_or(1),
            origin: TierOrigin::Local,
            position: 0,
        })
    };
    read().with_context(|| format!("the server's tier `{name}` cannot be read; is it another version?"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_changes_is_told_field_by_field() {
        let tier = |name: &str, amount: u64| {
            let limit = json!({"resource": "requests", "amount": amount, "window": "2m"});
            json!({"name": name, "display_name": "Free", "description": "", "level": 0, "groups": ["g"], "limits": [limit], "weight": 1})
        };
        let outcome = json!({
            "created": [tier("gold", 9)],
            "updated": [{"before": tier("free", 5), "after": tier("free", 6)}, {"before": tier("same", 5), "after": tier("same", 5)}],
            "deleted": [{"name": "old", "affected_count": 2, "affected": [{"user": "ann", "falls_to": "free"}, {"user": "bob", "falls_to": null}]}],
        });
        assert_eq!(
            lines(&outcome).unwrap(),
            [
                "create gold: level 0, groups g, 9 requests / 2m",
                "change free:\n  limits: 5 requests / 2m -> 6 requests / 2m",
                "take over same: from now on the file declares it",
                "delete old: 2 users are affected",
                "  ann falls to `free`",
                "  bob falls to no tier",
            ]
        );
    }

    #[test]
    fn a_wrong_file_is_found_without_a_server() {
        let error = check(Path::new("t.yaml"), "tiers:\n  - {name: a, groups: []}", "yaml").unwrap_err();
        let text = super::super::fail::report(&error);
        assert!(text.contains("`t.yaml` declares no tiers") && text.contains("line 2: tier `a`"), "{text}");
    }
}
