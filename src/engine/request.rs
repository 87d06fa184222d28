//! The engine's whole public vocabulary: what can be asked of it and what it answers.

use uuid::Uuid;

/// Name of one request, chosen by the caller and carried into every log line about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub Uuid);

/// Whom a request counts for when the engine shares its time; the engine knows no more about users than this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct FlowId(pub u64);

/// Secret of a tenant that separates its part of the prefix cache from everybody else's.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct CacheSalt(pub [u8; 16]);

impl std::fmt::Debug for CacheSalt {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Who knows a salt can probe its owner's cache, so it stays out of logs.
        formatter.write_str("CacheSalt(..)")
    }
}

/// How the tokens of one request are drawn from the model's logits.
///
/// Applied in this order: repetition, presence and frequency penalties; `logit_bias`; temperature; `top_k`; `top_p`;
/// `min_p`.
#[derive(Debug, Clone, PartialEq)]
pub struct SamplingParams {
    /// Divides the logits; 0 takes the likeliest token always.
    pub temperature: f32,
    /// Keeps only this many of the likeliest tokens; 0 = off.
    pub top_k: u32,
    /// Keeps the smallest set of likeliest tokens whose probabilities reach this sum; 1 = off.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the likeliest one; 0 = off.
    pub min_p: f32,
    /// Subtracted from the logit of every token that the completion already holds.
    pub presence_penalty: f32,
    /// Subtracted from a token's logit once for each time that the completion already holds it.
    pub frequency_penalty: f32,
    /// Divides positive and multiplies negative logits of tokens in the prompt or the completion; 1 = off.
    pub repetition_penalty: f32,
    /// Added to the logits of single tokens. Of several entries for one token all count.
    pub logit_bias: Vec<(u32, f32)>,
    /// Start of the random numbers: the same request with the same seed draws the same tokens.
    pub seed: u64,
    /// Report log probabilities with this many alternatives a token; 0 = of the chosen token only.
    pub logprobs: Option<u8>,
}

impl Default for SamplingParams {
    /// The model's own distribution: temperature 1 and nothing cut off.
    fn default() -> Self {
        Self {
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            repetition_penalty: 1.0,
            logit_bias: Vec::new(),
            seed: 0,
            logprobs: None,
        }
    }
}

/// One prompt and how to continue it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Name for logs.
    pub id: RequestId,
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// How tokens are drawn.
    pub sampling: SamplingParams,
    /// Number of independent continuations, at least one; the prompt is computed once for all.
    pub choices: u32,
    /// Most completion tokens of a choice; the engine caps it to what the context window leaves.
    pub max_tokens: u32,
    /// No end token and no stop string ends a choice before it has this many tokens.
    pub min_tokens: u32,
    /// Treat the model's end tokens as ordinary ones.
    pub ignore_eos: bool,
    /// Texts that end a choice; they are not part of its text.
    pub stop: Vec<String>,
    /// Whether the completion continues the prompt's own text, as a raw completion does and a chat answer does not: a
    /// space at its beginning is then part of the text, whatever the tokenizer.
    pub continues_text: bool,
    /// Report the prompt's own log probabilities with this many alternatives a token; such a request skips the
    /// prefix cache.
    pub prompt_logprobs: Option<u8>,
    /// Completion tokens that may be sampled now, shared by the choices; [`EventStream::grant`] adds to it.
    ///
    /// [`EventStream::grant`]: super::EventStream::grant
    pub allowance: u32,
    /// Whom the work counts for.
    pub flow: FlowId,
    /// Share of the flow among flows of the same priority, in tokens really used.
    pub weight: u32,
    /// Higher goes first; a lower one that has had no turn for long gets one.
    pub priority: u8,
    /// Separates this tenant's cached prefixes from other tenants'.
    pub cache_salt: CacheSalt,
}

/// What happens to a request, in order. Exactly one terminal event, [`Event::Done`] or [`Event::Failed`], ends it.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The prompt is computed and the first token follows.
    Started {
        /// Tokens of the prompt.
        prompt_tokens: u32,
        /// How many of them were found in the prefix cache.
        cached_tokens: u32,
    },
    /// Log probability of each prompt token given those before it; the first has none.
    PromptLogprobs(Vec<Option<TokenLogprob>>),
    /// More text of a choice: never half a character, never part of a stop string. A reader that falls behind gets
    /// the text of several tokens at once.
    Text {
        /// Index of the choice, from 0.
        choice: u32,
        /// The new text; may be empty when there are log probabilities to report.
        text: String,
        /// Log probabilities of the new tokens, when asked for.
        logprobs: Vec<TokenLogprob>,
    },
    /// A choice is complete.
    ChoiceDone {
        /// Index of the choice, from 0.
        choice: u32,
        /// Why it ended.
        reason: FinishReason,
    },
    /// The allowance will soon be used up; sent at most once for each grant.
    AllowanceLow {
        /// Completion tokens that may still be sampled, by all choices together.
        remaining: u32,
    },
    /// The allowance is used up and the request stands still until a grant, an end or the park timeout.
    Parked,
    /// Terminal: every choice is complete.
    Done(TokenUsage),
    /// Terminal: the request ended early.
    Failed(Failure, TokenUsage),
}

impl Event {
    /// Whether this is the last event of its request.
    pub fn is_terminal(&self) -> bool {
        matches!(self, Self::Done(_) | Self::Failed(..))
    }
}

/// Why a choice ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinishReason {
    /// An end token of the model or a stop string.
    Stop,
    /// `max_tokens` or the end of the context window.
    Length,
    /// No more allowance: ended by the caller, or parked too long.
    Allowance,
}

/// Why a request ended without completing its choices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The caller cancelled it or went away.
    Cancelled,
    /// The engine was told to stop.
    Shutdown,
    /// It waited longer than `queue_timeout` without being started.
    Deadline,
    /// Our own fault; the log has a line with this reference.
    Internal(Uuid),
}

/// A token with its log probability and the likeliest alternatives.
///
/// Values are of the model's own distribution (log-softmax of the raw logits), before temperature, penalties and bias,
/// as the OpenAI API reports them.
#[derive(Debug, Clone, PartialEq)]
pub struct TokenLogprob {
    /// Token id.
    pub token: u32,
    /// The exact bytes it stands for; may be half a character.
    pub bytes: Vec<u8>,
    /// Natural logarithm of its probability.
    pub logprob: f32,
    /// The likeliest tokens with their bytes, likeliest first, as many as asked for.
    pub top: Vec<(u32, Vec<u8>, f32)>,
}

/// What a request has cost so far, exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TokenUsage {
    /// Prompt tokens really computed or found in the cache; all of them once the request has started.
    pub prompt_tokens: u32,
    /// Prompt tokens found in the prefix cache.
    pub cached_tokens: u32,
    /// Tokens appended to the choices, all together: end tokens and tokens held back by a stop string included,
    /// recomputed ones not.
    pub completion_tokens: u32,
}
