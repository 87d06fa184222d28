//! `millgate key`: create, find, change, renew and revoke API keys through a running server.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::config::Environment;
use crate::governance::Limit;

use super::client::{Client, segment};
use super::key_args::{
    KeyBulkRevokeArgs, KeyCommand, KeyCreateArgs, KeyFilterArgs, KeyIdArgs, KeyListArgs, KeyRotateArgs, KeyUpdateArgs,
};
use super::{offline, output};

/// Runs a key command.
///
/// # Errors
/// What the server or the data directory refuses.
pub(super) async fn run(command: &KeyCommand, environment: &Environment) -> Result<()> {
    match command {
        KeyCommand::Create(args) if args.admin => create_admin(args, environment).await,
        KeyCommand::Create(args) => create(args, environment).await,
        KeyCommand::List(args) => list(args, environment).await,
        KeyCommand::Show(args) => show(args, environment).await,
        KeyCommand::Update(args) => update(args, environment).await,
        KeyCommand::Rotate(args) => rotate(args, environment).await,
        KeyCommand::Revoke(args) => revoke(args, environment).await,
        KeyCommand::BulkRevoke(args) => bulk_revoke(args, environment).await,
    }
}

fn base(of_anybody: bool) -> &'static str {
    if of_anybody { "/admin/v1/api-keys" } else { "/v1/api-keys" }
}

fn path(of_anybody: bool, id: &str) -> String {
    format!("{}/{}", base(of_anybody), segment(id))
}

async fn create(args: &KeyCreateArgs, environment: &Environment) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let mut body = json!({});
    match &args.name {
        Some(name) => body["name"] = json!(name),
        None if args.ephemeral => {}
        None => body["name"] = json!("command line"),
    }
    let texts = [("description", &args.description), ("expires_in", &args.expires), ("user", &args.user)];
    for (field, text) in texts {
        if let Some(text) = text {
            body[field] = json!(text);
        }
    }
    if args.ephemeral {
        body["ephemeral"] = json!(true);
    }
    if !args.labels.is_empty() {
        body["labels"] = labels(&args.labels);
    }
    for (field, list) in [("models", &args.models), ("limits", &args.limits)] {
        if !list.is_empty() {
            body[field] = json!(list);
        }
    }
    let made = client.json(Method::POST, base(args.user.is_some()), Some(&body)).await?;
    if args.json {
        return output::json(&made);
    }
    output::note("This key is shown once; keep it safe:");
    output::line(made["key"].as_str().unwrap_or_default())
}

fn labels(pairs: &[(String, String)]) -> Value {
    Value::Object(pairs.iter().map(|(name, value)| (name.clone(), json!(value))).collect::<Map<_, _>>())
}

async fn create_admin(args: &KeyCreateArgs, environment: &Environment) -> Result<()> {
    let made = offline::create_admin_key(args.data_dir.as_deref(), environment).await?;
    if args.json {
        return output::json(&json!({"user": "admin", "key": made}));
    }
    output::note("A new administrator's key, shown once; the old ones still work until they are revoked:");
    output::line(&made)
}

async fn list(args: &KeyListArgs, environment: &Environment) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let keys = client.list(&format!("{}{}", base(args.all), query(&args.filter))).await?;
    if args.json {
        return output::json(&keys);
    }
    table(&keys, args.all, "no keys")
}

/// The filters as the part of the address after the question mark.
fn query(filter: &KeyFilterArgs) -> String {
    let mut pairs: Vec<(&str, &str)> = Vec::new();
    pairs.extend(filter.statuses.iter().map(|status| ("status", status.as_str())));
    pairs.extend(filter.labels.iter().map(|label| ("label", label.as_str())));
    let texts = [
        ("name", &filter.name),
        ("user", &filter.user),
        ("created_after", &filter.created_after),
        ("created_before", &filter.created_before),
        ("sort", &filter.sort),
        ("order", &filter.order),
    ];
    pairs.extend(texts.iter().filter_map(|(name, text)| Some((*name, text.as_deref()?))));
    if filter.include_ephemeral {
        pairs.push(("include_ephemeral", "true"));
    }
    let pairs: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={}", segment(value))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

fn table(keys: &[Value], with_user: bool, empty: &str) -> Result<()> {
    let text = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), str::to_owned);
    let with_parent = keys.iter().any(|key| key["parent"].is_string());
    let row = |key: &Value| {
        let mut row: Vec<String> = ["id", "name", "status"].iter().map(|field| text(&key[*field])).collect();
        if with_user {
            row.push(text(&key["user"]));
        }
        if with_parent {
            row.push(text(&key["parent"]));
        }
        row.extend(["created_at", "expires_at", "last_used_at"].map(|field| output::moment(&key[field])));
        row
    };
    let mut header = vec!["id", "name", "status"];
    header.extend(with_user.then_some("user"));
    header.extend(with_parent.then_some("made by key"));
    header.extend(["created", "expires", "last used"]);
    output::table(&header, keys.iter().map(row).collect(), empty)
}

async fn show(args: &KeyIdArgs, environment: &Environment) -> Result<()> {
    let key = Client::new(&args.remote, environment)?.get(&path(args.all, &args.id)).await?;
    if args.json { output::json(&key) } else { describe(&key) }
}

/// One key, a line a fact.
fn describe(key: &Value) -> Result<()> {
    let models: Vec<String> = serde_json::from_value(key["models"].clone()).unwrap_or_default();
    let limits: Vec<Limit> = serde_json::from_value(key["limits"].clone()).unwrap_or_default();
    let limits: Vec<String> = limits.iter().map(ToString::to_string).collect();
    let list = |items: &[String], none: &str| if items.is_empty() { none.to_owned() } else { items.join(", ") };
    let labels = key["labels"].as_object().cloned().unwrap_or_default();
    let labels: Vec<String> =
        labels.iter().map(|(name, value)| format!("{name}={}", value.as_str().unwrap_or_default())).collect();
    let text = |field: &str| key[field].as_str().unwrap_or("-").to_owned();
    let rows = vec![
        vec!["id".to_owned(), text("id")],
        vec!["name".into(), text("name")],
        vec!["description".into(), text("description")],
        vec!["status".into(), text("status")],
        vec!["user".into(), text("user")],
        vec!["labels".into(), list(&labels, "-")],
        vec!["models".into(), list(&models, "all of the tier")],
        vec!["limits".into(), list(&limits, "those of the tier only")],
        vec!["limits set by".into(), text("limits_set_by")],
        vec!["made by key".into(), text("parent")],
        vec!["created".into(), output::moment(&key["created_at"])],
        vec!["expires".into(), output::moment(&key["expires_at"])],
        vec!["last used".into(), output::moment(&key["last_used_at"])],
        vec!["old secret until".into(), output::moment(&key["previous_secret_until"])],
    ];
    output::table(&["", ""], rows, "")
}

async fn update(args: &KeyUpdateArgs, environment: &Environment) -> Result<()> {
    let mut body = json!({});
    for (field, text) in [("name", &args.name), ("description", &args.description)] {
        if let Some(text) = text {
            body[field] = json!(text);
        }
    }
    if args.no_labels || !args.labels.is_empty() {
        body["labels"] = labels(&args.labels);
    }
    if args.all_models {
        body["models"] = json!("all");
    } else if !args.models.is_empty() {
        body["models"] = json!(args.models);
    }
    if args.no_limits || !args.limits.is_empty() {
        body["limits"] = json!(args.limits);
    }
    let client = Client::new(&args.remote, environment)?;
    let key = client.json(Method::PATCH, &path(args.all, &args.id), Some(&body)).await?;
    if args.json { output::json(&key) } else { describe(&key) }
}

async fn rotate(args: &KeyRotateArgs, environment: &Environment) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let body = args.grace.as_ref().map_or_else(|| json!({}), |grace| json!({"grace": grace}));
    let made = client.json(Method::POST, &format!("{}/rotate", path(args.all, &args.id)), Some(&body)).await?;
    if args.json {
        return output::json(&made);
    }
    match made["previous_secret_until"].as_str() {
        Some(_) => output::note(&format!(
            "The new text of the key, shown once; the old one works until {} UTC:",
            output::moment(&made["previous_secret_until"])
        )),
        None => output::note("The new text of the key, shown once; the old one works no more:"),
    }
    output::line(made["key"].as_str().unwrap_or_default())
}

async fn revoke(args: &KeyIdArgs, environment: &Environment) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let revoked = client.json(Method::DELETE, &path(args.all, &args.id), None).await?;
    if args.json {
        return output::json(&revoked);
    }
    output::line(&format!("revoked {}", revoked["name"].as_str().unwrap_or(&args.id)))
}

async fn bulk_revoke(args: &KeyBulkRevokeArgs, environment: &Environment) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let mut body = json!({"dry_run": args.dry_run});
    for (field, text) in [("label", &args.label), ("created_before", &args.created_before), ("user", &args.user)] {
        if let Some(text) = text {
            body[field] = json!(text);
        }
    }
    let done = client.json(Method::POST, &format!("{}/bulk-revoke", base(args.all)), Some(&body)).await?;
    if args.json {
        return output::json(&done);
    }
    let keys = done["data"].as_array().cloned().unwrap_or_default();
    table(&keys, true, "no key fits")?;
    let verb = if args.dry_run { "would be revoked" } else { "revoked" };
    output::note(&format!("{} {verb}", keys.len()));
    if done["has_more"] == true {
        output::note("more keys fit: run it again");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_become_an_address_that_nothing_breaks_out_of() {
        assert_eq!(query(&KeyFilterArgs::default()), "");
        let filter = KeyFilterArgs {
            statuses: vec!["active".into(), "expired".into()],
            labels: vec!["team=a&b".into()],
            name: Some("é".into()),
            include_ephemeral: true,
            ..KeyFilterArgs::default()
        };
        assert_eq!(
            query(&filter),
            "?status=active&status=expired&label=team%3Da%26b&name=%C3%A9&include_ephemeral=true"
        );
    }
}
