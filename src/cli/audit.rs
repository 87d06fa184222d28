//! `millgate audit`: who changed what, and whether the log of it is whole; through the server, or from its data directory.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use crate::config::Environment;
use crate::governance::audit::{AuditFilter, AuditRow, Broken, Head, Verification};
use crate::store::LedgerReader;

use super::args::{AuditCommand, AuditListArgs, AuditVerifyArgs};
use super::client::{Client, segment};
use super::fail::Hinted;
use super::output;

/// Rows read from a data directory at a time.
const CHUNK: u32 = 1000;

/// Runs an audit command.
///
/// # Errors
/// What the server refuses, a data directory that cannot be read, or a log that does not hold.
pub(super) async fn run(command: &AuditCommand, environment: &Environment) -> Result<()> {
    match command {
        AuditCommand::List(args) => list(args, environment).await,
        AuditCommand::Verify(args) => verify(args, environment).await,
    }
}

async fn list(args: &AuditListArgs, environment: &Environment) -> Result<()> {
    let rows = match &args.data_dir {
        Some(data_dir) => {
            let filter = AuditFilter {
                actor: args.actor.clone(),
                action: args.action.clone(),
                target: args.target.clone(),
                limit: args.limit,
                ..AuditFilter::default()
            };
            let rows = open(data_dir).await?.audit(&filter).await.context("cannot read the audit log")?;
            rows.iter().map(stored_view).collect()
        }
        None => fetch(args, environment).await?,
    };
    if args.json {
        return output::json(&rows);
    }
    let row = |row: &Value| {
        let word = |value: &Value| value.as_str().unwrap_or("-").to_owned();
        vec![
            row["id"].to_string(),
            output::moment(&row["at"]),
            word(&row["actor"]["name"]),
            word(&row["actor"]["source"]),
            word(&row["action"]),
            word(&row["target"]),
            changed(&row["before"], &row["after"]),
        ]
    };
    let header = ["row", "when", "who", "from", "what", "about", "changed"];
    output::table(&header, rows.iter().map(row).collect(), "no such change was made")
}

async fn fetch(args: &AuditListArgs, environment: &Environment) -> Result<Vec<Value>> {
    let mut path = format!("/admin/v1/audit?limit={}", args.limit);
    for (name, value) in [("actor", &args.actor), ("action", &args.action), ("target", &args.target)] {
        if let Some(value) = value {
            path.push_str(&format!("&{name}={}", segment(value)));
        }
    }
    let page = Client::new(&args.remote, environment)?.get(&path).await?;
    Ok(page["data"].as_array().cloned().unwrap_or_default())
}

/// The same shape that the server gives.
fn stored_view(row: &AuditRow) -> Value {
    let state = |text: &Option<String>| text.as_ref().and_then(|text| serde_json::from_str::<Value>(text).ok());
    let at = jiff::Timestamp::from_microsecond(row.at_us).map(|at| at.to_string()).ok();
    serde_json::json!({
        "object": "audit.row", "id": row.sequence, "at": at,
        "actor": {"name": row.actor, "id": row.actor_id, "key": row.key, "source": row.source},
        "action": row.action, "target": row.target, "before": state(&row.before), "after": state(&row.after),
        "hash": row.hash,
    })
}

/// The fields that differ, from what to what; nothing for what was made or went as a whole.
fn changed(before: &Value, after: &Value) -> String {
    let (Some(before), Some(after)) = (before.as_object(), after.as_object()) else { return String::new() };
    let names = after.keys().filter(|name| before.get(*name) != after.get(*name));
    let line = |name: &String| format!("{name}: {} -> {}", before.get(name).unwrap_or(&Value::Null), after[name]);
    names.map(line).collect::<Vec<_>>().join("\n")
}

async fn verify(args: &AuditVerifyArgs, environment: &Environment) -> Result<()> {
    let noted = args.head.clone();
    let (head, broken) = match &args.data_dir {
        Some(data_dir) => verify_stored(&open(data_dir).await?, noted).await?,
        None => verify_served(&Client::new(&args.remote, environment)?, noted).await?,
    };
    if let Some(broken) = broken {
        let holds =
            format!("the rows up to {} hold; restore the log from a backup to see what was there", head.sequence);
        return Err(Hinted::error(format!("the audit log is broken: {broken}"), holds));
    }
    if args.json {
        return output::json(&serde_json::json!({"intact": true, "rows": head.sequence, "head": head.to_string()}));
    }
    output::line(&format!("the audit log is whole: {} rows", head.sequence))?;
    output::line(&format!("head: {head}"))?;
    output::note(
        "keep the head elsewhere; `millgate audit verify --head ...` then also notices a log that was cut off or written anew",
    );
    Ok(())
}

async fn verify_served(client: &Client, noted: Option<Head>) -> Result<(Head, Option<Broken>)> {
    let path = match noted {
        Some(noted) => format!("/admin/v1/audit/verify?head={}", segment(&noted.to_string())),
        None => "/admin/v1/audit/verify".into(),
    };
    let verdict = client.get(&path).await?;
    let head = verdict["head"].as_str().unwrap_or_default().parse::<Head>();
    let Ok(head) = head else { bail!("the server's answer has no head; is it another version?") };
    if verdict["intact"] == true {
        return Ok((head, None));
    }
    let row = verdict["broken"]["row"].as_i64().unwrap_or(head.sequence + 1);
    let reason = verdict["broken"]["reason"].as_str().unwrap_or("does not hold");
    bail!("the audit log is broken: row {row}: {reason}")
}

async fn verify_stored(log: &LedgerReader, noted: Option<Head>) -> Result<(Head, Option<Broken>)> {
    let mut verification = Verification::against(noted);
    loop {
        let after = verification.head().sequence;
        let rows = log.audit_after(after, CHUNK).await.context("cannot read the audit log")?;
        if let Some(broken) = rows.iter().find_map(|row| verification.take(row).err()) {
            return Ok((verification.head().clone(), Some(broken)));
        }
        if rows.len() < CHUNK as usize {
            let head = verification.head().clone();
            return Ok((head, verification.finish().err()));
        }
    }
}

async fn open(data_dir: &Path) -> Result<LedgerReader> {
    LedgerReader::open(data_dir).await.with_context(|| {
        let hint = "start the server once, or name its data directory with --data-dir";
        Hinted::context(format!("there is no audit log in `{}`", data_dir.display()), hint)
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_differs_is_told() {
        let (before, after) = (json!({"level": 1, "name": "a"}), json!({"level": 2, "name": "a"}));
        assert_eq!(changed(&before, &after), "level: 1 -> 2");
        assert_eq!(changed(&Value::Null, &after), "");
    }
}
