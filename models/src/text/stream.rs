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
