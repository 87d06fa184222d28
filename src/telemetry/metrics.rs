//! Every metric of the server: its name, unit and labels, and nothing anywhere else.
//!
//! The `vllm:` names are the ones that llm-d and the Gateway API Inference Extension read; `authorized_hits`,
//! `authorized_calls` and `limited_calls` are what dashboards of Kuadrant's limiter show; the rest is our own. No metric
//! carries a key or a prompt, and users are shown only where the operator has given figures a listener of their own.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::instruments::{Counter, Distribution, Family, Gauge, Histogram};
use super::page::{Kind, Page, PageFormat};

/// Upper bounds of the time to the first token, in seconds, as vLLM has them.
const FIRST_TOKEN: &[f64] = &[
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0,
    160.0, 640.0, 2560.0,
];
/// Upper bounds of the time between tokens, in seconds, as vLLM has them.
const NEXT_TOKEN: &[f64] =
    &[0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 20.0, 40.0, 80.0];
/// Upper bounds of the time of a request and its stages, in seconds, as vLLM has them.
const STAGES: &[f64] = &[
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0, 240.0, 480.0, 960.0,
    1920.0, 7680.0,
];
/// Upper bounds of token counts of a request: 1, 2, 5, 10 and so on; a longer context falls into the last step.
const TOKENS: &[f64] = &[
    1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0, 20_000.0, 50_000.0,
    100_000.0, 200_000.0,
];
/// Upper bounds of the number of choices, as vLLM has them.
const CHOICES: &[f64] = &[1.0, 2.0, 5.0, 10.0, 20.0];
/// Upper bounds of the admission and commit histograms, in seconds: from a cached decision to a slow disk.
const DECISIONS: &[f64] =
    &[0.000_001, 0.000_005, 0.000_01, 0.000_05, 0.000_1, 0.000_5, 0.001, 0.005, 0.01, 0.05, 0.1, 1.0];

/// The most models with figures of their own.
const MAX_MODELS: usize = 256;
/// The most combinations of user, tier and model with figures of their own.
const MAX_TENANTS: usize = 2000;
/// The most combinations of route and status, and of other words of our own.
const MAX_WORDS: usize = 1000;

/// The token classes that the ledger tells apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TokenClass {
    /// Prompt tokens that were computed.
    Prompt,
    /// Prompt tokens found in the prefix cache.
    Cached,
    /// Tokens appended to an answer.
    Completion,
}

impl TokenClass {
    fn word(self) -> &'static str {
        match self {
            Self::Prompt => "Prompt",
            Self::Cached => "Cached",
            Self::Completion => "Completion",
        }
    }
}

/// Whose request something was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tenant {
    /// The user's name.
    pub user: Arc<str>,
    /// The tier's name; empty without one.
    pub tier: String,
}

/// How long the stages of an answered request took, as far as it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stages {
    /// From arrival to the end.
    pub whole: Duration,
    /// In the queue.
    pub queued: Duration,
    /// From the queue to the first token.
    pub prefill: Duration,
    /// From the first token to the last.
    pub decode: Duration,
}

/// What a request asked for and what it got.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Sizes {
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all answers.
    pub completion_tokens: u64,
    /// Choices a prompt.
    pub choices: u32,
    /// The client's cap, if it set one.
    pub max_tokens: Option<u64>,
    /// The most tokens that one choice can have got.
    pub longest: u64,
}

/// What an engine says of itself at a scrape; totals count since process start.
#[derive(Debug, Clone, Default)]
pub struct EngineReading {
    /// The model's name.
    pub model: String,
    /// Where it computes; empty while it is not loaded.
    pub device: String,
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
    /// Tokens of a block.
    pub block_tokens: u64,
    /// Steps so far.
    pub steps: u64,
    /// Tokens of each step so far.
    pub step_tokens: Option<Distribution>,
    /// Prompt tokens computed or found in the cache so far.
    pub prompt_tokens: u64,
    /// Prompt tokens found in the cache so far.
    pub cached_tokens: u64,
    /// Completion tokens so far.
    pub completion_tokens: u64,
    /// Times that tokens were guessed and computed so far.
    pub drafts: u64,
    /// Guessed tokens computed so far.
    pub draft_tokens: u64,
    /// Guessed tokens that were right so far.
    pub accepted_tokens: u64,
    /// Sequences set back and recomputed so far.
    pub preemptions: u64,
    /// Whether the engine's heartbeat is fresh.
    pub is_healthy: bool,
}

/// The figures of one model's requests.
#[derive(Debug)]
struct ModelFigures {
    first_token: Histogram,
    next_token: Histogram,
    whole: Histogram,
    queued: Histogram,
    prefill: Histogram,
    decode: Histogram,
    inference: Histogram,
    prompt_tokens: Histogram,
    completion_tokens: Histogram,
    longest: Histogram,
    choices: Histogram,
    max_tokens: Histogram,
}

impl ModelFigures {
    fn new() -> Self {
        Self {
            first_token: Histogram::new(FIRST_TOKEN),
            next_token: Histogram::new(NEXT_TOKEN),
            whole: Histogram::new(STAGES),
            queued: Histogram::new(STAGES),
            prefill: Histogram::new(STAGES),
            decode: Histogram::new(STAGES),
            inference: Histogram::new(STAGES),
            prompt_tokens: Histogram::new(TOKENS),
            completion_tokens: Histogram::new(TOKENS),
            longest: Histogram::new(TOKENS),
            choices: Histogram::new(CHOICES),
            max_tokens: Histogram::new(TOKENS),
        }
    }
}

/// The figures of one user in one tier with one model.
#[derive(Debug, Default)]
struct TenantFigures {
    tokens: Counter,
    calls: Counter,
    refusals: Counter,
}

/// All figures of one server.
#[derive(Debug)]
pub struct Metrics {
    models: Family<ModelFigures>,
    tenants: Family<TenantFigures>,
    success: Family<Counter>,
    http: Family<Counter>,
    refusals: Family<Counter>,
    queue_full: Family<Counter>,
    charged: Family<Counter>,
    failed_credentials: Counter,
    tokenizations: Counter,
    admission: Histogram,
    ledger_commit: Histogram,
    ledger_failures: Counter,
    open_generations: Gauge,
    tier_files_failing: Gauge,
    reconciliation: Family<Gauge>,
}

impl Default for Metrics {
    fn default() -> Self {
        Self::new()
    }
}

impl Metrics {
    /// All figures at zero.
    #[must_use]
    pub fn new() -> Self {
        Self {
            models: Family::new(MAX_MODELS, ModelFigures::new),
            tenants: Family::new(MAX_TENANTS, TenantFigures::default),
            success: Family::new(MAX_WORDS, Counter::default),
            http: Family::new(MAX_WORDS, Counter::default),
            refusals: Family::new(MAX_WORDS, Counter::default),
            queue_full: Family::new(MAX_WORDS, Counter::default),
            charged: Family::new(MAX_WORDS, Counter::default),
            failed_credentials: Counter::default(),
            tokenizations: Counter::default(),
            admission: Histogram::new(DECISIONS),
            ledger_commit: Histogram::new(DECISIONS),
            ledger_failures: Counter::default(),
            open_generations: Gauge::default(),
            tier_files_failing: Gauge::default(),
            reconciliation: Family::new(MAX_WORDS, Gauge::default),
        }
    }

    /// The first token of a request went out.
    pub fn first_token(&self, model: &str, after: Duration) {
        self.models.get(&[model]).first_token.observe_duration(after);
    }

    /// A further piece of a stream went out.
    pub fn next_token(&self, model: &str, after: Duration) {
        self.models.get(&[model]).next_token.observe_duration(after);
    }

    /// A request came to its end, in whatever way.
    pub fn request_ended(&self, model: &str, stages: &Stages, sizes: &Sizes) {
        let figures = self.models.get(&[model]);
        figures.whole.observe_duration(stages.whole);
        figures.queued.observe_duration(stages.queued);
        figures.prefill.observe_duration(stages.prefill);
        figures.decode.observe_duration(stages.decode);
        figures.inference.observe_duration(stages.prefill + stages.decode);
        figures.prompt_tokens.observe(sizes.prompt_tokens as f64);
        figures.completion_tokens.observe(sizes.completion_tokens as f64);
        figures.longest.observe(sizes.longest as f64);
        figures.choices.observe(f64::from(sizes.choices));
        if let Some(max_tokens) = sizes.max_tokens {
            figures.max_tokens.observe(max_tokens as f64);
        }
    }

    /// A choice ended with a finish reason.
    pub fn choice_finished(&self, model: &str, reason: &str) {
        self.success.get(&[model, reason]).inc();
    }

    /// An answer left: its route's pattern and status.
    pub fn answered(&self, route: &str, status: u16) {
        self.http.get(&[route, &status.to_string()]).inc();
    }

    /// A limit refused a request.
    pub fn refused(&self, reason: &str) {
        self.refusals.get(&[reason]).inc();
    }

    /// The queue of a model took no more; `bound` in vLLM's words.
    pub fn queue_full(&self, model: &str, bound: &str) {
        self.queue_full.get(&[model, bound]).inc();
    }

    /// A limit refused a request of this tenant.
    pub fn tenant_refused(&self, tenant: &Tenant, model: &str) {
        self.tenants.get(&[&tenant.user, &tenant.tier, model]).refusals.inc();
    }

    /// A request of this tenant was admitted.
    pub fn tenant_admitted(&self, tenant: &Tenant, model: &str) {
        self.tenants.get(&[&tenant.user, &tenant.tier, model]).calls.inc();
    }

    /// Tokens were charged to this tenant.
    pub fn tenant_charged(&self, tenant: &Tenant, model: &str, tokens: u64) {
        self.tenants.get(&[&tenant.user, &tenant.tier, model]).tokens.add(tokens);
    }

    /// A credential did not verify.
    pub fn credential_failed(&self) {
        self.failed_credentials.inc();
    }

    /// A request entered the tokenizer pool.
    pub fn tokenizing(&self) {
        self.tokenizations.inc();
    }

    /// A ledger row was written with these tokens.
    pub fn charged(&self, model: &str, class: TokenClass, tokens: u64) {
        self.charged.get(&[model, class.word()]).add(tokens);
    }

    /// An admission was decided.
    pub fn admission_decided(&self, took: Duration) {
        self.admission.observe_duration(took);
    }

    /// A ledger row was committed.
    pub fn ledger_committed(&self, took: Duration) {
        self.ledger_commit.observe_duration(took);
    }

    /// A ledger row could not be written.
    pub fn ledger_failed(&self) {
        self.ledger_failures.inc();
    }

    /// How many ledger rows could not be written.
    pub fn ledger_failures(&self) -> u64 {
        self.ledger_failures.get()
    }

    /// How many requests are being answered.
    pub fn open_generations(&self) -> u64 {
        self.open_generations.get().try_into().unwrap_or(0)
    }

    /// Tokens by which `between` and the ledger differ since process start.
    pub fn reconciled(&self, between: &str, tokens: u64) {
        self.reconciliation.get(&[between]).set(i64::try_from(tokens).unwrap_or(i64::MAX));
    }

    /// Whether the watched tier files can be applied.
    pub fn tier_files(&self, is_failing: bool) {
        self.tier_files_failing.set(i64::from(is_failing));
    }

    /// A generation began.
    pub fn generation_opened(&self) {
        self.open_generations.add(1);
    }

    /// A generation ended.
    pub fn generation_closed(&self) {
        self.open_generations.add(-1);
    }

    /// The page for a scraper, with what the engines say of themselves. `with_users`: whether tenants are told apart.
    pub fn render(&self, format: PageFormat, engines: &[EngineReading], with_users: bool) -> String {
        let mut page = Page::new(format);
        picker_gauges(&mut page, engines);
        engine_counters(&mut page, engines);
        self.request_histograms(&mut page);
        engine_detail(&mut page, engines);
        self.own_counters(&mut page);
        self.tenant_counters(&mut page, with_users);
        page.finish()
    }

    fn request_histograms(&self, page: &mut Page) {
        type Part = fn(&ModelFigures) -> &Histogram;
        let families: [(&'static str, &str, Part); 13] = [
            ("vllm:time_to_first_token_seconds", "From arrival to the first token", |m| &m.first_token),
            ("vllm:inter_token_latency_seconds", "Between two pieces of one stream", |m| &m.next_token),
            ("vllm:time_per_output_token_seconds", "Older name of the same gap", |m| &m.next_token),
            ("vllm:e2e_request_latency_seconds", "From arrival to the last token", |m| &m.whole),
            ("vllm:request_queue_time_seconds", "In the queue", |m| &m.queued),
            ("vllm:request_prefill_time_seconds", "From the queue to the first token", |m| &m.prefill),
            ("vllm:request_decode_time_seconds", "From the first token to the last", |m| &m.decode),
            ("vllm:request_inference_time_seconds", "From the queue to the last token", |m| &m.inference),
            ("vllm:request_prompt_tokens", "Prompt tokens of a request", |m| &m.prompt_tokens),
            ("vllm:request_generation_tokens", "Completion tokens of a request", |m| &m.completion_tokens),
            ("vllm:request_max_num_generation_tokens", "The most completion tokens of one choice", |m| &m.longest),
            ("vllm:request_params_n", "Choices asked for", |m| &m.choices),
            ("vllm:request_params_max_tokens", "Caps that clients set", |m| &m.max_tokens),
        ];
        let models = self.models.read();
        for (name, help, part) in families {
            page.family(Kind::Histogram, name, help);
            for (labels, figures) in models.iter() {
                page.distribution(&[("engine", "0"), ("model_name", &labels[0])], &part(figures).read());
            }
        }
        page.family(Kind::Counter, "vllm:request_success", "Choices ended, by reason");
        for (labels, count) in self.success.read().iter() {
            let labels = [("engine", "0"), ("model_name", &*labels[0]), ("finished_reason", &labels[1])];
            page.sample(&labels, count.get());
        }
        page.family(Kind::Counter, "vllm:admission_rejections", "Requests that found the queue full, by its bound");
        for (labels, count) in self.queue_full.read().iter() {
            let labels = [("engine", "0"), ("model_name", &*labels[0]), ("reason", &labels[1])];
            page.sample(&labels, count.get());
        }
    }

    fn own_counters(&self, page: &mut Page) {
        let version = [("version", env!("CARGO_PKG_VERSION"))];
        page.family(Kind::Info, "millgate_build", "What is running").sample(&version, 1u64);
        page.family(Kind::Counter, "millgate_http_responses", "Answers by route and status");
        for (labels, count) in self.http.read().iter() {
            page.sample(&[("route", &labels[0]), ("status", &labels[1])], count.get());
        }
        page.family(Kind::Counter, "millgate_refusals", "Requests refused by a limit, by reason");
        for (labels, count) in self.refusals.read().iter() {
            page.sample(&[("reason", &labels[0])], count.get());
        }
        page.family(Kind::Counter, "millgate_charged_tokens", "Tokens written to the ledger, by class");
        for (labels, count) in self.charged.read().iter() {
            page.sample(&[("model_name", &labels[0]), ("class", &labels[1])], count.get());
        }
        page.family(Kind::Counter, "millgate_failed_credentials", "Credentials that did not verify")
            .sample(&[], self.failed_credentials.get());
        page.family(Kind::Counter, "millgate_tokenizations", "Requests given to the tokenizer pool")
            .sample(&[], self.tokenizations.get());
        page.family(Kind::Counter, "millgate_ledger_failures", "Ledger rows that could not be written")
            .sample(&[], self.ledger_failures.get());
        page.family(Kind::Gauge, "millgate_open_generations", "Requests being answered")
            .sample(&[], self.open_generations.get());
        page.family(Kind::Gauge, "millgate_tier_files_failing", "1 while the watched tier files cannot be applied")
            .sample(&[], self.tier_files_failing.get());
        let help = "Tokens by which the ledger and limiter, disk, engine or usage told differ since process start: 0";
        page.family(Kind::Gauge, "millgate_reconciliation_difference_tokens", help);
        for (labels, tokens) in self.reconciliation.read().iter() {
            page.sample(&[("between", &labels[0])], tokens.get());
        }
        page.family(Kind::Histogram, "millgate_admission_seconds", "Time to decide one admission")
            .distribution(&[], &self.admission.read());
        page.family(Kind::Histogram, "millgate_ledger_commit_seconds", "Wait for a ledger row's commit")
            .distribution(&[], &self.ledger_commit.read());
    }

    fn tenant_counters(&self, page: &mut Page, with_users: bool) {
        let tenants = self.tenants.read();
        let mut sums: BTreeMap<[&str; 3], [u64; 3]> = BTreeMap::new();
        for (labels, figures) in tenants.iter() {
            let user = if with_users { &*labels[0] } else { "" };
            let sum = sums.entry([user, &labels[1], &labels[2]]).or_default();
            for (sum, more) in sum.iter_mut().zip([&figures.tokens, &figures.calls, &figures.refusals]) {
                *sum += more.get();
            }
        }
        let families = [
            ("authorized_hits", "Tokens charged"),
            ("authorized_calls", "Requests admitted"),
            ("limited_calls", "Requests refused by a limit"),
        ];
        for (part, (name, help)) in families.into_iter().enumerate() {
            page.family(Kind::PlainCounter, name, help);
            for ([user, tier, model], sum) in &sums {
                let labels = [("user", *user), ("tier", tier), ("model", model)];
                page.sample(&labels[usize::from(!with_users)..], sum[part]);
            }
        }
    }
}

/// What endpoint pickers read: ONE series each, over all models, because they take the first series of a family for the
/// whole process.
fn picker_gauges(page: &mut Page, engines: &[EngineReading]) {
    let sum = |part: fn(&EngineReading) -> u64| engines.iter().map(part).sum::<u64>();
    let (owned, total) = (sum(|engine| engine.owned_blocks), sum(|engine| engine.total_blocks));
    let share = if total == 0 { 0.0 } else { owned as f64 / total as f64 };
    page.family(Kind::Gauge, "vllm:num_requests_running", "Sequences being computed")
        .sample(&[], sum(|engine| engine.running));
    page.family(Kind::Gauge, "vllm:num_requests_waiting", "Requests in the queue")
        .sample(&[], sum(|engine| engine.waiting));
    page.family(Kind::Gauge, "vllm:kv_cache_usage_perc", "Share of KV blocks in use, 0 to 1").sample(&[], share);
    page.family(Kind::Gauge, "vllm:gpu_cache_usage_perc", "Older name of the same share").sample(&[], share);
    let block_size = engines.iter().map(|engine| engine.block_tokens).max().unwrap_or(0).to_string();
    let labels = [("block_size", block_size.as_str()), ("num_gpu_blocks", &total.to_string())];
    page.family(Kind::Gauge, "vllm:cache_config_info", "Tokens of a KV block, and how many there are")
        .sample(&labels, 1u64);
    // Nothing to serve adapters with; pickers complain when the family is missing.
    let labels = [("max_lora", "0"), ("running_lora_adapters", ""), ("waiting_lora_adapters", "")];
    page.family(Kind::Gauge, "vllm:lora_requests_info", "Adapters in use; there are none").sample(&labels, 0u64);
}

fn engine_counters(page: &mut Page, engines: &[EngineReading]) {
    type Part = fn(&EngineReading) -> u64;
    let families: [(&'static str, &str, Part); 8] = [
        ("vllm:prompt_tokens", "Prompt tokens processed", |engine| engine.prompt_tokens),
        ("vllm:generation_tokens", "Completion tokens generated", |engine| engine.completion_tokens),
        ("vllm:prefix_cache_queries", "Prompt tokens looked up in the cache", |engine| engine.prompt_tokens),
        ("vllm:prefix_cache_hits", "Prompt tokens found in the cache", |engine| engine.cached_tokens),
        ("vllm:spec_decode_num_drafts", "Times that tokens were guessed ahead and computed", |engine| engine.drafts),
        ("vllm:spec_decode_num_draft_tokens", "Guessed tokens computed", |engine| engine.draft_tokens),
        ("vllm:spec_decode_num_accepted_tokens", "Guessed tokens that were right", |engine| engine.accepted_tokens),
        ("vllm:num_preemptions", "Sequences set back and recomputed", |engine| engine.preemptions),
    ];
    for (name, help, part) in families {
        page.family(Kind::Counter, name, help);
        for engine in engines {
            page.sample(&[("engine", "0"), ("model_name", &engine.model)], part(engine));
        }
    }
    page.family(Kind::Histogram, "vllm:iteration_tokens_total", "Tokens of a step");
    for (engine, read) in engines.iter().filter_map(|engine| Some((engine, engine.step_tokens.as_ref()?))) {
        page.distribution(&[("engine", "0"), ("model_name", &engine.model)], read);
    }
}

/// Each model by itself, under our own names.
fn engine_detail(page: &mut Page, engines: &[EngineReading]) {
    type Part = fn(&EngineReading) -> u64;
    let gauges: [(&'static str, &str, Part); 6] = [
        ("millgate_engine_running", "Sequences being computed, by model", |engine| engine.running),
        ("millgate_engine_waiting", "Requests in the queue, by model", |engine| engine.waiting),
        ("millgate_engine_blocks", "KV blocks in all", |engine| engine.total_blocks),
        ("millgate_engine_owned_blocks", "KV blocks held by sequences", |engine| engine.owned_blocks),
        ("millgate_engine_cached_blocks", "KV blocks holding only a prefix", |engine| engine.cached_blocks),
        ("millgate_engine_healthy", "0 when the engine makes no progress or the model could not be loaded", |engine| {
            engine.is_healthy.into()
        }),
    ];
    for (name, help, part) in gauges {
        page.family(Kind::Gauge, name, help);
        for engine in engines {
            page.sample(&[("model_name", &engine.model)], part(engine));
        }
    }
    page.family(Kind::Info, "millgate_engine_device", "Where each model computes");
    for engine in engines.iter().filter(|engine| !engine.device.is_empty()) {
        page.sample(&[("model_name", &engine.model), ("device", &engine.device)], 1u64);
    }
    page.family(Kind::Counter, "millgate_engine_steps", "Forward passes");
    for engine in engines {
        page.sample(&[("model_name", &engine.model)], engine.steps);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(model: &str, running: u64, owned_blocks: u64) -> EngineReading {
        EngineReading {
            model: model.to_owned(),
            device: "cuda:0".to_owned(),
            running,
            waiting: 2,
            owned_blocks,
            total_blocks: 100,
            block_tokens: 16,
            prompt_tokens: 640,
            completion_tokens: 64,
            is_healthy: true,
            ..EngineReading::default()
        }
    }

    #[test]
    fn pickers_find_one_series_over_all_models() {
        let page = Metrics::new().render(PageFormat::Prometheus, &[engine("a", 3, 25), engine("b", 1, 75)], false);
        for line in [
            "vllm:num_requests_running 4",
            "vllm:num_requests_waiting 4",
            "vllm:kv_cache_usage_perc 0.5",
            "vllm:cache_config_info{block_size=\"16\",num_gpu_blocks=\"200\"} 1",
            "vllm:lora_requests_info{max_lora=\"0\",running_lora_adapters=\"\",waiting_lora_adapters=\"\"} 0",
            "vllm:prompt_tokens_total{engine=\"0\",model_name=\"a\"} 640",
            "millgate_engine_running{model_name=\"b\"} 1",
            "millgate_engine_device_info{model_name=\"b\",device=\"cuda:0\"} 1",
        ] {
            assert!(page.lines().any(|found| found == line), "no line `{line}` in\n{page}");
        }
    }

    /// Name, type and bounds of every family of vLLM's that others read, as vLLM 0.32 has them.
    #[test]
    fn every_family_that_dashboards_read_is_there_with_vllms_type_and_bounds() {
        const FIRST: &str =
            "0.001 0.005 0.01 0.02 0.04 0.06 0.08 0.1 0.25 0.5 0.75 1 2.5 5 7.5 10 20 40 80 160 640 2560";
        const NEXT: &str = "0.01 0.025 0.05 0.075 0.1 0.15 0.2 0.3 0.4 0.5 0.75 1 2.5 5 7.5 10 20 40 80";
        const WHOLE: &str = "0.3 0.5 0.8 1 1.5 2 2.5 5 10 15 20 30 40 50 60 120 240 480 960 1920 7680";
        let metrics = Metrics::new();
        metrics.first_token("a", Duration::from_millis(3));
        metrics.queue_full("a", "max_num_queued_reqs");
        metrics.choice_finished("a", "stop");
        let page = metrics.render(PageFormat::Prometheus, &[engine("a", 1, 2)], false);
        for (name, kind) in [
            ("num_requests_running", "gauge"),
            ("num_requests_waiting", "gauge"),
            ("kv_cache_usage_perc", "gauge"),
            ("gpu_cache_usage_perc", "gauge"),
            ("cache_config_info", "gauge"),
            ("lora_requests_info", "gauge"),
            ("prefix_cache_queries_total", "counter"),
            ("prefix_cache_hits_total", "counter"),
            ("num_preemptions_total", "counter"),
            ("prompt_tokens_total", "counter"),
            ("generation_tokens_total", "counter"),
            ("request_success_total", "counter"),
            ("admission_rejections_total", "counter"),
            ("iteration_tokens_total", "histogram"),
            ("request_prompt_tokens", "histogram"),
            ("request_generation_tokens", "histogram"),
            ("request_max_num_generation_tokens", "histogram"),
            ("request_params_n", "histogram"),
            ("request_params_max_tokens", "histogram"),
        ] {
            assert!(
                page.lines().any(|line| line == format!("# TYPE vllm:{name} {kind}")),
                "no {kind} `{name}` in\n{page}"
            );
        }
        for (name, bounds) in [
            ("time_to_first_token_seconds", FIRST),
            ("inter_token_latency_seconds", NEXT),
            ("time_per_output_token_seconds", NEXT),
            ("e2e_request_latency_seconds", WHOLE),
            ("request_queue_time_seconds", WHOLE),
            ("request_prefill_time_seconds", WHOLE),
            ("request_decode_time_seconds", WHOLE),
            ("request_inference_time_seconds", WHOLE),
        ] {
            let start = format!("vllm:{name}_bucket{{engine=\"0\",model_name=\"a\",le=\"");
            let found: Vec<f64> = page
                .lines()
                .filter_map(|line| line.strip_prefix(&start)?.split('"').next()?.parse().ok())
                .filter(|bound: &f64| bound.is_finite())
                .collect();
            let wanted: Vec<f64> = bounds.split(' ').map(|bound| bound.parse().expect("a number")).collect();
            assert_eq!(found, wanted, "{name}");
        }
    }

    #[test]
    fn users_are_shown_only_where_the_operator_wants_it() {
        let metrics = Metrics::new();
        for user in ["ann", "ben"] {
            let tenant = Tenant { user: user.into(), tier: "free".to_owned() };
            metrics.tenant_admitted(&tenant, "demo");
            metrics.tenant_charged(&tenant, "demo", 7);
        }
        let open = metrics.render(PageFormat::Prometheus, &[], false);
        assert!(open.contains("authorized_hits{tier=\"free\",model=\"demo\"} 14\n"), "{open}");
        assert!(!open.contains("user=") && !open.contains("\"ann\""));
        let inner = metrics.render(PageFormat::Prometheus, &[], true);
        assert!(inner.contains("authorized_calls{user=\"ben\",tier=\"free\",model=\"demo\"} 1\n"), "{inner}");
    }
}
