//! Options of `tier simulate`, with help that teaches by example.

use std::path::PathBuf;

use clap::Args;

use super::args::Remote;

/// Options of `tier simulate`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millgate tier simulate -f new-tiers.yaml --from 30d
  millgate tier simulate -f new-tiers.yaml --from 2026-11-01T00:00:00Z --to 2026-12-01T00:00:00Z --json
  millgate tier simulate -f tier-to-group-mapping.yaml --from 7d --url https://models.example.org --key sk-mg_...

The recorded requests run once more, through the limiter itself, under the tiers as they would be after `millgate tier apply -f`
of the same file; nothing changes. Usage from before --from counts on the new limits, as it does when tiers are edited. With --url,
--key or MILLGATE_URL a running server is asked (an administrator's key); otherwise the ledger in the data directory is read,
also while the server runs.")]
pub struct SimulateArgs {
    /// Tiers (YAML or TOML) or a ConfigMap; - reads YAML from standard input
    #[arg(short, long, value_name = "FILE")]
    pub file: PathBuf,
    /// From when on the tiers are in force: 24h, 7d ago, or a moment
    #[arg(long, value_name = "DURATION|TIME", default_value = "7d")]
    pub from: String,
    /// Until when, a moment that is not included any more [default: now]
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// Single requests to tell at most
    #[arg(long, value_name = "NUMBER", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=10_000))]
    pub cases: u32,
    /// The data directory [default: millgate-data]
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["url", "key"])]
    pub data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}
