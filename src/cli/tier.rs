//! `millgate tier`: list tiers, and bring a server's tiers in line with a file.

use std::io::Read as _;
use std::path::Path;

use anyhow::{Context as _, Result};
use reqwest::Method;
use serde_json::{Value, json};

use crate::config::Environment;
use crate::governance::records::{TierOrigin, TierRecord};
use crate::governance::tier_files::Declaration;
use crate::governance::{Limit, tiers};

use super::args::{ListArgs, TierApplyArgs, TierCommand};
use super::client::{Client, segment};
use super::fail::Hinted;
use super::output;

const PATH: &str = "/admin/v1/tiers";

/// Runs a tier command.
///
/// # Errors
/// A file that is no declaration, or what the server refuses.
pub(super) async fn run(command: &TierCommand, environment: &Environment) -> Result<()> {
    match command {
        TierCommand::List(args) => list(args, environment).await,
        TierCommand::Apply(args) => apply(args, environment).await,
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
    let declared = read_declaration(&args.file)?;
    let client = Client::new(&args.remote, environment)?;
    let existing = client.list(PATH).await?.iter().map(read_tier).collect::<Result<Vec<_>>>()?;
    let steps = plan(&declared, &existing)?;
    if args.json {
        output::json(&steps.iter().map(Step::json).collect::<Vec<_>>())?;
    } else if steps.is_empty() {
        output::line("nothing to change")?;
    }
    for step in &steps {
        if !args.json {
            output::line(&step.text())?;
        }
        if !args.dry_run {
            step.take(&client).await.with_context(|| format!("cannot apply tier `{}`", step.tier.name))?;
        }
    }
    if args.dry_run && !steps.is_empty() {
        output::note("nothing was changed (--dry-run)");
    }
    Ok(())
}

fn read_declaration(file: &Path) -> Result<Declaration> {
    let mut text = String::new();
    if file == Path::new("-") {
        std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?;
    } else {
        text = std::fs::read_to_string(file).with_context(|| format!("cannot read `{}`", file.display()))?;
    }
    let is_toml = file.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("toml"));
    let declared = if is_toml { Declaration::from_toml(&text) } else { Declaration::from_yaml(&text) };
    declared.map_err(|error| {
        let hint = "`millgate tier apply --help` shows the format; limits are written like \"100000 tokens / 1m\"";
        anyhow::Error::new(error).context(Hinted::context(format!("`{}` declares no tiers", file.display()), hint))
    })
}

/// One change to one tier.
struct Step {
    tier: TierRecord,
    /// What it was; nothing for a new tier.
    before: Option<TierRecord>,
}

/// What has to change. Through the API nothing is deleted: tiers that a file leaves out are left alone.
fn plan(declared: &Declaration, existing: &[TierRecord]) -> Result<Vec<Step>> {
    let plan = declared.plan(existing, &tiers::free_limits()).context("these tiers cannot be applied")?;
    let before = |tier: &TierRecord| existing.iter().find(|old| old.name == tier.name).cloned();
    let steps = plan.create.into_iter().chain(plan.update).map(|tier| Step { before: before(&tier), tier });
    Ok(steps.filter(|step| step.before.as_ref().is_none_or(|before| body(before) != body(&step.tier))).collect())
}

impl Step {
    async fn take(&self, client: &Client) -> Result<Value> {
        match self.before {
            None => client.json(Method::POST, PATH, Some(&body(&self.tier))).await,
            Some(_) => {
                client.json(Method::PUT, &format!("{PATH}/{}", segment(&self.tier.name)), Some(&body(&self.tier))).await
            }
        }
    }

    fn json(&self) -> Value {
        json!({"action": if self.before.is_some() { "update" } else { "create" }, "tier": body(&self.tier)})
    }

    fn text(&self) -> String {
        let tier = &self.tier;
        let Some(before) = &self.before else {
            return format!(
                "create {}: level {}, groups {}, {}",
                tier.name,
                tier.level,
                tier.groups.join(", "),
                limits(&tier.limits, ", ")
            );
        };
        let fields = [
            ("display name", before.display_name.clone(), tier.display_name.clone()),
            ("description", before.description.clone(), tier.description.clone()),
            ("level", before.level.to_string(), tier.level.to_string()),
            ("groups", before.groups.join(", "), tier.groups.join(", ")),
            ("limits", limits(&before.limits, ", "), limits(&tier.limits, ", ")),
            ("weight", before.weight.to_string(), tier.weight.to_string()),
        ];
        let changed = fields.iter().filter(|(_, old, new)| old != new);
        let changed: Vec<String> = changed.map(|(name, old, new)| format!("\n  {name}: {old} -> {new}")).collect();
        format!("change {}:{}", tier.name, changed.concat())
    }
}

fn limits(limits: &[Limit], separator: &str) -> String {
    if limits.is_empty() {
        return "unlimited".into();
    }
    limits.iter().map(ToString::to_string).collect::<Vec<_>>().join(separator)
}

fn body(tier: &TierRecord) -> Value {
    json!({
        "name": tier.name, "display_name": tier.display_name, "description": tier.description, "level": tier.level,
        "groups": tier.groups, "limits": tier.limits, "weight": tier.weight,
    })
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

    const FILE: &str = "tiers:\n  - {name: free, level: 0, groups: ['system:authenticated'], limits: ['5 requests / 2m']}\n  - {name: gold, level: 7, groups: [gold], limits: []}\n";

    #[test]
    fn a_plan_says_what_changes_and_is_empty_once_applied() {
        let declared = Declaration::from_yaml(FILE).unwrap();
        let steps = plan(&declared, &tiers::defaults()).unwrap();
        let texts: Vec<String> = steps.iter().map(Step::text).collect();
        assert_eq!(texts[0], "create gold: level 7, groups gold, unlimited");
        assert!(texts[1].starts_with("change free:\n  limits: 60 requests / 1m, "), "{}", texts[1]);
        assert!(texts[1].ends_with("-> 5 requests / 2m"), "{}", texts[1]);
        // As the server gives them back: only what the API shows.
        let applied: Vec<TierRecord> = steps.iter().map(|step| read_tier(&body(&step.tier)).unwrap()).collect();
        assert!(plan(&declared, &applied).unwrap().is_empty());
    }

    #[test]
    fn a_config_map_leaves_limits_alone_and_gives_new_tiers_those_of_free() {
        let map = "kind: ConfigMap\ndata:\n  tiers: |\n    - {name: free, displayName: Gratis, groups: [system:authenticated]}\n    - {name: new, level: 3, groups: [n]}\n";
        let steps = plan(&Declaration::from_yaml(map).unwrap(), &tiers::defaults()).unwrap();
        assert_eq!(steps[0].tier.limits, tiers::free_limits());
        assert_eq!(steps[1].tier.limits, tiers::defaults()[0].limits);
        assert!(steps[1].text().contains("display name: Free -> Gratis"));
    }
}
