//! Documents about models, as administrators write and see them.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::shared::Words;

/// A model as administrators see it.
#[derive(ToSchema)]
#[schema(as = AdminModel)]
pub(crate) struct Model {
    #[schema(inline)]
    object: ModelWord,
    name: String,
    #[schema(required)]
    display_name: Option<String>,
    source: String,
    /// Whether any tier may use it.
    published: bool,
    tiers: Tiers,
    /// What it is to be computed on; whatever there is when null.
    #[schema(required)]
    hardware: Option<String>,
    env: ModelEnv,
    /// `api` for a model that was created here, else where it is configured.
    origin: String,
    #[schema(inline)]
    status: ModelStatus,
    /// What is being done, or why it does not answer; null when it is ready, and when the status is `unknown`, as it is
    /// for a model of an earlier configuration.
    #[schema(required)]
    phase: Option<ModelPhase>,
    /// Why it failed.
    #[schema(required)]
    reason: Option<String>,
    /// Of the file that is downloaded or the weights that are read, 0 to 1.
    #[schema(required)]
    progress: Option<f32>,
    /// True when source, settings or hardware changed since it was loaded.
    reload_required: bool,
    /// Null until it is loaded.
    #[schema(required)]
    context_window: Option<u64>,
    #[schema(format = DateTime)]
    created_at: String,
}

/// A model that was deleted, as it was before.
#[derive(ToSchema)]
pub(crate) struct DeletedModel {
    #[serde(flatten)]
    model: Model,
    deleted: bool,
}

/// A model to create.
#[derive(ToSchema)]
pub(crate) struct NewModel {
    /// Letters, digits, `-`, `_` and `.`, starting with a letter or digit.
    #[schema(example = "qwen", min_length = 1, max_length = 128)]
    name: String,
    /// `hf:org/name[@revision]`, `builtin:demo`, or an absolute path below a folder that the configuration opens.
    #[schema(example = "builtin:demo", min_length = 1)]
    source: String,
    /// The name when absent.
    display_name: Option<Words>,
    /// True: to all tiers. Without it and without `tiers` nobody may use it.
    published: Option<bool>,
    tiers: Option<Tiers>,
    hardware: Option<Hardware>,
    env: Option<ModelEnv>,
}

/// Fields of a model to change. The first three act on the next request, the others with the next load.
#[derive(ToSchema)]
pub(crate) struct ModelChange {
    display_name: Option<Words>,
    /// False: to no tier; true: to all, if it was published to none.
    published: Option<bool>,
    tiers: Option<Tiers>,
    #[schema(min_length = 1)]
    source: Option<String>,
    hardware: Option<Hardware>,
    env: Option<ModelEnv>,
}

/// A model's own settings.
#[derive(ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct ModelEnv {
    /// The longest prompt plus answer in tokens, at most the model's own.
    #[schema(minimum = 1)]
    context_window: Option<u64>,
    /// The size of its KV cache, such as `2GiB`.
    kv_memory: Option<KvMemory>,
    /// The number format of its KV cache: `auto`, `f32`, `bf16`, or on a GPU `fp8`.
    kv_dtype: Option<KvDtype>,
    /// What its weights are quantised to while they load: `none`, `q8_0` or `q4_k`.
    quantize: Option<Quantize>,
}

/// An amount of memory: a text with a unit, or bytes.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum KvMemory {
    Text(MemoryText),
    Bytes(u64),
}

/// A number and a unit.
#[derive(ToSchema)]
#[schema(pattern = "^[0-9]+([.][0-9]+)? *([bB]|[kKmMgG]([iI]?[bB])?|[tT]([iI][bB])?)?$", example = "2GiB")]
pub(crate) struct MemoryText(String);

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum KvDtype {
    Auto,
    F32,
    Bf16,
    Fp8,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Quantize {
    None,
    #[serde(rename = "q8_0")]
    Q8_0,
    #[serde(rename = "q4_k")]
    Q4K,
}

/// Where a model computes: `auto`, `cpu` or `cuda:N`, one GPU.
#[derive(ToSchema, Serialize, Deserialize)]
#[schema(example = "auto", pattern = "^(auto|cpu|cuda(:[0-9]+)?)$")]
pub(crate) struct Hardware(String);

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum ModelPhase {
    Waiting,
    Download,
    Open,
    Load,
    Cancelling,
    Draining,
    Unloaded,
    Failed,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ModelWord {
    Model,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ModelStatus {
    Ready,
    NotReady,
    Unknown,
}

/// `"all"`, or the names of tiers.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Tiers {
    All(AllWord),
    Some(Vec<String>),
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum AllWord {
    All,
}
