//! `millgate key`: create, list and revoke API keys through a running server.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};

use crate::config::Environment;

use super::args::{KeyCommand, KeyCreateArgs, KeyListArgs, KeyRevokeArgs};
use super::client::{Client, segment};
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
        KeyCommand::Revoke(args) => revoke(args, environment).await,
    }
}

async fn create(args: &KeyCreateArgs, environment: &Environment) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let mut body = json!({"name": args.name});
    if let Some(expires) = &args.expires {
        body["expires_in"] = json!(expires);
    }
    let path = match &args.user {
        Some(user) => {
            body["user"] = json!(user);
            "/admin/v1/api-keys"
        }
        None => "/v1/api-keys",
    };
    let made = client.json(Method::POST, path, Some(&body)).await?;
    if args.json {
        return output::json(&made);
    }
    output::note("This key is shown once; keep it safe:");
    output::line(made["key"].as_str().unwrap_or_default())
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
    let keys = client.list(if args.all { "/admin/v1/api-keys" } else { "/v1/api-keys" }).await?;
    if args.json {
        return output::json(&keys);
    }
    let text = |value: &Value| value.as_str().map_or_else(|| "-".to_owned(), str::to_owned);
    let row = |key: &Value| {
        let mut row: Vec<String> = ["id", "name", "status"].iter().map(|field| text(&key[*field])).collect();
        if args.all {
            row.push(text(&key["user"]));
        }
        row.extend(["created_at", "expires_at"].map(|field| output::moment(&key[field])));
        row
    };
    let header: &[&str] = if args.all {
        &["id", "name", "status", "user", "created", "expires"]
    } else {
        &["id", "name", "status", "created", "expires"]
    };
    output::table(header, keys.iter().map(row).collect(), "no keys")
}

async fn revoke(args: &KeyRevokeArgs, environment: &Environment) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let base = if args.all { "/admin/v1/api-keys" } else { "/v1/api-keys" };
    let revoked = client.json(Method::DELETE, &format!("{base}/{}", segment(&args.id)), None).await?;
    if args.json {
        return output::json(&revoked);
    }
    output::line(&format!("revoked {}", revoked["name"].as_str().unwrap_or(&args.id)))
}
