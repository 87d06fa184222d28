//! Every metric of the server: its name, unit and labels, and nothing anywhere else.
//!
//! The `vllm:` names are the ones that llm-d and the Gateway API Inference Extension read; the rest is our own.
//! No metric carries a user, a key or a prompt.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::Registry;

/// Upper bounds of the latency histograms, in seconds: from a token's gap to a long queue.
const LATENCY_BOUNDS: [f64; 16] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0];

/// Upper bounds of the admission and commit histograms, in seconds: from a cached decision to a slow disk.
const DECISION_BOUNDS: [f64; 12] =
    [0.000_001, 0.000_005, 0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 1.0];

type Gauges = Family<ModelLabels, Gauge>;
type Fractions = Family<ModelLabels, Gauge<f64, AtomicU64>>;
type Counters = Family<ModelLabels, Counter>;
type Histograms = Family<ModelLabels, Histogram, fn() -> Histogram>;

/// Which model a figure belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ModelLabels {
    /// The name clients use.
    pub model_name: String,
}

/// Which answers are counted together.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct HttpLabels {
    /// The route's pattern, never the raw path.
    pub route: String,
    /// The HTTP status code.
    pub status: u16,
}

/// The token classes that the ledger tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum TokenClass {
    /// Prompt tokens that were computed.
    Prompt,
    /// Prompt tokens found in the prefix cache.
    Cached,
    /// Tokens appended to an answer.
    Completion,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TokenLabels {
    model_name: String,
    class: TokenClass,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct FinishLabels {
    model_name: String,
    finished_reason: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: String,
}

/// What an engine says of itself at a scrape; totals count since process start.
#[derive(Debug, Clone, Default)]
pub struct EngineReading {
    /// Sequences being computed.
    pub running: u64,
    /// Requests in the queue.
    pub waiting: u64,
    /// KV blocks held by sequences, of `total_blocks`.
    pub owned_blocks: u64,
    /// KV blocks that hold only a cached prefix.
    pub cached_blocks: u64,
    /// All KV blocks.
    pub total_blocks: u64,
    /// Steps so far.
    pub steps: u64,
    /// Prompt tokens computed or found in the cache so far.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the cache so far.
    pub cached_tokens: u64,
    /// Completion tokens so far.
    pub completion_tokens: u64,
    /// Sequences set back and recomputed so far.
    pub preemptions: u64,
    /// Whether the engine's heartbeat is fresh.
    pub is_healthy: bool,
}

/// All metrics of one server and their registry.
pub struct Metrics {
    registry: Registry,
    running: Gauges,
    waiting: Gauges,
    cache_usage: Fractions,
    gpu_cache_usage: Fractions,
    prompt_tokens: Counters,
    generation_tokens: Counters,
    prefix_queries: Counters,
    prefix_hits: Counters,
    preemptions: Counters,
    ttft: Histograms,
    inter_token: Histograms,
    request_latency: Histograms,
    success: Family<FinishLabels, Counter>,
    steps: Counters,
    cached_blocks: Gauges,
    total_blocks: Gauges,
    healthy: Gauges,
    http: Family<HttpLabels, Counter>,
    refusals: Family<ReasonLabels, Counter>,
    failed_credentials: Counter,
    charged: Family<TokenLabels, Counter>,
    admission: Histogram,
    ledger_commit: Histogram,
    ledger_failures: Counter,
    open_generations: Gauge,
    tier_files_failing: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

fn latency_histogram() -> Histogram {
    Histogram::new(LATENCY_BOUNDS)
}

impl Metrics {
    /// Registers every metric in a fresh registry.
    #[must_use]
    pub fn new() -> Self {
        let histograms = || Histograms::new_with_constructor(latency_histogram as fn() -> Histogram);
        let mut metrics = Self {
            registry: Registry::default(),
            running: Family::default(),
            waiting: Family::default(),
            cache_usage: Family::default(),
            gpu_cache_usage: Family::default(),
            prompt_tokens: Family::default(),
            generation_tokens: Family::default(),
            prefix_queries: Family::default(),
            prefix_hits: Family::default(),
            preemptions: Family::default(),
            ttft: histograms(),
            inter_token: histograms(),
            request_latency: histograms(),
            success: Family::default(),
            steps: Family::default(),
            cached_blocks: Family::default(),
            total_blocks: Family::default(),
            healthy: Family::default(),
            http: Family::default(),
            refusals: Family::default(),
            failed_credentials: Counter::default(),
            charged: Family::default(),
            admission: Histogram::new(DECISION_BOUNDS),
            ledger_commit: Histogram::new(DECISION_BOUNDS),
            ledger_failures: Counter::default(),
            open_generations: Gauge::default(),
            tier_files_failing: Gauge::default(),
        };
        metrics.register_vllm_names();
        metrics.register_own_names();
        metrics
    }

    fn register_vllm_names(&mut self) {
        let r = &mut self.registry;
        r.register("vllm:num_requests_running", "Sequences being computed", self.running.clone());
        r.register("vllm:num_requests_waiting", "Requests in the queue", self.waiting.clone());
        r.register("vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1", self.cache_usage.clone());
        r.register("vllm:gpu_cache_usage_perc", "Older name of the same share", self.gpu_cache_usage.clone());
        r.register("vllm:prompt_tokens", "Prompt tokens processed", self.prompt_tokens.clone());
        r.register("vllm:generation_tokens", "Completion tokens generated", self.generation_tokens.clone());
        r.register("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache", self.prefix_queries.clone());
        r.register("vllm:prefix_cache_hits", "Prompt tokens found in the cache", self.prefix_hits.clone());
        r.register("vllm:num_preemptions", "Sequences set back and recomputed", self.preemptions.clone());
        r.register("vllm:time_to_first_token_seconds", "From arrival to the first token", self.ttft.clone());
        r.register("vllm:inter_token_latency_seconds", "Between two pieces of one stream", self.inter_token.clone());
        r.register("vllm:e2e_request_latency_seconds", "From arrival to the last token", self.request_latency.clone());
        r.register("vllm:request_success", "Choices ended, by reason", self.success.clone());
    }

    fn register_own_names(&mut self) {
        let r = &mut self.registry;
        let version = vec![("version".to_owned(), env!("CARGO_PKG_VERSION").to_owned())];
        r.register("millgate_build", "What is running", Info::new(version));
        r.register("millgate_engine_steps", "Forward passes", self.steps.clone());
        r.register("millgate_engine_cached_blocks", "KV blocks holding only a prefix", self.cached_blocks.clone());
        r.register("millgate_engine_blocks", "KV blocks in all", self.total_blocks.clone());
        r.register("millgate_engine_healthy", "1 while the engine's heartbeat is fresh", self.healthy.clone());
        r.register("millgate_http_responses", "Answers by route and status", self.http.clone());
        r.register("millgate_refusals", "Requests refused by a limit, by reason", self.refusals.clone());
        r.register("millgate_failed_credentials", "Credentials that did not verify", self.failed_credentials.clone());
        r.register("millgate_charged_tokens", "Tokens written to the ledger, by class", self.charged.clone());
        r.register("millgate_admission_seconds", "Time to decide one admission", self.admission.clone());
        r.register("millgate_ledger_commit_seconds", "Wait for a ledger row's commit", self.ledger_commit.clone());
        r.register("millgate_ledger_failures", "Ledger rows that could not be written", self.ledger_failures.clone());
        r.register("millgate_open_generations", "Requests being answered", self.open_generations.clone());
        let failing = self.tier_files_failing.clone();
        r.register("millgate_tier_files_failing", "1 while the watched tier files cannot be applied", failing);
    }

    /// The registry as OpenMetrics text.
    #[must_use]
    pub fn render(&self) -> String {
        let mut out = String::new();
        // Writing into a String cannot fail; an encoder error would leave a truncated page, which a scraper reports.
        if text::encode(&mut out, &self.registry).is_err() {
            tracing::error!("cannot encode the metrics page");
        }
        out
    }

    /// Whether the watched tier files can be applied.
    pub fn tier_files(&self, is_failing: bool) {
        self.tier_files_failing.set(i64::from(is_failing));
    }

    /// Takes over what an engine says of itself; call it before [`Metrics::render`].
    pub fn read_engine(&self, model: &str, reading: &EngineReading) {
        let labels = ModelLabels { model_name: model.to_owned() };
        let set = |gauges: &Gauges, value: u64| {
            gauges.get_or_create(&labels).set(i64::try_from(value).unwrap_or(i64::MAX));
        };
        set(&self.running, reading.running);
        set(&self.waiting, reading.waiting);
        set(&self.cached_blocks, reading.cached_blocks);
        set(&self.total_blocks, reading.total_blocks);
        set(&self.healthy, u64::from(reading.is_healthy));
        let share =
            if reading.total_blocks == 0 { 0.0 } else { reading.owned_blocks as f64 / reading.total_blocks as f64 };
        self.cache_usage.get_or_create(&labels).set(share);
        self.gpu_cache_usage.get_or_create(&labels).set(share);
        // The engine owns these totals and they only grow, so storing keeps a counter's meaning.
        let store = |counters: &Counters, value: u64| {
            counters.get_or_create(&labels).inner().store(value, Ordering::Relaxed);
        };
        store(&self.steps, reading.steps);
        store(&self.prompt_tokens, reading.prompt_tokens);
        store(&self.generation_tokens, reading.completion_tokens);
        store(&self.prefix_queries, reading.prompt_tokens);
        store(&self.prefix_hits, reading.cached_tokens);
        store(&self.preemptions, reading.preemptions);
    }

    /// The first token of a request went out.
    pub fn first_token(&self, model: &str, after: Duration) {
        self.ttft.get_or_create(&ModelLabels { model_name: model.to_owned() }).observe(after.as_secs_f64());
    }

    /// A further piece of a stream went out.
    pub fn next_token(&self, model: &str, after: Duration) {
        self.inter_token.get_or_create(&ModelLabels { model_name: model.to_owned() }).observe(after.as_secs_f64());
    }

    /// A request came to its end, in whatever way.
    pub fn request_ended(&self, model: &str, after: Duration) {
        self.request_latency.get_or_create(&ModelLabels { model_name: model.to_owned() }).observe(after.as_secs_f64());
    }

    /// A choice ended with a finish reason.
    pub fn choice_finished(&self, model: &str, reason: &str) {
        let labels = FinishLabels { model_name: model.to_owned(), finished_reason: reason.to_owned() };
        self.success.get_or_create(&labels).inc();
    }

    /// An answer left: its route's pattern and status.
    pub fn answered(&self, route: &str, status: u16) {
        self.http.get_or_create(&HttpLabels { route: route.to_owned(), status }).inc();
    }

    /// A limit refused a request.
    pub fn refused(&self, reason: &str) {
        self.refusals.get_or_create(&ReasonLabels { reason: reason.to_owned() }).inc();
    }

    /// A credential did not verify.
    pub fn credential_failed(&self) {
        self.failed_credentials.inc();
    }

    /// A ledger row was written with these tokens.
    pub fn charged(&self, model: &str, class: TokenClass, tokens: u64) {
        self.charged.get_or_create(&TokenLabels { model_name: model.to_owned(), class }).inc_by(tokens);
    }

    /// An admission was decided.
    pub fn admission_decided(&self, took: Duration) {
        self.admission.observe(took.as_secs_f64());
    }

    /// A ledger row was committed.
    pub fn ledger_committed(&self, took: Duration) {
        self.ledger_commit.observe(took.as_secs_f64());
    }

    /// A ledger row could not be written.
    pub fn ledger_failed(&self) {
        self.ledger_failures.inc();
    }

    /// A generation began.
    pub fn generation_opened(&self) {
        self.open_generations.inc();
    }

    /// A generation ended.
    pub fn generation_closed(&self) {
        self.open_generations.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_shows_an_engine_reading_under_the_names_gateways_read() {
        let metrics = Metrics::new();
        let reading = EngineReading {
            running: 3,
            waiting: 2,
            owned_blocks: 25,
            total_blocks: 100,
            prompt_tokens: 640,
            completion_tokens: 64,
            is_healthy: true,
            ..EngineReading::default()
        };
        metrics.read_engine("demo", &reading);
        let page = metrics.render();
        for line in [
            "vllm:num_requests_running{model_name=\"demo\"} 3",
            "vllm:num_requests_waiting{model_name=\"demo\"} 2",
            "vllm:kv_cache_usage_perc{model_name=\"demo\"} 0.25",
            "vllm:prompt_tokens_total{model_name=\"demo\"} 640",
            "vllm:generation_tokens_total{model_name=\"demo\"} 64",
            "millgate_engine_healthy{model_name=\"demo\"} 1",
        ] {
            assert!(page.contains(line), "no line `{line}` in\n{page}");
        }
    }

    #[test]
    fn a_second_reading_replaces_the_totals_of_the_first() {
        let metrics = Metrics::new();
        metrics.read_engine("demo", &EngineReading { steps: 5, ..EngineReading::default() });
        metrics.read_engine("demo", &EngineReading { steps: 9, ..EngineReading::default() });
        assert!(metrics.render().contains("millgate_engine_steps_total{model_name=\"demo\"} 9"));
    }

    #[test]
    fn the_page_ends_as_openmetrics_demands() {
        assert!(Metrics::new().render().ends_with("# EOF\n"));
    }
}
