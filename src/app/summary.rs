//! What a start has to tell: facts only, the command line words them.

use std::net::SocketAddr;
use std::path::PathBuf;

use millgate_kernels::Level;

/// What is being served, and how to reach it.
#[derive(Debug)]
pub struct Summary {
    /// Where the API listens.
    pub listen: SocketAddr,
    /// Where probes and metrics listen, if apart.
    pub ops_listen: Option<SocketAddr>,
    /// Where durable data lives.
    pub data_dir: PathBuf,
    /// Threads that compute.
    pub threads: usize,
    /// The instructions the kernels use.
    pub instruction_set: Level,
    /// Every model, in the order of the settings.
    pub models: Vec<ModelLine>,
}

/// One model of the summary.
#[derive(Debug, Clone)]
pub struct ModelLine {
    /// The name clients use.
    pub name: String,
    /// Where it came from.
    pub source: String,
    /// What became of it.
    pub outcome: Result<LoadedModel, String>,
}

/// Figures of a loaded model.
#[derive(Debug, Clone)]
pub struct LoadedModel {
    /// Family, size and number format in a few words.
    pub description: String,
    /// Where it computes, with the name of a GPU.
    pub device: String,
    /// Weights, activations and cache.
    pub memory_bytes: u64,
    /// The weights' part of it.
    pub weight_bytes: u64,
    /// What is left on its GPU.
    pub free_bytes: Option<u64>,
    /// The cache's part of it.
    pub kv_bytes: u64,
    /// Tokens the cache holds, all sequences together.
    pub kv_tokens: usize,
    /// Longest sequence, in tokens.
    pub context_window: usize,
}
