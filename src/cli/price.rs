//! `millgate price`: what tokens cost, in dollars a million.

use anyhow::{Context as _, Result, bail};
use reqwest::Method;
use serde_json::{Map, Value, json};

use crate::config::Environment;
use crate::governance::pricing::parse_usd_per_million;

use super::client::{Client, segment};
use super::money_args::{PriceCommand, PriceGetArgs, PriceSetArgs};
use super::output;

const PATH: &str = "/admin/v1/prices";

/// Runs a price command.
///
/// # Errors
/// A price that is none, or what the server refuses.
pub(super) async fn run(command: &PriceCommand, environment: &Environment) -> Result<()> {
    match command {
        PriceCommand::Get(args) => get(args, environment).await,
        PriceCommand::Set(args) => set(args, environment).await,
    }
}

async fn get(args: &PriceGetArgs, environment: &Environment) -> Result<()> {
    let mut path = format!("{PATH}?history={}", args.history);
    if let Some(model) = &args.model {
        path.push_str(&format!("&model={}", segment(model)));
    }
    let found = Client::new(&args.remote, environment)?.list(&path).await?;
    if args.json { output::json(&found) } else { table(&found) }
}

async fn set(args: &PriceSetArgs, environment: &Environment) -> Result<()> {
    let mut price = Map::from_iter([("model".to_owned(), json!(args.model))]);
    for (class, dollars) in [("prompt", &args.prompt), ("cached", &args.cached), ("completion", &args.completion)] {
        if let Some(dollars) = dollars {
            let pico = parse_usd_per_million(dollars);
            let pico = pico.with_context(|| {
                format!("`--{class} {dollars}` must be dollars a million tokens with at most six decimals, like 0.15")
            })?;
            price.insert(class.to_owned(), json!(pico.to_string()));
        }
    }
    if price.len() == 1 {
        bail!("nothing to set: give --prompt, --cached or --completion");
    }
    if let Some(from) = &args.from {
        price.insert("effective_from".to_owned(), json!(from));
    }
    let client = Client::new(&args.remote, environment)?;
    let answer = client.json(Method::PUT, PATH, Some(&json!({"prices": [price]}))).await?;
    let set = answer["data"].as_array().cloned().unwrap_or_default();
    if args.json { output::json(&set) } else { table(&set) }
}

fn table(prices: &[Value]) -> Result<()> {
    let row = |price: &Value| {
        let class = |class: &str| price["usd_per_million_tokens"][class].as_str().unwrap_or("-").to_owned();
        vec![
            price["model"].as_str().unwrap_or("-").to_owned(),
            class("prompt"),
            class("cached"),
            class("completion"),
            output::moment(&price["effective_from"]),
            if price["in_force"] == true { "yes" } else { "no" }.to_owned(),
            price["version"].to_string(),
        ]
    };
    let header = ["model", "prompt", "cached", "completion", "from", "in force", "version"];
    output::table(&header, prices.iter().map(row).collect(), "no prices: nothing costs anything")?;
    output::note("dollars a million tokens");
    Ok(())
}
