//! One model's tokenizer: text to token ids and back.

use std::fmt;
use std::sync::Arc;

use super::error::shortened;
use super::gguf::{self, GgufTokenizer};
use super::pieces::Pieces;
use super::spelling::{LeadingSpace, Spelling};
use super::wrapping::Wrapping;
use super::{StreamDecoder, TextError, json_check};

/// A tokenizer; cheap to clone and to share between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: Arc<Inner>,
}

struct Inner {
    pipeline: tokenizers::Tokenizer,
    pieces: Pieces,
    leading_space: LeadingSpace,
    wrapping: Wrapping,
    max_token_bytes: usize,
}

/// The parts a tokenizer is put together from, whatever file they came from.
pub(super) struct Parts {
    pub(super) pipeline: tokenizers::Tokenizer,
    pub(super) pieces: Pieces,
    pub(super) leading_space: LeadingSpace,
    pub(super) wrapping: Wrapping,
    /// Bytes of text per byte of token, at most; `None` when unbounded.
    pub(super) text_per_piece: Option<usize>,
}

impl Tokenizer {
    /// Reads a tokenizer.json.
    ///
    /// # Errors
    /// [`TextError::Json`] for a file that is broken, [`TextError::Unsupported`] for a kind this server does not know.
    pub fn from_json(bytes: &[u8]) -> Result<Self, TextError> {
        let checked = json_check::check(bytes)?;
        let spelling = Spelling::from_decoder(&checked.decoder)?;
        let wrapping = Wrapping::from_post_processor(&checked.post_processor)?;
        let mut pipeline = tokenizers::Tokenizer::from_bytes(bytes).map_err(json_problem)?;
        // A training-time setting that would silently cut prompts.
        pipeline.with_truncation(None).map_err(json_problem)?;
        pipeline.with_padding(None);
        pipeline.with_post_processor(None::<tokenizers::PostProcessorWrapper>);
        let pieces = pieces_of(&pipeline, &spelling)?;
        Ok(Self::assemble(Parts {
            pipeline,
            pieces,
            leading_space: spelling.leading_space,
            wrapping,
            text_per_piece: checked.text_per_piece,
        }))
    }

    /// Builds the tokenizer that a GGUF file carries in its metadata.
    ///
    /// # Errors
    /// [`TextError::Unsupported`] names an unknown `tokenizer.ggml.model` or `tokenizer.ggml.pre`;
    /// [`TextError::Gguf`] says which arrays contradict each other.
    pub fn from_gguf(metadata: &GgufTokenizer) -> Result<Self, TextError> {
        gguf::build(metadata).map(Self::assemble)
    }

    fn assemble(parts: Parts) -> Self {
        let longest = parts.pieces.longest();
        let max_token_bytes = parts.text_per_piece.map_or(usize::MAX, |factor| longest.saturating_mul(factor));
        let Parts { pipeline, pieces, leading_space, wrapping, .. } = parts;
        Self { inner: Arc::new(Inner { pipeline, pieces, leading_space, wrapping, max_token_bytes }) }
    }

    /// The same tokenizer with something else around raw prompts.
    pub(super) fn wrapped(mut self, wrapping: Wrapping) -> Self {
        let inner = Arc::get_mut(&mut self.inner).expect("a tokenizer is wrapped before it is shared");
        inner.wrapping = wrapping;
        self
    }

    /// Token ids of a raw prompt, with what the model's post-processor adds (usually the begin token).
    ///
    /// # Errors
    /// [`TextError::Encode`] when the tokenizer refuses the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let Wrapping { before, after } = &self.inner.wrapping;
        Ok([before.as_slice(), &self.encode_rendered(text)?, after.as_slice()].concat())
    }

    /// Token ids of a rendered chat template: special tokens in the text are recognised, none are added.
    ///
    /// # Errors
    /// As [`Self::encode`].
    pub fn encode_rendered(&self, text: &str) -> Result<Vec<u32>, TextError> {
        let encoding = self.inner.pipeline.encode_fast(text, false);
        let encoding = encoding.map_err(|error| TextError::Encode { problem: shortened(&error) })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The exact bytes a token stands for, with byte-level and byte-fallback spelling resolved; a special token's
    /// are its text. `None` for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        self.inner.pieces.bytes(id)
    }

    /// Whether `id` is a control token that decoded text leaves out.
    pub fn is_special(&self, id: u32) -> bool {
        self.inner.pieces.is_special(id)
    }

    /// The text of `ids`; bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> String {
        let decoder = StreamDecoder::new(self);
        let mut decoder = if skip_special { decoder } else { decoder.showing_special_tokens() };
        let mut text = String::new();
        for &id in ids {
            text.push_str(&decoder.push(id));
        }
        text.push_str(&decoder.finish());
        text
    }

    /// One past the largest token id. A model's output may be wider (padding rows).
    pub fn vocab_size(&self) -> usize {
        self.inner.pieces.len()
    }

    /// The id of a token given by its exact spelling in the vocabulary, for example `<|im_end|>`.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.pipeline.token_to_id(token)
    }

    /// The most bytes of prompt text that one token can stand for: a prompt of more than this times the context
    /// cannot fit. `usize::MAX` where a token may swallow any amount of text.
    pub fn max_token_bytes(&self) -> usize {
        self.inner.max_token_bytes
    }

    /// What happens to a space at the beginning of a decoded text.
    pub(super) fn leading_space(&self) -> LeadingSpace {
        self.inner.leading_space
    }
}

impl fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}

fn pieces_of(pipeline: &tokenizers::Tokenizer, spelling: &Spelling) -> Result<Pieces, TextError> {
    let added = pipeline.get_added_tokens_decoder();
    let largest = pipeline.get_vocab(true).into_values().max();
    let mut pieces = Pieces::builder();
    for id in 0..=largest.unwrap_or(0) {
        if let Some(token) = added.get(&id) {
            pieces.push(token.special, |out| spelling.append_added(&token.content, out))?;
        } else if let Some(token) = pipeline.id_to_token(id) {
            pieces.push(false, |out| spelling.append_token(&token, out))?;
        } else {
            pieces.skip()?;
        }
    }
    Ok(pieces.build())
}

fn json_problem(error: tokenizers::Error) -> TextError {
    TextError::in_json(shortened(&error))
}
