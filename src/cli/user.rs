//! `millgate user`: list, create, regroup, lock out and delete users through a running server.

use anyhow::Result;
use reqwest::Method;
use serde_json::{Value, json};

use crate::config::Environment;

use super::args::{ListArgs, UserCommand, UserNameArgs};
use super::client::{Client, segment};
use super::output;

/// Runs a user command.
///
/// # Errors
/// What the server refuses.
pub(super) async fn run(command: &UserCommand, environment: &Environment) -> Result<()> {
    let (remote, is_json, method, path, body) = match command {
        UserCommand::List(args) => return list(args, environment).await,
        UserCommand::Delete(args) => return delete(args, environment).await,
        UserCommand::Create(args) => {
            let body = json!({"name": args.name, "groups": args.groups});
            (&args.remote, args.json, Method::POST, "/admin/v1/users".to_owned(), body)
        }
        UserCommand::SetGroups(args) => {
            let path = format!("/admin/v1/users/{}", segment(&args.name));
            (&args.remote, args.json, Method::PATCH, path, json!({"groups": args.groups}))
        }
        UserCommand::Deactivate(args) | UserCommand::Activate(args) => {
            let path = format!("/admin/v1/users/{}", segment(&args.name));
            let is_active = matches!(command, UserCommand::Activate(_));
            (&args.remote, args.json, Method::PATCH, path, json!({"active": is_active}))
        }
    };
    let user = Client::new(remote, environment)?.json(method, &path, Some(&body)).await?;
    if is_json { output::json(&user) } else { output::line(&describe(&user)) }
}

async fn delete(args: &UserNameArgs, environment: &Environment) -> Result<()> {
    let path = format!("/admin/v1/users/{}", segment(&args.name));
    let user = Client::new(&args.remote, environment)?.json(Method::DELETE, &path, None).await?;
    if args.json {
        return output::json(&user);
    }
    output::line(&format!("{} is deleted, the keys are revoked", name(&user)))
}

async fn list(args: &ListArgs, environment: &Environment) -> Result<()> {
    let users = Client::new(&args.remote, environment)?.list("/admin/v1/users").await?;
    if args.json {
        return output::json(&users);
    }
    let row = |user: &Value| {
        let active = if user["active"] == false { "no" } else { "yes" };
        vec![name(user), groups(user), active.into()]
    };
    output::table(&["name", "groups", "active"], users.iter().map(row).collect(), "no users")
}

fn describe(user: &Value) -> String {
    let state = if user["active"] == false { " (locked out)" } else { "" };
    format!("{}{state}: {}", name(user), groups(user))
}

fn name(user: &Value) -> String {
    user["name"].as_str().unwrap_or("?").to_owned()
}

fn groups(user: &Value) -> String {
    let groups = user["groups"].as_array().cloned().unwrap_or_default();
    let names: Vec<&str> =
        groups.iter().filter_map(|group| group.as_str().or_else(|| group["name"].as_str())).collect();
    if names.is_empty() { "no groups".into() } else { names.join(", ") }
}
