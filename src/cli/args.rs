//! Every command and option, with help that teaches by example.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use millgate_models::DeviceChoice;

use super::money_args::{PriceCommand, UsageArgs};
use super::reconcile_args::ReconcileArgs;
use super::simulate_args::SimulateArgs;

use super::key_args::KeyCommand;
pub(super) use super::model_args::{ModelCommand, ModelCreateArgs, ModelListArgs, ModelNameArgs, ModelSourceArgs};
use crate::config::RawQuantize;
use crate::governance::audit::Head;

/// Serves language models over OpenAI's API, and decides in the same process who may use which and how much.
#[derive(Debug, Parser)]
#[command(
    name = "millgate",
    version,
    max_term_width = 110,
    after_help = "\
First steps:
  millgate serve                      serve the bundled demo model on http://127.0.0.1:8080
  millgate chat --key sk-mg_...       talk to it in another terminal (the key is printed at the first start)
  millgate serve --model qwen=hf:Qwen/Qwen3-0.6B

`millgate help COMMAND` shows examples for each command."
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the server
    Serve(ServeArgs),
    /// Talk to a model in the terminal
    Chat(ChatArgs),
    /// Measure a running server: time to first token, time between tokens, tokens per second
    Bench(BenchArgs),
    /// Create, find, change, renew and revoke API keys
    #[command(subcommand)]
    Key(KeyCommand),
    /// Make and end short-lived tokens, and look after the keys that sign them
    #[command(subcommand)]
    Token(TokenCommand),
    /// List tiers, or apply a file of them
    #[command(subcommand)]
    Tier(TierCommand),
    /// List and change users and their groups
    #[command(subcommand)]
    User(UserCommand),
    /// List what is served; add, load, unload and delete models; look into a model's files, download one
    #[command(subcommand)]
    Model(ModelCommand),
    /// Who used how much, and what it cost
    Usage(UsageArgs),
    /// Whether engines, ledger, limiter, and what clients were told agree
    Reconcile(ReconcileArgs),
    /// Show and set what tokens cost
    #[command(subcommand)]
    Price(PriceCommand),
    /// Who changed what, and whether the log of it is whole
    #[command(subcommand)]
    Audit(AuditCommand),
    /// Check and show the configuration
    #[command(subcommand)]
    Config(ConfigCommand),
}

/// Options of `serve`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millgate serve
  millgate serve --listen 0.0.0.0:8080 --data-dir /var/lib/millgate
  millgate serve --model qwen=hf:Qwen/Qwen3-0.6B --model local=./models/my-model
  millgate serve --model qwen=hf:Qwen/Qwen3-0.6B --quantize q8_0
  millgate serve --model small=./model-q8_0.gguf --config millgate.toml

The first start prints the administrator's key once. Ctrl-C or SIGTERM lets running answers finish.")]
pub struct ServeArgs {
    /// Configuration file [default: $MILLGATE_CONFIG, else millgate.toml where it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Where the API listens [default: 127.0.0.1:8080]
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub listen: Option<SocketAddr>,
    /// Where users, keys, tiers and the ledger are kept [default: millgate-data]
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Where models compute: auto, cpu or cuda:N [default: auto]
    #[arg(long, value_name = "DEVICE")]
    pub device: Option<DeviceChoice>,
    /// A model to serve: hf:org/name[@revision], a folder, a .gguf file or builtin:demo; may be repeated
    #[arg(long = "model", value_name = "NAME=SOURCE", value_parser = parse_model)]
    pub models: Vec<(String, String)>,
    /// Quantize the weights of the models given by `--model` while they load: none, q8_0 or q4_k
    #[arg(long, value_name = "FORMAT", value_parser = parse_quantize, requires = "models")]
    pub quantize: Option<RawQuantize>,
}

/// Where a running server is and who asks.
#[derive(Debug, Clone, Args)]
pub struct Remote {
    /// The server [default: $MILLGATE_URL, else http://127.0.0.1:8080]
    #[arg(long, value_name = "URL")]
    pub url: Option<String>,
    /// The API key [default: $MILLGATE_API_KEY]
    #[arg(long, value_name = "KEY")]
    pub key: Option<String>,
}

/// Options of `chat`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millgate chat --key sk-mg_...
  millgate chat --model qwen --system 'Answer in one sentence.'
  echo 'What is a tier?' | millgate chat

Inside: /clear forgets the conversation, /system TEXT sets the system prompt, /quit or Ctrl-D ends.
Ctrl-C stops an answer.")]
pub struct ChatArgs {
    /// Which model [default: the only one, or the first that is ready]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// A system prompt
    #[arg(long, value_name = "TEXT")]
    pub system: Option<String>,
    /// Randomness, 0 for always the likeliest word
    #[arg(long, value_name = "NUMBER")]
    pub temperature: Option<f32>,
    /// The longest answer
    #[arg(long, value_name = "TOKENS")]
    pub max_tokens: Option<u32>,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `bench`.
#[derive(Debug, Clone, Args)]
#[command(after_help = "\
Examples:
  millgate bench --clients 8 --requests 64
  millgate bench --clients 32 --prompt-tokens 512 --output-tokens 128 --json > result.json
  millgate bench --rate 4 --requests 100             open loop: four requests a second, whatever comes back

Prompts differ from each other from the first word on, so that the prefix cache does not flatter the figures;
--same-prefix makes them share a beginning. Answers have exactly --output-tokens tokens (ignore_eos).
The key needs a tier whose limits allow the load: an administrator's usually does.")]
pub struct BenchArgs {
    /// Which model [default: the first that is ready]
    #[arg(long, value_name = "NAME")]
    pub model: Option<String>,
    /// Clients that ask at the same time, each waiting for its answer before it asks again
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=4096))]
    pub clients: u32,
    /// Requests in all
    #[arg(long, default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub requests: u32,
    /// Length of each prompt, about
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub prompt_tokens: u32,
    /// Length of each answer, exactly
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub output_tokens: u32,
    /// Open loop: requests a second, sent on time however long answers take
    #[arg(long, value_name = "REQUESTS/S")]
    pub rate: Option<f64>,
    /// Let all prompts share this many beginning words, to measure the prefix cache
    #[arg(long, value_name = "WORDS", default_value_t = 0)]
    pub same_prefix: u32,
    /// Start of the random prompts; another value asks other questions
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the result as JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// `token ...`.
#[derive(Debug, Subcommand)]
pub enum TokenCommand {
    /// Make a short-lived token with your key; it is shown once
    #[command(after_help = "\
Examples:
  millgate token create                       for four hours
  millgate token create --expires 30m --json

A token is as strong as the key it is made with, never lives longer, and ends with it.")]
    Create(TokenCreateArgs),
    /// End all your tokens, effective on the next request; keys stay
    Revoke(TokenRevokeArgs),
    /// List the keys that sign tokens (administrators only)
    Keys(ListArgs),
    /// Let a new key sign from now on; tokens of the old one live to their end (administrators only)
    Rotate(ListArgs),
    /// Withdraw a signing key: every token it signed is dead on the next request (administrators only)
    Withdraw(TokenWithdrawArgs),
}

/// Options of `token create`.
#[derive(Debug, Args)]
pub struct TokenCreateArgs {
    /// What the token is for
    #[arg(long)]
    pub name: Option<String>,
    /// When it ends, 10m to 24h [default: 4h]
    #[arg(long, value_name = "DURATION")]
    pub expires: Option<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `token revoke`.
#[derive(Debug, Args)]
pub struct TokenRevokeArgs {
    /// Somebody else's tokens (administrators only) [default: yours]
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `token withdraw`.
#[derive(Debug, Args)]
pub struct TokenWithdrawArgs {
    /// The key's id, as `token keys` shows it
    pub id: String,
    #[command(flatten)]
    pub remote: Remote,
}

/// `tier ...`.
#[derive(Debug, Subcommand)]
pub enum TierCommand {
    /// List tiers with their groups and limits
    List(ListArgs),
    /// Bring the tiers in line with a file, in one step
    #[command(after_help = "\
Examples:
  millgate tier apply -f tiers.yaml --dry-run     show what would change
  millgate tier apply -f tiers.yaml

The file, in YAML or JSON:
  tiers:
    - name: free
      display_name: Free
      level: 0
      groups: [system:authenticated]
      limits: [\"5 requests / 2m\", \"100 tokens / 1m\"]

A Kubernetes ConfigMap `tier-to-group-mapping` is read as it is; it has no limits, so those of existing tiers
stay as they are. The file is applied whole or not at all. Of tiers that it does not name, those go that an
earlier file of its kind declared; tiers made by hand are left alone.")]
    Apply(TierApplyArgs),
    /// Show whom a file of tiers would have refused in the past, and what that would have saved
    Simulate(SimulateArgs),
}

/// Options of `tier apply`.
#[derive(Debug, Args)]
pub struct TierApplyArgs {
    /// The file; `-` reads standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// Show what would change and change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// A list from the server.
#[derive(Debug, Args)]
pub struct ListArgs {
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// `user ...` (administrators only).
#[derive(Debug, Subcommand)]
pub enum UserCommand {
    /// List users
    List(ListArgs),
    /// Create a user
    #[command(
        after_help = "Example:\n  millgate user create alice --group premium-users\n  millgate key create --user alice --name laptop"
    )]
    Create(UserCreateArgs),
    /// Replace a user's groups, which decide the tier
    SetGroups(UserSetGroupsArgs),
    /// Lock a user out; the keys stop working on the next request
    Deactivate(UserNameArgs),
    /// Let a user in again; the keys that have not ended work as before
    Activate(UserNameArgs),
    /// Delete a user and revoke the keys; what was used stays in the ledger
    Delete(UserNameArgs),
}

/// Options of `user create`.
#[derive(Debug, Args)]
pub struct UserCreateArgs {
    /// The name
    pub name: String,
    /// A group; may be repeated
    #[arg(long = "group", value_name = "GROUP")]
    pub groups: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `user set-groups`.
#[derive(Debug, Args)]
pub struct UserSetGroupsArgs {
    /// The name
    pub name: String,
    /// The groups from now on; none at all leaves only system:authenticated
    pub groups: Vec<String>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `user deactivate`, `user activate` and `user delete`.
#[derive(Debug, Args)]
pub struct UserNameArgs {
    /// The name
    pub name: String,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// `audit ...` (administrators only).
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// List changes, newest first
    #[command(after_help = "\
Examples:
  millgate audit list
  millgate audit list --target tier/free             one thing
  millgate audit list --action key --actor alice     everything alice did to keys
  millgate audit list --data-dir /var/lib/millgate   from a data directory, without a server")]
    List(AuditListArgs),
    /// Check that no row was changed, removed or put in between; names the first that was
    #[command(after_help = "\
Examples:
  millgate audit verify
  millgate audit verify --data-dir /var/lib/millgate
  millgate audit verify --head 120:4f0c...

It prints the head of the log, the number and the hash of the newest row. The log alone cannot show that its end was
cut off or that all of it was written anew: keep the head at another place and give it to a later check.")]
    Verify(AuditVerifyArgs),
}

/// Options of `audit list`.
#[derive(Debug, Args)]
pub struct AuditListArgs {
    /// Only by this user or key: a name, a user id or a key id
    #[arg(long, value_name = "WHO")]
    pub actor: Option<String>,
    /// Only this action, or all of a thing: tier.update, tier
    #[arg(long, value_name = "ACTION")]
    pub action: Option<String>,
    /// Only about this, or all of a kind: tier/free, tier
    #[arg(long, value_name = "TARGET")]
    pub target: Option<String>,
    /// At most so many rows
    #[arg(long, value_name = "NUMBER", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..=1000))]
    pub limit: u32,
    /// Read this data directory, with or without a running server
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `audit verify`.
#[derive(Debug, Args)]
pub struct AuditVerifyArgs {
    /// The head that an earlier check printed
    #[arg(long, value_name = "NUMBER:HASH")]
    pub head: Option<Head>,
    /// Read this data directory, with or without a running server
    #[arg(long, value_name = "FOLDER")]
    pub data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// `config ...`.
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// Check a file; names the key and the line of what is wrong
    Check(ConfigCheckArgs),
    /// Print what is in effect, secrets masked
    Show(ConfigShowArgs),
    /// Print the reference of all keys (docs/config.md)
    Reference,
    /// Print an example file with every key
    Example,
}

/// Options of `config check`.
#[derive(Debug, Args)]
pub struct ConfigCheckArgs {
    /// The file
    #[arg(default_value = "millgate.toml")]
    pub file: PathBuf,
}

/// Options of `config show`.
#[derive(Debug, Args)]
pub struct ConfigShowArgs {
    /// Configuration file [default: $MILLGATE_CONFIG, else millgate.toml where it exists]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}

fn parse_model(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, source)) if !name.is_empty() && !source.is_empty() => Ok((name.into(), source.into())),
        _ => Err("write NAME=SOURCE, such as qwen=hf:Qwen/Qwen3-0.6B".into()),
    }
}

fn parse_quantize(text: &str) -> Result<RawQuantize, String> {
    serde_json::from_value(text.into()).map_err(|_| "write none, q8_0 or q4_k".into())
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn a_model_needs_a_name_and_a_source() {
        let parse = |text: &str| Cli::try_parse_from(["millgate", "serve", "--model", text]);
        assert!(parse("qwen=hf:Qwen/Qwen3-0.6B").is_ok());
        assert!(parse("qwen").unwrap_err().to_string().contains("NAME=SOURCE"));
        assert!(parse("=x").is_err());
    }
}
