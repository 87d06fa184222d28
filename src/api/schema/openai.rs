//! Documents of OpenAI's endpoints.
#![expect(dead_code, reason = "the fields are read by the derived schemas alone")]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

/// A chat request. Fields that OpenAI knows and that are not here are ignored, or refused when they would change the answer.
#[derive(ToSchema)]
pub(crate) struct ChatRequest {
    /// Needed unless the address names it.
    #[schema(example = "demo")]
    model: Option<String>,
    #[schema(min_items = 1, max_items = 4096, example = json!([{"role": "user", "content": "Hello"}]))]
    messages: Vec<Message>,
    /// Log-probabilities of the chosen tokens.
    logprobs: Option<bool>,
    /// And of so many of the likeliest.
    #[schema(maximum = 20)]
    top_logprobs: Option<u8>,
    /// The most completion tokens a choice; without it, to the end of the context window.
    #[schema(minimum = 1, example = 32)]
    max_tokens: Option<u32>,
    /// The newer name of `max_tokens`.
    #[schema(minimum = 1)]
    max_completion_tokens: Option<u32>,
    #[serde(flatten)]
    generation: Generation,
}

/// One message of a conversation.
#[derive(ToSchema)]
pub(crate) struct Message {
    #[schema(inline)]
    role: Role,
    content: Content,
    name: Option<String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Role {
    System,
    Developer,
    User,
    Assistant,
}

/// A text, or text in parts.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Content {
    Text(String),
    Parts(Vec<TextPart>),
}

/// A part of a message.
#[derive(ToSchema)]
pub(crate) struct TextPart {
    #[schema(rename = "type", inline)]
    r#type: TextWord,
    text: String,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TextWord {
    Text,
}

/// A text completion request.
#[derive(ToSchema)]
pub(crate) struct CompletionRequest {
    /// Needed unless the address names it.
    #[schema(example = "demo")]
    model: Option<String>,
    prompt: Prompt,
    /// Whether the answer repeats the prompt.
    echo: Option<bool>,
    /// Log-probabilities of the chosen token and of so many of the likeliest.
    #[schema(maximum = 20)]
    logprobs: Option<u8>,
    /// The most completion tokens a choice; 16 when absent. 0 only with `echo`: the prompt comes back, with its log-probabilities
    /// if they are asked for.
    #[schema(minimum = 0, example = 32)]
    max_tokens: Option<u32>,
    /// The newer name of `max_tokens`.
    #[schema(minimum = 0)]
    max_completion_tokens: Option<u32>,
    #[serde(flatten)]
    generation: Generation,
}

/// A text, texts, token ids, or lists of token ids.
#[derive(ToSchema)]
#[serde(untagged)]
#[schema(example = "Once upon a time")]
pub(crate) enum Prompt {
    Text(String),
    Texts(Vec<String>),
    Tokens(Vec<u32>),
    ListsOfTokens(Vec<Vec<u32>>),
}

/// What chat and text completions share.
#[derive(ToSchema)]
pub(crate) struct Generation {
    /// Server-sent events instead of one document.
    stream: Option<bool>,
    stream_options: Option<StreamOptions>,
    /// Choices a prompt.
    #[schema(minimum = 1, maximum = 128)]
    n: Option<u32>,
    #[schema(minimum = 0, maximum = 2)]
    temperature: Option<f64>,
    #[schema(minimum = 0, maximum = 1)]
    top_p: Option<f64>,
    /// -1 and 0: off.
    #[schema(minimum = -1, maximum = 4_294_967_295_u64)]
    top_k: Option<i64>,
    #[schema(minimum = 0, maximum = 1)]
    min_p: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    presence_penalty: Option<f64>,
    #[schema(minimum = -2, maximum = 2)]
    frequency_penalty: Option<f64>,
    #[schema(minimum = 0.01, maximum = 10)]
    repetition_penalty: Option<f64>,
    /// From token ids to a number from -100 to 100.
    logit_bias: Option<BTreeMap<String, f64>>,
    seed: Option<i64>,
    stop: Option<Stop>,
    /// As vLLM takes it: no end before so many tokens.
    min_tokens: Option<u32>,
    /// As vLLM takes it: go on after the model's end-of-text token.
    ignore_eos: Option<bool>,
    /// Taken and ignored.
    user: Option<String>,
    /// Taken and ignored.
    metadata: Option<BTreeMap<String, Value>>,
}

/// How a stream is delivered.
#[derive(ToSchema)]
pub(crate) struct StreamOptions {
    /// A last chunk with `usage` before `[DONE]`.
    include_usage: Option<bool>,
}

/// One stop string, or several.
#[derive(ToSchema)]
#[serde(untagged)]
pub(crate) enum Stop {
    One(StopText),
    Several(Vec<StopText>),
}

/// Where an answer ends.
#[derive(ToSchema)]
#[schema(min_length = 1, max_length = 1024)]
pub(crate) struct StopText(String);

/// A chat answer.
#[derive(ToSchema)]
pub(crate) struct ChatCompletion {
    id: String,
    #[schema(inline)]
    object: ChatWord,
    created: i64,
    model: String,
    choices: Vec<ChatChoice>,
    usage: Usage,
    system_fingerprint: String,
    millgate: Option<Extension>,
}

#[derive(ToSchema, Serialize, Deserialize)]
enum ChatWord {
    #[serde(rename = "chat.completion")]
    ChatCompletion,
}

/// One answer of those asked for.
#[derive(ToSchema)]
pub(crate) struct ChatChoice {
    index: u32,
    message: AnswerMessage,
    #[schema(required)]
    logprobs: Option<ChatLogprobs>,
    #[schema(inline)]
    finish_reason: FinishReason,
}

/// The assistant's message.
#[derive(ToSchema)]
pub(crate) struct AnswerMessage {
    #[schema(example = "assistant")]
    role: String,
    content: String,
    #[schema(required)]
    refusal: Option<String>,
    annotations: Vec<Value>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum FinishReason {
    Stop,
    Length,
}

/// Log-probabilities in chat's form.
#[derive(ToSchema)]
pub(crate) struct ChatLogprobs {
    content: Vec<ChatToken>,
    #[schema(required)]
    refusal: Option<String>,
}

/// A chosen token with the most likely ones at its place.
#[derive(ToSchema)]
pub(crate) struct ChatToken {
    token: String,
    logprob: f64,
    bytes: Vec<u32>,
    top_logprobs: Vec<TokenScore>,
}

/// A token and how likely it was.
#[derive(ToSchema)]
pub(crate) struct TokenScore {
    token: String,
    logprob: f64,
    bytes: Vec<u32>,
}

/// Tokens that were charged.
#[derive(ToSchema)]
pub(crate) struct Usage {
    prompt_tokens: u64,
    completion_tokens: u64,
    total_tokens: u64,
    prompt_tokens_details: PromptTokensDetails,
}

/// What is known about the prompt tokens.
#[derive(ToSchema)]
pub(crate) struct PromptTokensDetails {
    cached_tokens: u64,
}

/// Ours: which limit ended a choice early.
#[derive(ToSchema)]
pub(crate) struct Extension {
    detail: BTreeMap<String, Value>,
}

/// A text completion.
#[derive(ToSchema)]
pub(crate) struct TextCompletion {
    id: String,
    #[schema(inline)]
    object: TextCompletionWord,
    created: i64,
    model: String,
    choices: Vec<TextChoice>,
    usage: Usage,
    system_fingerprint: String,
    millgate: Option<Extension>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TextCompletionWord {
    TextCompletion,
}

/// One completion of those asked for.
#[derive(ToSchema)]
pub(crate) struct TextChoice {
    text: String,
    index: u32,
    #[schema(required)]
    logprobs: Option<TextLogprobs>,
    #[schema(inline)]
    finish_reason: FinishReason,
}

/// Log-probabilities in the older form: parallel lists.
#[derive(ToSchema)]
pub(crate) struct TextLogprobs {
    tokens: Vec<String>,
    token_logprobs: Vec<Option<f64>>,
    top_logprobs: Vec<Option<BTreeMap<String, f64>>>,
    text_offset: Vec<u64>,
}

/// Models the caller may use.
#[derive(ToSchema)]
pub(crate) struct ModelCards {
    #[schema(inline)]
    object: super::shared::ListWord,
    data: Vec<ModelCard>,
}

/// A model the caller may use.
#[derive(ToSchema)]
pub(crate) struct ModelCard {
    id: String,
    #[schema(inline)]
    object: ModelWord,
    created: i64,
    owned_by: String,
    ready: bool,
    /// The model's own base URL.
    #[schema(required)]
    url: Option<String>,
    /// Tokens that fit; `null` while it is not loaded.
    #[schema(required)]
    context_window: Option<u64>,
    /// `chat`, `completions`.
    capabilities: Vec<String>,
}

#[derive(ToSchema, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum ModelWord {
    Model,
}
