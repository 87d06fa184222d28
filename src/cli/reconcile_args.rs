//! Options of `reconcile`, with help that teaches by example.

use std::path::PathBuf;

use clap::Args;

use super::args::Remote;

/// Options of `reconcile`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  millgate reconcile                                        the last day on the disk, from the data directory of this machine
  millgate reconcile --from 30d --json
  millgate reconcile --url https://models.example.org --key sk-mg_...

With --url, --key or MILLGATE_URL a running server is asked (an administrator's key): it also compares what its engines made, its
limiter counted, and clients were told since it started, requests in flight included. Otherwise the data directory is read, also
while the server runs: every row against its charges and its price, every roll-up against its rows. It ends with an error when
anything differs.")]
pub struct ReconcileArgs {
    /// Rows from when on: 24h, 30d ago, or a moment
    #[arg(long, value_name = "DURATION|TIME", default_value = "24h")]
    pub from: String,
    /// Until when, a moment that is not included any more [default: now]
    #[arg(long, value_name = "TIME")]
    pub to: Option<String>,
    /// The data directory [default: millgate-data]
    #[arg(long, value_name = "FOLDER", conflicts_with_all = ["url", "key"])]
    pub data_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}
