//! The raw mirror of `millgate.toml`: exactly the documented keys, all optional, units parsed on the way in.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;

use millgate_models::{KvDtypeChoice, QuantizeTo};
use serde::{Deserialize, Serialize};

use super::units::{ByteSize, MemoryBound, Span};

/// The whole file. A key that is not listed here is an error, and the error lists the keys that are.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawConfig {
    /// `[server]`: addresses, bounds and shutdown.
    pub server: RawServer,
    /// `[store]`: where durable data lives.
    pub store: RawStore,
    /// `[engine]`: how requests are batched.
    pub engine: RawEngine,
    /// `[memory]`: how much the models may take together.
    pub memory: RawMemory,
    /// `[cpu]`: threads.
    pub cpu: RawCpu,
    /// `[keys]`: API keys.
    pub keys: RawKeys,
    /// `[tiers]`: rules for all tiers, and a folder that declares them.
    pub tiers: RawTierRules,
    /// `[identity]`: what holds for all identity providers.
    pub identity: RawIdentity,
    /// `[kubernetes]`: the cluster whose tokens are believed.
    pub kubernetes: RawKubernetes,
    /// `[tokens]`: short-lived tokens.
    pub tokens: RawTokens,
    /// `[notices]`: what is told about quotas, and to whom.
    pub notices: RawNotices,
    /// `[hub]`: where `hf:` models come from.
    pub hub: RawHub,
    /// `[log]`: what is logged and how.
    pub log: RawLog,
    /// `[traces]`: where traces go.
    pub traces: RawTraces,
    /// `[[oidc]]`: identity providers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub oidc: Vec<RawOidc>,
    /// `[[models]]`: what is served.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub models: Vec<RawModel>,
}

/// `[server]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawServer {
    /// See [`super::KEYS`] for every key's meaning, unit and default.
    pub listen: Option<SocketAddr>,
    /// A second listener for probes and metrics.
    pub ops_listen: Option<SocketAddr>,
    /// How long streams may finish after a stop was asked for.
    pub drain_timeout: Option<Span>,
    /// The largest request body.
    pub body_limit: Option<ByteSize>,
    /// The longest time for a client to send its headers and body.
    pub read_timeout: Option<Span>,
    /// The longest time from admission to the last token.
    pub generation_timeout: Option<Span>,
    /// Connections open at the same time.
    pub max_connections: Option<usize>,
    /// Web origins that browsers may call from.
    pub cors_origins: Option<Vec<String>>,
    /// Networks of proxies whose forwarded address is believed.
    pub trusted_proxies: Option<Vec<String>>,
    /// Folders below which administrators may load models through the API.
    pub model_folders: Option<Vec<PathBuf>>,
}

/// `[store]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawStore {
    /// The data directory.
    pub data_dir: Option<PathBuf>,
}

/// `[engine]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawEngine {
    /// The longest step while somebody is decoding.
    pub max_step: Option<Span>,
    /// Tokens one step may compute.
    pub step_tokens: Option<usize>,
    /// Sequences that may run at once.
    pub max_running: Option<usize>,
    /// Requests that may wait.
    pub queue_requests: Option<usize>,
    /// Prompt tokens that may wait.
    pub queue_tokens: Option<usize>,
    /// How long a request may wait for its start.
    pub queue_timeout: Option<Span>,
    /// How long a request may stand without an allowance.
    pub park_timeout: Option<Span>,
    /// Whether prompts reuse computed prefixes.
    pub prefix_cache: Option<bool>,
    /// Whether tokens are guessed ahead: `auto` or `off`.
    pub speculation: Option<String>,
    /// Where models compute.
    pub device: Option<String>,
    /// Whether a GPU computes a row alike whatever else is in its step.
    pub deterministic: Option<bool>,
}

/// `[memory]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawMemory {
    /// All models together.
    pub limit: Option<MemoryBound>,
    /// The default KV cache of a model.
    pub kv_cache: Option<ByteSize>,
}

/// `[cpu]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawCpu {
    /// Worker threads.
    pub threads: Option<usize>,
}

/// `[keys]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawKeys {
    /// Live keys a user may own.
    pub max_per_user: Option<u32>,
    /// How long a key lives when its maker does not say.
    pub default_life: Option<Span>,
    /// The longest life a key may be given.
    pub longest_life: Option<Span>,
    /// Failed credentials a source may present in a minute.
    pub failures_per_minute: Option<u32>,
}

/// `[tiers]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTierRules {
    /// Whose service accounts' namespaces belong to tiers.
    pub instance: Option<String>,
    /// The watched folder.
    pub folder: Option<PathBuf>,
    /// How often it is looked at.
    pub poll: Option<Span>,
    /// Limits of a tier that a ConfigMap brings.
    pub new_limits: Option<Vec<String>>,
}

/// `[identity]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawIdentity {
    /// How long a provider's word about groups counts.
    pub groups_max_age: Option<Span>,
}

/// `[kubernetes]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawKubernetes {
    /// Whom tokens must be meant for.
    pub audiences: Option<Vec<String>>,
    /// The API server's address.
    pub server: Option<String>,
    /// The file with the token that is shown to it.
    pub token_file: Option<PathBuf>,
    /// The file with the certificates it is known by.
    pub ca_file: Option<PathBuf>,
    /// Whether tokens open inference.
    pub allow_inference: Option<bool>,
    /// What groups of the cluster mean here.
    pub group_map: Option<BTreeMap<String, String>>,
}

/// One `[[oidc]]` entry.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawOidc {
    /// A short name; users are called `name:user`.
    pub name: String,
    /// The issuer, letter by letter.
    pub issuer: String,
    /// Whom tokens must be meant for.
    pub audiences: Vec<String>,
    /// Clients whose tokens are accepted.
    pub clients: Option<Vec<String>>,
    /// Algorithms that are accepted.
    pub algorithms: Option<Vec<String>>,
    /// The claim that names the user.
    pub user_claim: Option<String>,
    /// The claim that lists the groups.
    pub groups_claim: Option<String>,
    /// Whether tokens open inference.
    pub allow_inference: Option<bool>,
    /// How far clocks may be apart.
    pub leeway: Option<Span>,
    /// How often keys are fetched.
    pub keys_refresh: Option<Span>,
    /// How long keys are used while the provider is down.
    pub keys_max_age: Option<Span>,
    /// What words of that claim mean here.
    pub group_map: Option<BTreeMap<String, String>>,
}

/// `[tokens]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTokens {
    /// How long a token lives when its maker does not say.
    pub default_life: Option<Span>,
    /// The longest life a token may be given.
    pub longest_life: Option<Span>,
    /// How long one key signs.
    pub rotate_every: Option<Span>,
}

/// `[notices]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawNotices {
    /// Percents of a quota whose reaching is told.
    pub thresholds: Option<Vec<u8>>,
    /// Where notices are sent.
    pub webhook_url: Option<String>,
    /// A file with the secret that signs them.
    pub webhook_secret_file: Option<PathBuf>,
}

/// `[hub]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawHub {
    /// The hub's address.
    pub endpoint: Option<String>,
    /// Where downloads are kept.
    pub home: Option<PathBuf>,
}

/// `[log]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawLog {
    /// Which records are written.
    pub level: Option<String>,
    /// How they look.
    pub format: Option<RawLogFormat>,
}

/// `[traces]`.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawTraces {
    /// The collector.
    pub endpoint: Option<String>,
    /// The share of requests that leave a trace.
    pub sample_ratio: Option<f64>,
    /// Headers of the messages to the collector.
    pub headers: Option<Vec<String>>,
}

/// How log records look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RawLogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// One `[[models]]` entry.
#[derive(Debug, Default, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub struct RawModel {
    /// The name clients use.
    pub name: String,
    /// Where the files are.
    pub source: String,
    /// The name people see.
    pub display_name: Option<String>,
    /// Which tiers may use it.
    pub tiers: Option<RawTiers>,
    /// A shorter context than the model's own.
    pub context_window: Option<usize>,
    /// The size of its KV cache.
    pub kv_memory: Option<ByteSize>,
    /// The number format of its KV cache.
    pub kv_dtype: Option<RawKvDtype>,
    /// Where it computes.
    pub device: Option<String>,
    /// What its weights are quantised to while they load.
    pub quantize: Option<RawQuantize>,
}

/// `tiers = "all"` or a list of names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
#[serde(untagged, expecting = "`tiers` is \"all\" or a list of tier names such as [\"free\", \"premium\"]")]
pub enum RawTiers {
    /// Every tier, present and future.
    All(All),
    /// These tiers only; an empty list publishes the model to nobody.
    Listed(Vec<String>),
}

/// The word `all`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum All {
    /// Every tier.
    All,
}

impl RawKvDtype {
    /// The same as the loader wants it.
    #[must_use]
    pub fn choice(self) -> KvDtypeChoice {
        match self {
            Self::Auto => KvDtypeChoice::Auto,
            Self::F32 => KvDtypeChoice::F32,
            Self::Bf16 => KvDtypeChoice::Bf16,
            Self::Fp8 => KvDtypeChoice::Fp8,
        }
    }
}

/// What weights are quantised to while they load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RawQuantize {
    /// They stay as they are stored.
    None,
    /// Eight bits a weight.
    #[serde(rename = "q8_0")]
    Q8_0,
    /// Four bits a weight, six for embedding and output head.
    #[serde(rename = "q4_k")]
    Q4K,
}

impl RawQuantize {
    /// The same as the loader wants it.
    #[must_use]
    pub fn choice(self) -> Option<QuantizeTo> {
        match self {
            Self::None => None,
            Self::Q8_0 => Some(QuantizeTo::Q8_0),
            Self::Q4K => Some(QuantizeTo::Q4K),
        }
    }

    /// The same as the file has it.
    #[must_use]
    pub fn of(choice: Option<QuantizeTo>) -> Self {
        match choice {
            None => Self::None,
            Some(QuantizeTo::Q8_0) => Self::Q8_0,
            Some(QuantizeTo::Q4K) => Self::Q4K,
        }
    }
}

/// The number format of a KV cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum RawKvDtype {
    /// f32 for f32 models, else bf16.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits.
    Bf16,
    /// 8 bits, on a GPU only.
    Fp8,
}
