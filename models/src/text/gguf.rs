//! The tokenizer inside a GGUF file, rebuilt from its metadata arrays.

use std::collections::HashSet;

use tokenizers::models::bpe::{BPE, Vocab};
use tokenizers::normalizers::{NormalizerWrapper, Prepend, Replace, Sequence};
use tokenizers::{AddedToken, Tokenizer as Pipeline};

use super::TextError;
use super::error::shortened;
use super::gguf_pre::Pre;
use super::pieces::{MAX_TOKEN_IDS, Pieces};
use super::spelling::{LeadingSpace, Spelling, fallback_name};
use super::tokenizer::Parts;
use super::wrapping::Wrapping;

/// The `tokenizer.*` metadata of a GGUF file, as plain values.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct GgufTokenizer {
    /// `tokenizer.ggml.model`: `gpt2` or `llama`.
    pub kind: String,
    /// `tokenizer.ggml.pre`: how text is cut before byte-level merging; absent means `default`.
    pub pre: Option<String>,
    /// `tokenizer.ggml.tokens`, in the order of their ids.
    pub tokens: Vec<String>,
    /// `tokenizer.ggml.scores`; needed for `llama`, else may be empty.
    pub scores: Vec<f32>,
    /// `tokenizer.ggml.token_type`; empty means that all are ordinary.
    pub token_types: Vec<i32>,
    /// `tokenizer.ggml.merges`, each two pieces with a space between; needed for `gpt2`.
    pub merges: Vec<String>,
    /// `tokenizer.ggml.bos_token_id`.
    pub bos_token_id: Option<u32>,
    /// `tokenizer.ggml.eos_token_id`.
    pub eos_token_id: Option<u32>,
    /// `tokenizer.ggml.eot_token_id`: the end of a turn where it differs from the end of the text.
    pub eot_token_id: Option<u32>,
    /// `tokenizer.ggml.eom_token_id`: the end of a message that calls a tool.
    pub eom_token_id: Option<u32>,
    /// `tokenizer.ggml.unknown_token_id`.
    pub unknown_token_id: Option<u32>,
    /// `tokenizer.ggml.add_bos_token`.
    pub add_bos: Option<bool>,
    /// `tokenizer.ggml.add_eos_token`.
    pub add_eos: Option<bool>,
    /// `tokenizer.ggml.add_space_prefix`.
    pub add_space_prefix: Option<bool>,
    /// `tokenizer.chat_template`.
    pub chat_template: Option<String>,
}

/// The largest number of characters of a token for which merges are derived; real ones have at most 48.
const MAX_MERGED_CHARS: usize = 256;

/// A token's kind in `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum TokenType {
    Normal,
    Unknown,
    Control,
    UserDefined,
    Byte,
}

impl GgufTokenizer {
    /// The token of `id`.
    pub(super) fn token(&self, id: Option<u32>) -> Option<&str> {
        self.tokens.get(id? as usize).map(String::as_str)
    }

    /// The kind of the token `id`; unused ones count as ordinary.
    pub(super) fn token_type(&self, id: usize) -> TokenType {
        match self.token_types.get(id) {
            Some(2) => TokenType::Unknown,
            Some(3) => TokenType::Control,
            Some(4) => TokenType::UserDefined,
            Some(6) => TokenType::Byte,
            _ => TokenType::Normal,
        }
    }

    fn check(&self) -> Result<(), TextError> {
        let tokens = self.tokens.len();
        if tokens == 0 {
            return Err(problem("there are no tokens".to_owned()));
        }
        if tokens > MAX_TOKEN_IDS {
            return Err(problem(format!("{tokens} tokens are more than the {MAX_TOKEN_IDS} accepted")));
        }
        for (name, length) in [("scores", self.scores.len()), ("token_type", self.token_types.len())] {
            if length != 0 && length != tokens {
                return Err(problem(format!("{tokens} tokens but {length} entries in `{name}`")));
            }
        }
        let ids = [
            ("bos", self.bos_token_id),
            ("eos", self.eos_token_id),
            ("eot", self.eot_token_id),
            ("eom", self.eom_token_id),
            ("unknown", self.unknown_token_id),
        ];
        for (name, id) in ids {
            if let Some(id) = id.filter(|&id| id as usize >= tokens) {
                return Err(problem(format!("`{name}_token_id` is {id}, but there are {tokens} tokens")));
            }
        }
        Ok(())
    }
}

/// Builds the parts of a tokenizer from the metadata.
pub(super) fn build(metadata: &GgufTokenizer) -> Result<Parts, TextError> {
    match metadata.kind.as_str() {
        "gpt2" => {
            let pre = Pre::from_name(metadata.pre.as_deref().unwrap_or("default"))?;
            metadata.check()?;
            byte_level(metadata, pre)
        }
        "llama" => {
            metadata.check()?;
            sentence_piece(metadata)
        }
        other => Err(TextError::unsupported_in_gguf("tokenizer (`tokenizer.ggml.model`)", other)),
    }
}

fn byte_level(metadata: &GgufTokenizer, pre: Pre) -> Result<Parts, TextError> {
    let split = |merge: &String| -> Result<(String, String), TextError> {
        // Pieces may hold no space: the alphabet spells it `Ġ`.
        let pair = merge.split_once(' ').filter(|(left, right)| !left.is_empty() && !right.is_empty());
        let (left, right) = pair.ok_or_else(|| problem(format!("merge `{}` is not two pieces", shortened(merge))))?;
        Ok((left.to_owned(), right.to_owned()))
    };
    if metadata.merges.is_empty() {
        return Err(problem("a `gpt2` tokenizer needs `merges`".to_owned()));
    }
    let merges = metadata.merges.iter().map(split).collect::<Result<Vec<_>, _>>()?;
    let model = BPE::builder()
        .vocab_and_merges(vocab_of(metadata), merges)
        .ignore_merges(pre.ignores_merges())
        .build()
        .map_err(library_problem)?;
    let mut pipeline = Pipeline::new(model);
    pipeline.with_normalizer(pre.normalizer());
    pipeline.with_pre_tokenizer(Some(pre.pre_tokenizer()?));
    add_tokens(&mut pipeline, metadata);
    let pieces = pieces_of(metadata, &Spelling::byte_level())?;
    let text_per_piece = Some(if pre.normalizer().is_some() { 4 } else { 1 });
    let wrapping = wrapping(metadata, pre.adds_bos());
    Ok(Parts { pipeline, pieces, leading_space: LeadingSpace::Keep, wrapping, text_per_piece })
}

fn sentence_piece(metadata: &GgufTokenizer) -> Result<Parts, TextError> {
    if metadata.scores.is_empty() {
        return Err(problem("a `llama` tokenizer needs `scores`".to_owned()));
    }
    let has_prefix = metadata.add_space_prefix.unwrap_or(true);
    let unknown = metadata.token(metadata.unknown_token_id);
    let unknown = unknown.or_else(|| {
        let first = (0..metadata.tokens.len()).find(|&id| metadata.token_type(id) == TokenType::Unknown)?;
        metadata.tokens.get(first).map(String::as_str)
    });
    let vocab = vocab_of(metadata);
    let merges = merges_from_scores(metadata, &vocab);
    let has_all_bytes = (0..=255u8).all(|byte| vocab.contains_key(&fallback_name(byte)));
    let mut model = BPE::builder().vocab_and_merges(vocab, merges).byte_fallback(true).fuse_unk(true);
    if let Some(unknown) = unknown {
        model = model.unk_token(unknown.to_owned());
    }
    let mut pipeline = Pipeline::new(model.build().map_err(library_problem)?);
    let marker: NormalizerWrapper = Replace::new(" ", "▁").map_err(library_problem)?.into();
    let mut steps = vec![marker];
    if has_prefix {
        steps.insert(0, Prepend::new("▁".to_owned()).into());
    }
    pipeline.with_normalizer(Some(Sequence::new(steps)));
    add_tokens(&mut pipeline, metadata);
    let leading_space = if has_prefix { LeadingSpace::StripOne } else { LeadingSpace::Keep };
    let pieces = pieces_of(metadata, &Spelling::sentence_piece(leading_space))?;
    // Without all byte tokens, unknown text of any length becomes one token.
    let text_per_piece = has_all_bytes.then_some(1);
    Ok(Parts { pipeline, pieces, leading_space, wrapping: wrapping(metadata, true), text_per_piece })
}

/// Token to id; the first of two equal tokens is the one that text becomes.
fn vocab_of(metadata: &GgufTokenizer) -> Vocab {
    let mut vocab = Vocab::default();
    for (id, token) in (0u32..).zip(&metadata.tokens) {
        vocab.entry(token.clone()).or_insert(id);
    }
    vocab
}

/// SentencePiece's BPE has no list of merges: any two pieces merge whose join is a piece, the best score first.
///
/// # Source
/// The order of equal scores is the one Hugging Face's converter produces, so that ids agree with its tokenizer.json.
fn merges_from_scores(metadata: &GgufTokenizer, vocab: &Vocab) -> Vec<(String, String)> {
    struct Merge<'a> {
        left: &'a str,
        right: &'a str,
        score: f32,
        chars: (usize, usize),
    }
    let mut merges = Vec::new();
    let mut seen = HashSet::new();
    for (token, &score) in metadata.tokens.iter().zip(&metadata.scores) {
        let chars = token.chars().count();
        if chars > MAX_MERGED_CHARS || !seen.insert(token.as_str()) {
            continue;
        }
        let first = merges.len();
        for (left_chars, (cut, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(cut);
            if vocab.contains_key(left) && vocab.contains_key(right) {
                merges.push(Merge { left, right, score, chars: (left_chars, chars - left_chars) });
            }
        }
        merges[first..].sort_by_key(|merge| (vocab[merge.left], vocab[merge.right]));
    }
    merges.sort_by(|a, b| b.score.total_cmp(&a.score).then(b.chars.cmp(&a.chars)));
    merges.into_iter().map(|merge| (merge.left.to_owned(), merge.right.to_owned())).collect()
}

fn add_tokens(pipeline: &mut Pipeline, metadata: &GgufTokenizer) {
    let mut tokens = Vec::new();
    for (id, token) in metadata.tokens.iter().enumerate() {
        let special = match metadata.token_type(id) {
            TokenType::Control | TokenType::Unknown => true,
            TokenType::UserDefined => false,
            TokenType::Normal | TokenType::Byte => continue,
        };
        tokens.push(AddedToken::from(token.clone(), special).normalized(false).special(special));
    }
    pipeline.add_tokens(&tokens);
}

fn wrapping(metadata: &GgufTokenizer, adds_bos: bool) -> Wrapping {
    let begin = metadata.bos_token_id.filter(|_| metadata.add_bos.unwrap_or(adds_bos));
    let end = metadata.eos_token_id.filter(|_| metadata.add_eos.unwrap_or(false));
    Wrapping { before: begin.into_iter().collect(), after: end.into_iter().collect() }
}

fn pieces_of(metadata: &GgufTokenizer, spelling: &Spelling) -> Result<Pieces, TextError> {
    let mut pieces = Pieces::builder();
    for (id, token) in metadata.tokens.iter().enumerate() {
        match metadata.token_type(id) {
            TokenType::Control | TokenType::Unknown => {
                pieces.push(true, |out| spelling.append_added(token, out))?;
            }
            TokenType::UserDefined => pieces.push(false, |out| spelling.append_added(token, out))?,
            TokenType::Normal | TokenType::Byte => pieces.push(false, |out| spelling.append_token(token, out))?,
        }
    }
    Ok(pieces.build())
}

fn library_problem(error: tokenizers::Error) -> TextError {
    problem(shortened(&error))
}

fn problem(problem: String) -> TextError {
    TextError::in_gguf(problem)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::gguf_text::gguf_tokenizer;
    use crate::text::{ChatMessage, ModelText};
    use crate::weights::{FileBytes, GgufFile};

    #[test]
    fn the_tokenizer_of_a_real_gguf_file_gives_the_ids_of_the_hugging_face_tokenizer() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/text");
        let json = |name: &str| -> serde_json::Value {
            serde_json::from_slice(&std::fs::read(folder.join(name)).unwrap()).unwrap()
        };
        let file = GgufFile::parse(FileBytes::open(&folder.join("vocabulary.gguf")).unwrap()).unwrap();
        let text = ModelText::from_gguf(file.name(), &gguf_tokenizer(&file).unwrap()).unwrap();
        let (texts, expected) = (json("texts.json"), json("spm.json"));
        let expected = expected["variants"]["prefix"]["ids"].as_array().unwrap();
        assert!(expected.len() > 50);
        for (input, wanted) in texts.as_array().unwrap().iter().zip(expected) {
            let input = input.as_str().unwrap();
            let ids = serde_json::json!(text.tokenizer.encode_rendered(input).unwrap());
            assert_eq!(&ids, wanted, "{input:?}");
            assert_eq!(text.tokenizer.encode(input).unwrap()[0], 1);
        }
        let hello = ChatMessage { role: "user".into(), content: "hi".into(), name: None };
        assert_eq!(text.chat_template.unwrap().render(&[hello], false).unwrap(), "<s>[user] hi\n");
        // `</s>`, which the file names, and `<|end|>`, which ends turns by its name.
        assert_eq!(text.end_tokens, [2, 3]);
    }
}
