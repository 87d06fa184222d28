//! `millgate model create, load, unload, delete`: asks a running server, and watches until it is done.

use std::time::Duration;

use anyhow::{Result, anyhow};
use indicatif::{ProgressBar, ProgressStyle};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::config::Environment;

use super::args::{ModelCreateArgs, ModelNameArgs, Remote};
use super::client::{Client, segment};
use super::fail::Hinted;
use super::output;

/// How often the server is asked how far it is.
const POLL: Duration = Duration::from_millis(250);
/// What a bar of unknown length is counted in.
const BAR_STEPS: u64 = 1000;

/// What the command waits for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Goal {
    Ready,
    Unloaded,
}

/// Creates a model and waits until it answers.
///
/// # Errors
/// What the server refuses, or why the model could not be loaded.
pub(super) async fn create(args: &ModelCreateArgs, environment: &Environment) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let made = client.json(Method::POST, "/admin/v1/models", Some(&creation(args))).await?;
    let model = if args.no_wait { made } else { watch(&client, &args.name, Goal::Ready).await? };
    report(&model, args.json, "created")
}

/// Loads a model, again if its source or settings changed.
///
/// # Errors
/// As [`create`].
pub(super) async fn load(args: &ModelNameArgs, environment: &Environment) -> Result<()> {
    order(args, environment, "load", Goal::Ready).await
}

/// Unloads a model once what runs has finished.
///
/// # Errors
/// What the server refuses.
pub(super) async fn unload(args: &ModelNameArgs, environment: &Environment) -> Result<()> {
    order(args, environment, "unload", Goal::Unloaded).await
}

/// Unloads and forgets a model.
///
/// # Errors
/// What the server refuses, such as a model of its configuration.
pub(super) async fn delete(args: &ModelNameArgs, environment: &Environment) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let deleted = client.json(Method::DELETE, &address(&args.name), None).await?;
    report(&deleted, args.json, "deleted")
}

/// Every model with how it is doing.
///
/// # Errors
/// No server, or no administrator's key.
pub(super) async fn list_all(remote: &Remote, is_json: bool, environment: &Environment) -> Result<()> {
    let models = Client::new(remote, environment)?.list("/admin/v1/models").await?;
    if is_json {
        return output::json(&models);
    }
    let row = |model: &Value| {
        let text = |field: &str| model[field].as_str().unwrap_or("-").to_owned();
        let tiers = match &model["tiers"] {
            Value::Array(tiers) if tiers.is_empty() => "nobody".to_owned(),
            Value::Array(tiers) => tiers.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(", "),
            all => all.as_str().unwrap_or("-").to_owned(),
        };
        vec![text("name"), state(model), tiers, text("source"), text("origin"), text("reason")]
    };
    let header = ["model", "state", "tiers", "source", "from", "reason"];
    output::table(&header, models.iter().map(row).collect(), "no models")
}

async fn order(args: &ModelNameArgs, environment: &Environment, what: &str, goal: Goal) -> Result<()> {
    let client = Client::new(&args.remote, environment)?;
    let model = client.json(Method::POST, &format!("{}/{what}", address(&args.name)), None).await?;
    let model = if args.no_wait { model } else { watch(&client, &args.name, goal).await? };
    report(&model, args.json, &format!("{what}ed"))
}

fn creation(args: &ModelCreateArgs) -> Value {
    let mut env = Map::new();
    let mut set = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            env.insert(name.into(), value);
        }
    };
    set("context_window", args.context_window.map(Into::into));
    set("kv_memory", args.kv_memory.clone().map(Into::into));
    set("kv_dtype", args.kv_dtype.clone().map(Into::into));
    set("quantize", args.quantize.clone().map(Into::into));
    let tiers = if args.tiers.iter().any(|tier| tier == "all") { json!("all") } else { json!(args.tiers) };
    let mut body = json!({"name": args.name, "source": args.source, "tiers": tiers, "env": env});
    if let Some(display_name) = &args.display_name {
        body["display_name"] = json!(display_name);
    }
    body
}

/// Asks again and again until the model is where it should be; the bar stays silent where no person watches.
async fn watch(client: &Client, name: &str, goal: Goal) -> Result<Value> {
    let bar = ProgressBar::new(BAR_STEPS);
    let style = ProgressStyle::with_template("{msg:24!} [{bar:28}] {percent:>3} %");
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> "));
    loop {
        let model = client.get(&address(name)).await?;
        let phase = model["phase"].as_str();
        if phase == Some("failed") && goal == Goal::Ready {
            bar.finish_and_clear();
            let reason = model["reason"].as_str().unwrap_or("the server gives no reason").to_owned();
            let hint = format!("change it with PUT {}, then `millgate model load {name}`", address(name));
            return Err(anyhow!(reason).context(Hinted::context(format!("model `{name}` is not loaded"), hint)));
        }
        let is_there = match goal {
            Goal::Ready => model["status"] == "ready",
            Goal::Unloaded => phase == Some("unloaded"),
        };
        if is_there {
            bar.finish_and_clear();
            return Ok(model);
        }
        if goal == Goal::Ready && phase == Some("unloaded") {
            bar.finish_and_clear();
            return Err(anyhow!("model `{name}` was unloaded by somebody else meanwhile"));
        }
        bar.set_message(format!("{name}: {}", phase.unwrap_or("waiting")));
        bar.set_position((model["progress"].as_f64().unwrap_or(0.0) * BAR_STEPS as f64) as u64);
        tokio::time::sleep(POLL).await;
    }
}

fn report(model: &Value, is_json: bool, what: &str) -> Result<()> {
    if is_json {
        return output::json(model);
    }
    let name = model["name"].as_str().unwrap_or_default();
    let nobody = "; no tier may use it yet: publish it with --tiers, or PUT {\"tiers\": \"all\"}";
    let note = if what == "created" && model["published"] == false { nobody } else { "" };
    output::line(&format!("{what} {name}: {}{note}", state(model)))
}

/// The state in a word: the status where all is well, else the phase.
fn state(model: &Value) -> String {
    let state = model["phase"].as_str().or(model["status"].as_str()).unwrap_or("-").to_owned();
    if model["reload_required"] == true { format!("{state}, to be loaded again") } else { state }
}

fn address(name: &str) -> String {
    format!("/admin/v1/models/{}", segment(name))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::super::args::{Cli, Command, ModelCommand};
    use super::*;

    fn body(args: &[&str]) -> Value {
        let args = ["millgate", "model", "create"].iter().chain(args);
        let Command::Model(ModelCommand::Create(args)) = Cli::try_parse_from(args).unwrap().command else {
            panic!("another command")
        };
        creation(&args)
    }

    #[test]
    fn a_creation_says_only_what_was_given() {
        assert_eq!(
            body(&["qwen", "hf:Qwen/Qwen3-0.6B"]),
            json!({"name": "qwen", "source": "hf:Qwen/Qwen3-0.6B", "tiers": [], "env": {}})
        );
        let whole = [
            "m",
            "/srv/m",
            "--tiers",
            "free,premium",
            "--context-window",
            "64",
            "--kv-memory",
            "8MiB",
            "--display-name",
            "M",
        ];
        assert_eq!(
            body(&whole),
            json!({"name": "m", "source": "/srv/m", "tiers": ["free", "premium"], "display_name": "M",
                "env": {"context_window": 64, "kv_memory": "8MiB"}})
        );
        assert_eq!(body(&["m", "s", "--tiers", "all"])["tiers"], "all");
    }
}
