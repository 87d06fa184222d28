//! Log-probabilities in the two forms OpenAI's endpoints show them.
use serde_json::{Map, Value};

use super::wire::{ChatLogprobs, ChatToken, TextLogprobs, TokenScore};
use crate::engine::TokenLogprob;

/// What stands for minus infinity, which JSON cannot say; OpenAI uses the same number.
const IMPOSSIBLE: f32 = -9999.0;

fn finite(logprob: f32) -> f32 {
    if logprob.is_finite() { logprob } else { IMPOSSIBLE }
}

fn score(bytes: &[u8], logprob: f32) -> TokenScore {
    TokenScore { token: lossy(bytes), logprob: finite(logprob), bytes: bytes.to_vec() }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Chat's form.
pub(crate) fn chat_logprobs(tokens: &[TokenLogprob]) -> ChatLogprobs {
    let content = tokens.iter().map(|token| ChatToken {
        chosen: score(&token.bytes, token.logprob),
        top_logprobs: token.top.iter().map(|(_, bytes, logprob)| score(bytes, *logprob)).collect(),
    });
    ChatLogprobs { content: content.collect(), refusal: None }
}

/// The older form, built up token by token because offsets run through the whole text of a choice.
#[derive(Debug, Default)]
pub(crate) struct TextScores {
    offset: usize,
}

impl TextScores {
    /// The next tokens; `None` is the first token of a prompt, which follows nothing.
    pub(crate) fn next<'a>(&mut self, tokens: impl IntoIterator<Item = Scored<'a>>) -> TextLogprobs {
        let mut lists = TextLogprobs::default();
        for token in tokens {
            let (text, logprob, top) = match token {
                Scored::Known(token) => (lossy(&token.bytes), Some(finite(token.logprob)), Some(top_map(token))),
                Scored::First(text) => (text, None, None),
            };
            lists.text_offset.push(self.offset);
            // OpenAI counts characters, not bytes.
            self.offset += text.chars().count();
            lists.tokens.push(text);
            lists.token_logprobs.push(logprob);
            lists.top_logprobs.push(top);
        }
        lists
    }

    /// Moves on over text whose tokens have no log-probabilities.
    pub(crate) fn skip(&mut self, text: &str) {
        self.offset += text.chars().count();
    }
}

/// A token of the older form.
pub(crate) enum Scored<'a> {
    Known(&'a TokenLogprob),
    First(String),
}

fn top_map(token: &TokenLogprob) -> Map<String, Value> {
    let mut map = Map::new();
    for (_, bytes, logprob) in &token.top {
        // Two tokens may read the same; the likelier one comes first and stays.
        map.entry(lossy(bytes)).or_insert_with(|| finite(*logprob).into());
    }
    map
}

/// Joins lists of one choice.
pub(crate) fn append(all: &mut TextLogprobs, more: TextLogprobs) {
    all.tokens.extend(more.tokens);
    all.token_logprobs.extend(more.token_logprobs);
    all.top_logprobs.extend(more.top_logprobs);
    all.text_offset.extend(more.text_offset);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(text: &str, logprob: f32) -> TokenLogprob {
        TokenLogprob { token: 1, bytes: text.into(), logprob, top: vec![(1, text.into(), logprob)] }
    }

    #[test]
    fn offsets_count_characters_over_all_chunks_of_a_choice() {
        let (first, second) = (token("é", -0.5), token("bc", f32::NEG_INFINITY));
        let mut scores = TextScores::default();
        let before = scores.next([Scored::First("ab".into()), Scored::Known(&first)]);
        let after = scores.next([Scored::Known(&second)]);
        assert_eq!(before.text_offset, [0, 2]);
        assert_eq!(before.token_logprobs, [None, Some(-0.5)]);
        assert_eq!((after.text_offset, after.token_logprobs), (vec![3], vec![Some(IMPOSSIBLE)]));
    }

    #[test]
    fn chat_shows_exact_bytes_beside_the_text() {
        let half = TokenLogprob { token: 1, bytes: vec![0xe2, 0x82], logprob: -1.0, top: Vec::new() };
        let shown = chat_logprobs(&[half]);
        assert_eq!(shown.content[0].chosen.token, "\u{fffd}");
        assert_eq!(shown.content[0].chosen.bytes, [0xe2, 0x82]);
    }
}
