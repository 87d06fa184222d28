//! What can be set about one engine.

use std::time::Duration;

/// Settings of one model's engine.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Requests that may wait for a place; a further one is refused. Default 1024: at one request a second and
    /// client that is a queue people no longer wait for anyway.
    pub max_queue_requests: usize,
    /// Prompt tokens that may wait, all requests together. Default 1,048,576 (4 MiB of ids): bounds the memory and the
    /// wait that few huge prompts can cause. A prompt that finds the queue empty is taken whatever its length.
    pub max_queue_tokens: usize,
    /// Sequences computed at the same time; `None`, the default, takes as many as the model has output rows.
    pub max_running: Option<usize>,
    /// Longest step while some sequence is generating. Default 60 ms, for a CPU: a prompt that arrives makes readers
    /// stutter by no more than this, and much smaller chunks would waste the machine. Readers of a lower band than the
    /// prompt's are not counted: they share what its step leaves them.
    pub max_step: Duration,
    /// Prompt tokens computed in a step at least, however slow the machine. Default 16: without a floor prompts would
    /// starve behind a full batch.
    pub min_prefill_tokens: usize,
    /// How long a request may stand at zero allowance before it is ended. Default 2 s: a grant is a round trip to a
    /// store, and its blocks are of use to others.
    pub park_timeout: Duration,
    /// How long a request may wait for its start. Default 10 minutes, the patience of the common clients.
    pub queue_timeout: Duration,
    /// Keep computed blocks of ended sequences for later prompts with the same beginning. Default on.
    pub prefix_cache: bool,
    /// Token prefixes, such as an operator's system prompt, whose blocks all tenants share. Default none: everything
    /// else is separated by the tenant's salt, because a hit can be timed.
    pub shared_prefixes: Vec<Vec<u32>>,
    /// Model revision and cache data type. Mixed into the root of all prefix hashes. Default empty.
    pub revision: String,
    /// Launch a step before the one ahead of it is read, where the model draws by itself. Default on; answers are the same
    /// without, and come slower.
    pub run_ahead: bool,
    /// Compute guessed tokens along with the known ones and keep those that turn out right, where that is faster. Default on;
    /// answers are the same without. A model that draws by itself has no use for it.
    pub speculation: bool,
    /// Age of the last heartbeat from which the engine counts as stuck. Default 60 s: longer than the longest step of
    /// a large model on a small machine.
    pub stuck_after: Duration,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_queue_requests: 1024,
            max_queue_tokens: 1 << 20,
            max_running: None,
            max_step: Duration::from_millis(60),
            min_prefill_tokens: 16,
            park_timeout: Duration::from_secs(2),
            queue_timeout: Duration::from_secs(600),
            prefix_cache: true,
            shared_prefixes: Vec::new(),
            revision: String::new(),
            run_ahead: true,
            speculation: true,
            stuck_after: Duration::from_secs(60),
        }
    }
}
