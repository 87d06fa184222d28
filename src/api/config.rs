//! What can be set about the HTTP side.
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;

use super::openai::RequestBounds;

/// Settings of the HTTP side, checked.
#[derive(Clone, Debug)]
pub struct Config {
    /// The largest request body in bytes. Default 4 MiB: a full context window of text is far smaller.
    pub max_body_bytes: usize,
    /// The most header lines of a request; more are answered with 431.
    pub max_headers: usize,
    /// The longest time for a client to send its headers, and again for its body.
    pub read_timeout: Duration,
    /// How long an answer waits for a reader that takes nothing; then its connection is closed.
    pub stall_timeout: Duration,
    /// The longest time from admission to the last token.
    pub generation_timeout: Duration,
    /// A generation out of tokens waits for a limit that frees within this time; beyond it the answer ends.
    /// Must be shorter than the engine's park timeout.
    pub refill_wait: Duration,
    /// Connections open at the same time; further ones wait to be accepted.
    pub max_connections: usize,
    /// Prompts tokenized at the same time.
    pub tokenizer_threads: usize,
    /// Web origins that browsers may call from; `*` is every origin.
    pub cors_origins: Vec<String>,
    /// Networks of proxies whose `x-forwarded-for` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// True when probes, metrics and the tier lookup have a listener of their own: then the main one does not show metrics.
    pub has_ops_listener: bool,
    /// Percents of a quota whose reaching is told; sorted.
    pub notice_thresholds: Vec<u8>,
    /// How many prompts and choices a request may ask for.
    pub bounds: RequestBounds,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            max_body_bytes: 4 << 20,
            max_headers: 100,
            read_timeout: Duration::from_secs(30),
            stall_timeout: Duration::from_secs(60),
            generation_timeout: Duration::from_secs(3600),
            refill_wait: Duration::from_millis(1500),
            max_connections: 4096,
            tokenizer_threads: std::thread::available_parallelism().map_or(2, |threads| threads.get().min(8)),
            cors_origins: Vec::new(),
            trusted_proxies: Vec::new(),
            has_ops_listener: false,
            notice_thresholds: vec![50, 80, 95],
            bounds: RequestBounds::default(),
        }
    }
}

impl Config {
    /// Whether `address` is a proxy whose word about the client's address counts.
    pub(crate) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.trusted_proxies.iter().any(|network| network.contains(&address))
    }
}
