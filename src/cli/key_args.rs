//! The options of `millgate key`.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::Remote;

/// `key ...`.
#[derive(Debug, Subcommand)]
pub enum KeyCommand {
    /// Create a key; it is shown once
    #[command(after_help = "\
Examples:
  millgate key create --name laptop                          a key for yourself
  millgate key create --name ci --label team=web --model qwen --limit '1000 requests / 1h'
  millgate key create --ephemeral --expires 10m              gone from the lists, and by itself soon after its end
  millgate key create --name ci --user alice --expires 30d   an administrator creates one for alice
  millgate key create --admin                                lost the administrator's key: run this on the stopped server")]
    Create(KeyCreateArgs),
    /// List keys, newest first
    #[command(after_help = "\
Examples:
  millgate key list --status active --label team=web
  millgate key list --name ci --sort last_used_at
  millgate key list --all --user alice --created-before 2026-01-01T00:00:00Z --json")]
    List(KeyListArgs),
    /// Show one key
    #[command(after_help = "Example:\n  millgate key show 4fGh7KqLm2Pz")]
    Show(KeyIdArgs),
    /// Rename, describe, relabel; change models and limits
    #[command(after_help = "\
Examples:
  millgate key update 4fGh7KqLm2Pz --name 'old laptop'
  millgate key update 4fGh7KqLm2Pz --label team=web --label env=prod   these are all its labels then
  millgate key update 4fGh7KqLm2Pz --no-labels
  millgate key update 4fGh7KqLm2Pz --all --limit '5 requests / 1m'     an administrator's limit: the owner cannot change it")]
    Update(KeyUpdateArgs),
    /// Give a key a new secret; the old one works until the grace ends
    #[command(after_help = "\
Examples:
  millgate key rotate 4fGh7KqLm2Pz              the old secret works for another day
  millgate key rotate 4fGh7KqLm2Pz --grace 0s   it leaked: the old secret stops now

It stays one key: same id, limits, usage and end.")]
    Rotate(KeyRotateArgs),
    /// Revoke a key, effective on the next request; answers being streamed to it end
    #[command(after_help = "Example:\n  millgate key revoke 4fGh7KqLm2Pz")]
    Revoke(KeyIdArgs),
    /// Revoke all keys that fit
    #[command(after_help = "\
Examples:
  millgate key bulk-revoke --label run=7 --dry-run                    show which
  millgate key bulk-revoke --created-before 2026-01-01T00:00:00Z
  millgate key bulk-revoke --user alice                               an administrator: all of alice's
  millgate key bulk-revoke --all --label leaked                       an administrator: everybody's")]
    BulkRevoke(KeyBulkRevokeArgs),
}

/// Options of `key create`.
#[derive(Debug, Args)]
pub struct KeyCreateArgs {
    /// What the key is for [default: `command line`; an ephemeral key gets a name of its own]
    #[arg(long)]
    pub name: Option<String>,
    /// More about it
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// Whose key (administrators only) [default: yours]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// When it ends: 12h, 30d
    #[arg(long, value_name = "DURATION")]
    pub expires: Option<String>,
    /// A label; may be repeated
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Only this model; may be repeated
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,
    /// A limit of this key and the keys it makes, such as '1000 requests / 1h'; may be repeated
    #[arg(long = "limit", value_name = "LIMIT")]
    pub limits: Vec<String>,
    /// A key of at most an hour that lists leave out
    #[arg(long)]
    pub ephemeral: bool,
    /// Make a new key for the administrator, on the stopped server's data directory
    #[arg(long, conflicts_with_all = ["user", "key", "url", "labels", "models", "limits", "ephemeral", "description"])]
    pub admin: bool,
    /// The data directory, with --admin [default: millgate-data]
    #[arg(long, value_name = "FOLDER", requires = "admin")]
    pub data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Which keys a list shows.
#[derive(Debug, Default, Args)]
pub struct KeyFilterArgs {
    /// Only active, expired or revoked ones; may be repeated
    #[arg(long = "status", value_name = "STATUS")]
    pub statuses: Vec<String>,
    /// Only with this in the name
    #[arg(long, value_name = "PART")]
    pub name: Option<String>,
    /// Only with this label, of any value when none is given; may be repeated
    #[arg(long = "label", value_name = "NAME[=VALUE]")]
    pub labels: Vec<String>,
    /// Only of this user (administrators only, with --all)
    #[arg(long, value_name = "USER", requires = "all")]
    pub user: Option<String>,
    /// Only made at or after this moment, such as 2026-11-23T05:00:00Z
    #[arg(long, value_name = "MOMENT")]
    pub created_after: Option<String>,
    /// Only made before this moment
    #[arg(long, value_name = "MOMENT")]
    pub created_before: Option<String>,
    /// Ephemeral keys, too
    #[arg(long)]
    pub include_ephemeral: bool,
    /// created_at, expires_at, last_used_at or name
    #[arg(long, value_name = "FIELD")]
    pub sort: Option<String>,
    /// asc or desc
    #[arg(long, value_name = "ORDER")]
    pub order: Option<String>,
}

/// Options of `key list`.
#[derive(Debug, Args)]
pub struct KeyListArgs {
    /// Everybody's keys (administrators only)
    #[arg(long)]
    pub all: bool,
    #[command(flatten)]
    pub filter: KeyFilterArgs,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `key show` and `key revoke`.
#[derive(Debug, Args)]
pub struct KeyIdArgs {
    /// The key's id, as `key list` shows it
    pub id: String,
    /// Somebody else's key (administrators only)
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `key update`.
#[derive(Debug, Args)]
pub struct KeyUpdateArgs {
    /// The key's id, as `key list` shows it
    pub id: String,
    /// A new name
    #[arg(long)]
    pub name: Option<String>,
    /// A new description; an empty one takes it away
    #[arg(long, value_name = "TEXT")]
    pub description: Option<String>,
    /// A label; may be repeated, and these are all from now on
    #[arg(long = "label", value_name = "NAME=VALUE", value_parser = parse_label)]
    pub labels: Vec<(String, String)>,
    /// Take all labels away
    #[arg(long, conflicts_with = "labels")]
    pub no_labels: bool,
    /// Only this model from now on; may be repeated
    #[arg(long = "model", value_name = "NAME")]
    pub models: Vec<String>,
    /// Whatever the tier gives
    #[arg(long, conflicts_with = "models")]
    pub all_models: bool,
    /// A limit; may be repeated, and these are all from now on
    #[arg(long = "limit", value_name = "LIMIT")]
    pub limits: Vec<String>,
    /// Take all limits away
    #[arg(long, conflicts_with = "limits")]
    pub no_limits: bool,
    /// Somebody else's key (administrators only)
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `key rotate`.
#[derive(Debug, Args)]
pub struct KeyRotateArgs {
    /// The key's id, as `key list` shows it
    pub id: String,
    /// How long the old secret works: 0s, 10m, 7d [default: 24h]
    #[arg(long, value_name = "DURATION")]
    pub grace: Option<String>,
    /// Somebody else's key (administrators only)
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `key bulk-revoke`.
#[derive(Debug, Args)]
pub struct KeyBulkRevokeArgs {
    /// Those with this label, of any value when none is given
    #[arg(long, value_name = "NAME[=VALUE]")]
    pub label: Option<String>,
    /// Those made before this moment, such as 2026-11-23T05:00:00Z
    #[arg(long, value_name = "MOMENT")]
    pub created_before: Option<String>,
    /// Those of this user: yourself, or anybody for administrators
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// Everybody's (administrators only)
    #[arg(long)]
    pub all: bool,
    /// Show which and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.into(), value.into())),
        _ => Err("write NAME=VALUE, such as team=web".into()),
    }
}
