//! `millgate model`: what a server offers, what a model's files hold, downloads ahead of time; `model_life` does the rest.

use anyhow::{Context as _, Result};
use millgate_models::{Bar, Checkpoint, Source, Summary};
use serde_json::{Value, json};

use crate::config::{ByteSize, Environment, Overrides};

use super::args::{ModelCommand, ModelListArgs, ModelSourceArgs};
use super::client::Client;
use super::config_command::load;
use super::fail::Hinted;
use super::{model_life, output};

/// Runs a model command.
///
/// # Errors
/// No server, a source that cannot be read, or a download that fails.
pub(super) async fn run(command: &ModelCommand, environment: &Environment) -> Result<()> {
    match command {
        ModelCommand::List(args) if args.all => model_life::list_all(&args.remote, args.json, environment).await,
        ModelCommand::List(args) => list(args, environment).await,
        ModelCommand::Create(args) => model_life::create(args, environment).await,
        ModelCommand::Load(args) => model_life::load(args, environment).await,
        ModelCommand::Unload(args) => model_life::unload(args, environment).await,
        ModelCommand::Delete(args) => model_life::delete(args, environment).await,
        ModelCommand::Inspect(args) => inspect(args, environment),
        ModelCommand::Pull(args) => pull(args, environment),
    }
}

async fn list(args: &ModelListArgs, environment: &Environment) -> Result<()> {
    let models = Client::new(&args.remote, environment)?.list("/v1/models").await?;
    if args.json {
        return output::json(&models);
    }
    let row = |model: &Value| {
        let text = |field: &str| model[field].as_str().unwrap_or("-").to_owned();
        let ready = if model["ready"] == true { "ready" } else { "not ready" };
        let context = model["context_window"].as_u64().map_or_else(|| "-".into(), output::number);
        vec![text("id"), ready.into(), context, text("owned_by")]
    };
    let empty = "no models: none is published to the tier of this key";
    output::table(&["model", "state", "context", "owned by"], models.iter().map(row).collect(), empty)
}

fn inspect(args: &ModelSourceArgs, environment: &Environment) -> Result<()> {
    let (source, checkpoint) = open(args, environment)?;
    let summary = checkpoint.summary();
    if args.json { output::json(&as_json(&source, &summary)) } else { output::text(&as_text(&source, &summary)) }
}

fn pull(args: &ModelSourceArgs, environment: &Environment) -> Result<()> {
    let (source, checkpoint) = open(args, environment)?;
    let summary = checkpoint.summary();
    if args.json {
        return output::json(&as_json(&source, &summary));
    }
    output::line(&format!("{source} is on this machine: {summary}"))?;
    output::line(&format!("serve it with: millgate serve --model NAME={source}"))
}

/// Opens the files; for the hub, downloads what is missing.
fn open(args: &ModelSourceArgs, environment: &Environment) -> Result<(Source, Checkpoint)> {
    let settings = load(args.config.as_deref(), environment, &Overrides::default())?;
    let hint = "a source is hf:org/name[@revision], a folder with config.json, a .gguf file or builtin:demo";
    let source: Source = args.source.parse().with_context(|| Hinted::context("this is no model source", hint))?;
    let checkpoint = Checkpoint::open(&source, &settings.hub.options(), &Bar::new())
        .with_context(|| Hinted::context(format!("cannot open `{source}`"), hint))?;
    Ok((source, checkpoint))
}

fn as_text(source: &Source, summary: &Summary) -> String {
    let full_context = summary.kv_bytes_per_token.saturating_mul(summary.context_window as u64);
    let rows = [
        ("source", source.to_string()),
        ("architecture", summary.architecture.clone()),
        ("parameters", output::number(summary.parameters)),
        ("weights", format!("{}, {} on disk", summary.format_names(), ByteSize(summary.file_bytes))),
        ("context", format!("{} tokens", output::number(summary.context_window as u64))),
        (
            "layers",
            format!(
                "{} of width {}, feed-forward {}",
                summary.num_layers, summary.hidden_size, summary.intermediate_size
            ),
        ),
        (
            "attention",
            format!(
                "{} heads of {}, {} for keys and values",
                summary.num_heads, summary.head_dim, summary.num_kv_heads
            ),
        ),
        ("rotary", summary.rope.clone()),
        ("window", summary.sliding_window.map_or_else(|| "whole context".into(), |tokens| format!("{tokens} tokens"))),
        (
            "vocabulary",
            format!(
                "{}{}",
                output::number(summary.vocab_size as u64),
                if summary.is_head_tied { ", tied head" } else { "" }
            ),
        ),
        (
            "KV cache",
            format!(
                "{} a token, {} for one full context",
                ByteSize(summary.kv_bytes_per_token),
                ByteSize(full_context)
            ),
        ),
    ];
    rows.iter().map(|(name, value)| format!("{name:<13} {value}\n")).collect()
}

fn as_json(source: &Source, summary: &Summary) -> Value {
    json!({
        "source": source.to_string(), "architecture": summary.architecture, "parameters": summary.parameters,
        "format": summary.format_names(), "file_bytes": summary.file_bytes, "context_window": summary.context_window,
        "num_layers": summary.num_layers, "hidden_size": summary.hidden_size,
        "intermediate_size": summary.intermediate_size, "num_heads": summary.num_heads,
        "num_kv_heads": summary.num_kv_heads, "head_dim": summary.head_dim, "vocab_size": summary.vocab_size,
        "sliding_window": summary.sliding_window, "rope": summary.rope, "is_head_tied": summary.is_head_tied,
        "kv_bytes_per_token": summary.kv_bytes_per_token,
    })
}
