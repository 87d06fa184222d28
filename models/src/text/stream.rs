//! Incremental detokenizing: text leaves as soon as its characters are complete, never half a character.

use super::Tokenizer;
use super::spelling::LeadingSpace;

/// Turns one choice's tokens into text piece by piece.
///
/// Joined, the pieces equal [`Tokenizer::decode`] of all tokens, however they are pushed.
#[derive(Debug, Clone)]
pub struct StreamDecoder {
    tokenizer: Tokenizer,
    /// Bytes that do not yet end at a character's end; at most three.
    pending: Vec<u8>,
    leading_space: LeadingSpace,
    skip_special: bool,
}

impl StreamDecoder {
    /// A decoder for a text of its own, as a chat answer is: a space the tokenizer put in front is dropped.
    pub fn new(tokenizer: &Tokenizer) -> Self {
        let leading_space = tokenizer.leading_space();
        Self { tokenizer: tokenizer.clone(), pending: Vec::new(), leading_space, skip_special: true }
    }

    /// A decoder for text that continues a prompt: a leading space is part of the text.
    pub fn continuing(tokenizer: &Tokenizer) -> Self {
        Self { leading_space: LeadingSpace::Keep, ..Self::new(tokenizer) }
    }

    /// The same decoder with the text of special tokens shown.
    #[must_use]
    pub fn showing_special_tokens(mut self) -> Self {
        self.skip_special = false;
        self
    }

    /// Takes one token and returns the text that is now certain, often empty.
    ///
    /// An id without a token adds nothing: a model's output rows may outnumber its vocabulary.
    pub fn push(&mut self, id: u32) -> String {
        if self.skip_special && self.tokenizer.is_special(id) {
            return String::new();
        }
        let Some(bytes) = self.tokenizer.token_bytes(id) else { return String::new() };
        match self.leading_space {
            LeadingSpace::Keep => self.pending.extend_from_slice(bytes),
            LeadingSpace::StripOne if bytes.is_empty() => {}
            LeadingSpace::StripOne => self.pending.extend_from_slice(bytes.strip_prefix(b" ").unwrap_or(bytes)),
            LeadingSpace::StripFirstToken => self.pending.extend(bytes.iter().filter(|&&byte| byte != b' ')),
        }
        if !bytes.is_empty() || self.leading_space == LeadingSpace::StripFirstToken {
            self.leading_space = LeadingSpace::Keep;
        }
        self.take_complete()
    }

    /// Ends the text: what is still held back is no character, so it becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        let rest = String::from_utf8_lossy(&self.pending).into_owned();
        self.pending.clear();
        rest
    }

    /// Moves everything up to the last certain character out of `pending`.
    fn take_complete(&mut self) -> String {
        let mut text = String::new();
        let mut done = 0;
        loop {
            let rest = &self.pending[done..];
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    self.pending.clear();
                    return text;
                }
                Err(error) => {
                    let valid = error.valid_up_to();
                    text.push_str(std::str::from_utf8(&rest[..valid]).expect("checked just above"));
                    done += valid;
                    // `None`: the end is a character cut short, which the next token may complete.
                    let Some(broken) = error.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    done += broken;
                }
            }
        }
        self.pending.drain(..done);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::GgufTokenizer;
    use crate::text::spelling::fallback_name;
    use proptest::prelude::*;

    const SPECIAL: u32 = 256;
    const SPACED: u32 = 257;
    const PLAIN: u32 = 258;

    /// 256 byte tokens, a special one, `▁a` and `b`.
    fn sentence_piece() -> Tokenizer {
        let mut tokens: Vec<String> = (0..=255u8).map(fallback_name).collect();
        tokens.extend(["</s>", "▁a", "b"].map(str::to_owned));
        let mut token_types = vec![6; 256];
        token_types.extend([3, 1, 1]);
        let scores = vec![0.0; tokens.len()];
        let metadata = GgufTokenizer { kind: "llama".into(), tokens, scores, token_types, ..GgufTokenizer::default() };
        Tokenizer::from_gguf(&metadata).unwrap()
    }

    fn run(mut decoder: StreamDecoder, ids: &[u32]) -> (Vec<String>, String) {
        let pieces: Vec<String> = ids.iter().map(|&id| decoder.push(id)).collect();
        (pieces, decoder.finish())
    }

    #[test]
    fn a_character_leaves_with_its_last_byte() {
        let ids = [0xf0, 0x9f, 0x91, 0x8d, 0xc3, 0xa9];
        let (pieces, rest) = run(StreamDecoder::new(&sentence_piece()), &ids);
        assert_eq!(pieces, ["", "", "", "👍", "", "é"]);
        assert_eq!(rest, "");
    }

    #[test]
    fn bytes_that_are_no_character_become_a_replacement_as_soon_as_that_is_certain() {
        let (pieces, rest) = run(StreamDecoder::new(&sentence_piece()), &[0xff, 0xe6, 0xbc, PLAIN, 0xe6]);
        assert_eq!(pieces, ["\u{fffd}", "", "", "\u{fffd}b", ""]);
        assert_eq!(rest, "\u{fffd}");
    }

    #[test]
    fn only_the_first_space_of_an_answer_goes_even_behind_special_tokens() {
        let tokenizer = sentence_piece();
        let ids = [SPECIAL, SPACED, SPACED, SPECIAL, PLAIN];
        assert_eq!(run(StreamDecoder::new(&tokenizer), &ids).0.concat(), "a ab");
        assert_eq!(run(StreamDecoder::continuing(&tokenizer), &ids).0.concat(), " a ab");
        let shown = StreamDecoder::new(&tokenizer).showing_special_tokens();
        assert_eq!(run(shown, &ids).0.concat(), "</s> a a</s>b");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn whatever_the_tokens_the_pieces_are_whole_characters_and_join_to_the_decoded_text(
            ids in prop::collection::vec(prop_oneof![0..260u32, 0xc0..0xf8u32, 0x80..0xc0u32], 0..40),
        ) {
            let tokenizer = sentence_piece();
            let (pieces, rest) = run(StreamDecoder::continuing(&tokenizer), &ids);
            let bytes: Vec<u8> = ids.iter().filter(|&&id| id != SPECIAL)
                .flat_map(|&id| tokenizer.token_bytes(id).unwrap_or_default().to_vec()).collect();
            prop_assert_eq!(pieces.concat() + &rest, String::from_utf8_lossy(&bytes).into_owned());
            // Nothing that is certain is held back.
            let mut so_far = Vec::new();
            let mut shown = String::new();
            for (&id, piece) in ids.iter().zip(&pieces) {
                if id != SPECIAL {
                    so_far.extend_from_slice(tokenizer.token_bytes(id).unwrap_or_default());
                }
                shown.push_str(piece);
                let held = so_far.len() - certain(&so_far);
                prop_assert!(held <= 3);
                let sure = String::from_utf8_lossy(&so_far[..so_far.len() - held]).into_owned();
                prop_assert_eq!(&shown, &sure);
            }
        }
    }

    /// Where the last character ends that no further byte can change.
    fn certain(bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Err(error) = std::str::from_utf8(&bytes[done..]) {
            done += error.valid_up_to();
            let Some(broken) = error.error_len() else { return done };
            done += broken;
        }
        bytes.len()
    }
}
