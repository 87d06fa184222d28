//! The options of `millgate model`, with help that teaches by example.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::args::Remote;

/// `model ...`.
#[derive(Debug, Subcommand)]
pub enum ModelCommand {
    /// List the models your key may use; with --all every model and how it is doing
    List(ModelListArgs),
    /// Add a model to the running server and load it (administrators only)
    #[command(after_help = "\
Examples:
  millgate model create qwen hf:Qwen/Qwen3-0.6B --tiers all
  millgate model create small /srv/models/small.gguf --tiers free,premium --kv-memory 2GiB
  millgate model create trial hf:org/name --no-wait       return at once; `model list --all` shows how far it is

Without --tiers nobody may use it yet. It is loaded again at every start of the server, until it is unloaded or deleted.
Folders and files on the server can be named below `server.model_folders` of its configuration only.")]
    Create(ModelCreateArgs),
    /// Load a model, again if its source or settings changed (administrators only)
    #[command(after_help = "Example:\n  millgate model load qwen")]
    Load(ModelNameArgs),
    /// Let a model finish what runs, then free its memory (administrators only)
    #[command(after_help = "Example:\n  millgate model unload qwen\n  millgate model load qwen")]
    Unload(ModelNameArgs),
    /// Unload a model and forget it; what was used stays on the ledger (administrators only)
    #[command(after_help = "Example:\n  millgate model delete qwen")]
    Delete(ModelNameArgs),
    /// Read a model's files and say what it is and what it needs; nothing is loaded
    #[command(
        after_help = "Examples:\n  millgate model inspect ./model.gguf\n  millgate model inspect hf:Qwen/Qwen3-0.6B"
    )]
    Inspect(ModelSourceArgs),
    /// Download a model from the hub, to serve it later without a network
    #[command(after_help = "Example:\n  millgate model pull hf:Qwen/Qwen3-0.6B")]
    Pull(ModelSourceArgs),
}

/// Options of `model list`.
#[derive(Debug, Args)]
pub struct ModelListArgs {
    /// Every model, with state, tiers and source (administrators only)
    #[arg(long)]
    pub all: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `model create`.
#[derive(Debug, Args)]
pub struct ModelCreateArgs {
    /// The name clients use
    pub name: String,
    /// hf:org/name[@revision], builtin:demo, or a folder or .gguf file on the server
    pub source: String,
    /// Who may use it: `all`, or tiers with commas between [default: nobody]
    #[arg(long, value_name = "TIERS", value_delimiter = ',')]
    pub tiers: Vec<String>,
    /// The name people see
    #[arg(long, value_name = "TEXT")]
    pub display_name: Option<String>,
    /// A shorter context than the model's own, in tokens
    #[arg(long, value_name = "TOKENS")]
    pub context_window: Option<usize>,
    /// The size of its KV cache: 512MiB, 2GiB
    #[arg(long, value_name = "BYTES")]
    pub kv_memory: Option<String>,
    /// The number format of its KV cache: auto, f32, bf16, or on a GPU fp8
    #[arg(long, value_name = "FORMAT")]
    pub kv_dtype: Option<String>,
    /// Quantize its weights while they load: none, q8_0 or q4_k
    #[arg(long, value_name = "FORMAT")]
    pub quantize: Option<String>,
    /// Return at once; the server goes on loading
    #[arg(long)]
    pub no_wait: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// Options of `model load`, `unload` and `delete`.
#[derive(Debug, Args)]
pub struct ModelNameArgs {
    /// The model
    pub name: String,
    /// Return at once; the server goes on by itself
    #[arg(long)]
    pub no_wait: bool,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub remote: Remote,
}

/// A model's source.
#[derive(Debug, Args)]
pub struct ModelSourceArgs {
    /// hf:org/name[@revision], a folder, a .gguf file or builtin:demo
    pub source: String,
    /// Configuration file, for `[hub]`
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
}
