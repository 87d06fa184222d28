//! The documents OpenAI's endpoints answer with, field for field and in OpenAI's order.
use serde::Serialize;

use crate::governance;

/// Token counts of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Usage {
    pub(crate) prompt_tokens: u64,
    pub(crate) completion_tokens: u64,
    pub(crate) total_tokens: u64,
    pub(crate) prompt_tokens_details: PromptTokensDetails,
}

/// What is known about the prompt tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PromptTokensDetails {
    pub(crate) cached_tokens: u64,
}

impl Usage {
    pub(crate) fn new(prompt_tokens: u64, cached_tokens: u64, completion_tokens: u64) -> Self {
        let total_tokens = prompt_tokens + completion_tokens;
        let prompt_tokens_details = PromptTokensDetails { cached_tokens };
        Self { prompt_tokens, completion_tokens, total_tokens, prompt_tokens_details }
    }

    /// The same figures as governance counts them: taken from what is written, not from where that came from.
    pub(crate) fn told(&self) -> governance::Usage {
        governance::Usage {
            prompt_tokens: self.prompt_tokens,
            cached_tokens: self.prompt_tokens_details.cached_tokens,
            completion_tokens: self.completion_tokens,
        }
    }
}

/// Ours, beside OpenAI's fields: why a choice ended early.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Extension {
    pub(crate) detail: serde_json::Value,
}

/// What all chunks of a stream share.
#[derive(Clone, Debug)]
pub(crate) struct Preamble {
    pub(crate) id: String,
    pub(crate) created: i64,
    pub(crate) model: String,
    pub(crate) system_fingerprint: String,
}

/// `usage` of a chunk: absent unless asked for, then `null` in every chunk but the last.
#[derive(Clone, Copy, Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum ChunkUsage {
    Pending(()),
    Known(Usage),
}

/// A document of either endpoint: `C` is its kind of choice.
#[derive(Debug, Serialize)]
pub(crate) struct Document<'a, C> {
    pub(crate) id: &'a str,
    pub(crate) object: &'static str,
    pub(crate) created: i64,
    pub(crate) model: &'a str,
    pub(crate) choices: Vec<C>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) usage: Option<ChunkUsage>,
    pub(crate) system_fingerprint: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) millgate: Option<Extension>,
}

impl Preamble {
    /// A document with these choices.
    pub(crate) fn document<C>(&self, object: &'static str, choices: Vec<C>) -> Document<'_, C> {
        Document {
            id: &self.id,
            object,
            created: self.created,
            model: &self.model,
            choices,
            usage: None,
            system_fingerprint: &self.system_fingerprint,
            millgate: None,
        }
    }
}

/// One choice of a whole chat answer.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChoice {
    pub(crate) index: u32,
    pub(crate) message: AnswerMessage,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: &'static str,
}

/// The assistant's message.
#[derive(Debug, Serialize)]
pub(crate) struct AnswerMessage {
    pub(crate) role: &'static str,
    pub(crate) content: String,
    pub(crate) refusal: Option<()>,
    pub(crate) annotations: [(); 0],
}

/// One choice of a chat chunk.
#[derive(Debug, Serialize)]
pub(crate) struct ChatChunkChoice {
    pub(crate) index: u32,
    pub(crate) delta: Delta,
    pub(crate) logprobs: Option<ChatLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
}

/// What a chunk adds to the message.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Delta {
    /// The first chunk of a choice.
    Role { role: &'static str, content: &'static str, refusal: Option<()> },
    /// Text.
    Content { content: String },
    /// The last chunk of a choice.
    Nothing {},
}

/// Log-probabilities in chat's form.
#[derive(Debug, Default, Serialize)]
pub(crate) struct ChatLogprobs {
    pub(crate) content: Vec<ChatToken>,
    pub(crate) refusal: Option<()>,
}

/// A chosen token with the most likely ones at its place.
#[derive(Debug, Serialize)]
pub(crate) struct ChatToken {
    #[serde(flatten)]
    pub(crate) chosen: TokenScore,
    pub(crate) top_logprobs: Vec<TokenScore>,
}

/// A token and how likely it was.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct TokenScore {
    pub(crate) token: String,
    pub(crate) logprob: f32,
    pub(crate) bytes: Vec<u8>,
}

/// One choice of a text completion, whole or as a chunk.
#[derive(Debug, Serialize)]
pub(crate) struct TextChoice {
    pub(crate) text: String,
    pub(crate) index: u32,
    pub(crate) logprobs: Option<TextLogprobs>,
    pub(crate) finish_reason: Option<&'static str>,
}

/// Log-probabilities in the older form: parallel lists.
#[derive(Debug, Default, Serialize)]
pub(crate) struct TextLogprobs {
    pub(crate) tokens: Vec<String>,
    pub(crate) token_logprobs: Vec<Option<f32>>,
    pub(crate) top_logprobs: Vec<Option<serde_json::Map<String, serde_json::Value>>>,
    pub(crate) text_offset: Vec<usize>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use insta::assert_snapshot;

    fn preamble() -> Preamble {
        Preamble { id: "chatcmpl-1".into(), created: 7, model: "demo".into(), system_fingerprint: "fp_1".into() }
    }

    fn json(document: &impl Serialize) -> String {
        serde_json::to_string(document).unwrap()
    }

    #[test]
    fn chat_chunks_are_openais_to_the_byte() {
        let chunk = |delta, finish_reason| {
            let choice = ChatChunkChoice { index: 0, delta, logprobs: None, finish_reason };
            json(&preamble().document("chat.completion.chunk", vec![choice]))
        };
        assert_snapshot!(chunk(Delta::Role { role: "assistant", content: "", refusal: None }, None), @r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"demo","choices":[{"index":0,"delta":{"role":"assistant","content":"","refusal":null},"logprobs":null,"finish_reason":null}],"system_fingerprint":"fp_1"}"#);
        assert_snapshot!(chunk(Delta::Content { content: "hi".into() }, None), @r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"demo","choices":[{"index":0,"delta":{"content":"hi"},"logprobs":null,"finish_reason":null}],"system_fingerprint":"fp_1"}"#);
        assert_snapshot!(chunk(Delta::Nothing {}, Some("stop")), @r#"{"id":"chatcmpl-1","object":"chat.completion.chunk","created":7,"model":"demo","choices":[{"index":0,"delta":{},"logprobs":null,"finish_reason":"stop"}],"system_fingerprint":"fp_1"}"#);
    }

    #[test]
    fn usage_is_null_until_it_is_known() {
        let preamble = preamble();
        let mut chunk = preamble.document("chat.completion.chunk", Vec::<ChatChunkChoice>::new());
        chunk.usage = Some(ChunkUsage::Pending(()));
        assert!(json(&chunk).contains(r#""usage":null"#));
        chunk.usage = Some(ChunkUsage::Known(Usage::new(3, 1, 4)));
        assert!(json(&chunk).contains(
            r#""choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7,"prompt_tokens_details":{"cached_tokens":1}}"#
        ));
    }
}
