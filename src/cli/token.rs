//! `millgate token`: short-lived tokens and their signing keys, through a running server.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};

use crate::config::Environment;

use super::args::{ListArgs, TokenCommand, TokenCreateArgs, TokenRevokeArgs, TokenWithdrawArgs};
use super::client::{Client, segment};
use super::output;

const KEYS: &str = "/admin/v1/signing-keys";

/// Runs a token command.
///
/// # Errors
/// What the server refuses.
pub(super) async fn run(command: &TokenCommand, environment: &Environment) -> Result<()> {
    match command {
        TokenCommand::Create(args) => create(args, environment).await,
        TokenCommand::Revoke(args) => revoke(args, environment).await,
        TokenCommand::Keys(args) => keys(args, environment).await,
        TokenCommand::Rotate(args) => rotate(args, environment).await,
        TokenCommand::Withdraw(args) => withdraw(args, environment).await,
    }
}

async fn create(args: &TokenCreateArgs, environment: &Environment) -> Result<()> {
    let mut body = json!({});
    for (field, value) in [("expiration", &args.expires), ("name", &args.name)] {
        if let Some(value) = value {
            body[field] = json!(value);
        }
    }
    let made = Client::new(&args.remote, environment)?.json(Method::POST, "/v1/tokens", Some(&body)).await?;
    if args.json {
        return output::json(&made);
    }
    output::note(&format!("This token is shown once; it ends {} UTC:", output::moment(&made["expires_at"])));
    output::line(made["token"].as_str().unwrap_or_default())
}

async fn revoke(args: &TokenRevokeArgs, environment: &Environment) -> Result<()> {
    let (path, whose) = match &args.user {
        Some(user) => (format!("/admin/v1/users/{}/tokens", segment(user)), format!("all tokens of {user}")),
        None => ("/v1/tokens".to_owned(), "all your tokens".to_owned()),
    };
    Client::new(&args.remote, environment)?.bare(Method::DELETE, &path).await?;
    output::line(&format!("ended {whose}"))
}

async fn keys(args: &ListArgs, environment: &Environment) -> Result<()> {
    let keys = Client::new(&args.remote, environment)?.list(KEYS).await?;
    if args.json {
        return output::json(&keys);
    }
    let row = |key: &Value| {
        let text = |field: &str| key[field].as_str().unwrap_or("?").to_owned();
        vec![text("id"), text("status"), output::moment(&key["created_at"]), output::moment(&key["retired_at"])]
    };
    output::table(&["id", "status", "created", "retired"], keys.iter().map(row).collect(), "no token was made yet")
}

async fn rotate(args: &ListArgs, environment: &Environment) -> Result<()> {
    let key = Client::new(&args.remote, environment)?.json(Method::POST, KEYS, None).await?;
    if args.json {
        return output::json(&key);
    }
    output::line(&format!("key {} signs from now on", key["id"].as_str().unwrap_or("?")))
}

async fn withdraw(args: &TokenWithdrawArgs, environment: &Environment) -> Result<()> {
    let path = format!("{KEYS}/{}", segment(&args.id));
    Client::new(&args.remote, environment)?.bare(Method::DELETE, &path).await?;
    output::line(&format!("withdrew {}: the tokens it signed are dead", args.id))
}
