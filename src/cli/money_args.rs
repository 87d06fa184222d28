//! Options of `usage` and `price`, with help that teaches by example.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::Remote;

/// Options of `usage`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millgate usage                                     this month by user, from the data directory of this machine
  millgate usage --by user,model --since 24h
  millgate usage --by tier --bucket 1d --tz Europe/Paris --csv > usage.csv
  millgate usage --by label:team --url https://models.example.org --key sk-mg_...
  millgate usage --mine --key sk-mg_...

With --url, --key, --mine or MILLGATE_URL a running server is asked (an administrator's key, but for --mine); otherwise the
ledger in the data directory is read, also while the server runs. By group, a request counts once for each group of its user.")]
pub struct UsageArgs {
    /// One line for each of these: user, key, tier, model, group, label:NAME; may be combined with commas
    #[arg(long, value_name = "WHAT", value_delimiter = ',', default_value = "user")]
    pub by: Vec<String>,
    /// Only this user
    #[arg(long, value_name = "NAME", conflicts_with = "mine")]
    pub user: Option<String>,
    /// Only this model
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// How far back: 24h, 7d, or a moment: 2026-11-01T00:00:00Z [default: since the first of the month]
    #[arg(long, value_name = "DURATION|TIME")]
    pub since: Option<String>,
    /// Until when, a moment that is not included any more [default: now]
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
    /// Lines for every minute, hour or day
    #[arg(long, value_name = "1m|1h|1d")]
    pub bucket: Option<String>,
    /// The time zone of days and months [default: UTC]
    #[arg(long, value_name = "ZONE")]
    pub tz: Option<String>,
    /// My own usage, whoever I am
    #[arg(long)]
    pub mine: bool,
    /// The data directory [default: millgate-data]
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["url", "key", "mine"])]
    pub data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long, conflicts_with = "csv")]
    pub json: bool,
    /// Print CSV
    #[arg(long)]
    pub csv: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// `price ...`.
#[derive(Debug, Subcommand)]
pub enum PriceCommand {
    /// Show what tokens cost, now and later
    Get(PriceGetArgs),
    /// Set what the tokens of a model cost, in dollars a million
    Set(PriceSetArgs),
}

/// Options of `price get`.
#[derive(Debug, Args)]
pub struct PriceGetArgs {
    /// Only this model
    #[arg(value_name = "MODEL")]
    pub model: Option<String>,
    /// Every version there ever was, newest first
    #[arg(long)]
    pub history: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `price set`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millgate price set llama --prompt 0.15 --completion 0.60
  millgate price set llama --cached 0.075
  millgate price set '*' --prompt 1 --completion 2 --from 2026-12-01T00:00:00Z

`*` holds for every model without a price of its own. What is left out keeps its price; cached prompt tokens cost as much as others
until they get a price. A price holds for what is admitted from then on; what was used keeps the price it had.")]
pub struct PriceSetArgs {
    /// Which model, or * for all that have no price of their own
    #[arg(value_name = "MODEL")]
    pub model: String,
    /// A million prompt tokens
    #[arg(long, value_name = "USD")]
    pub prompt: Option<String>,
    /// A million prompt tokens that come from the prefix cache
    #[arg(long, value_name = "USD")]
    pub cached: Option<String>,
    /// A million tokens of answers
    #[arg(long, value_name = "USD")]
    pub completion: Option<String>,
    /// From when on [default: now]
    #[arg(long, value_name = "TIME")]
    pub from: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}
