//! Checks on a tokenizer.json before it is handed to the library, whose own code panics on some broken ones.

use std::collections::HashMap;

use serde::Deserialize;
use serde_json::Value;

use super::TextError;
use super::pieces::MAX_TOKEN_IDS;

/// The parts of a tokenizer.json that need a look before the library builds it.
#[derive(Deserialize)]
struct Outline {
    #[serde(default)]
    added_tokens: Vec<AddedOutline>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    decoder: Value,
    #[serde(default)]
    post_processor: Value,
    model: ModelOutline,
}

#[derive(Deserialize)]
struct AddedOutline {
    id: u64,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
}

#[derive(Deserialize)]
struct ModelOutline {
    #[serde(default)]
    vocab: Option<VocabOutline>,
    #[serde(default)]
    continuing_subword_prefix: Option<String>,
    #[serde(default)]
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    dropout: Option<f64>,
    #[serde(default)]
    unk_token: Option<String>,
    #[serde(default)]
    unk_id: Option<u64>,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default, rename = "type")]
    kind: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum VocabOutline {
    Ids(HashMap<String, u64>),
    Scored(Vec<(String, f64)>),
}

/// What the check learnt that the tokenizer needs afterwards.
pub(super) struct Checked {
    /// The `decoder` part.
    pub(super) decoder: Value,
    /// The `post_processor` part.
    pub(super) post_processor: Value,
    /// How many bytes of text one byte of a token can stand for; `None` when a token may swallow any amount.
    pub(super) text_per_piece: Option<usize>,
}

/// Refuses what no real tokenizer.json contains.
///
/// # Errors
/// [`TextError::Json`] says what is wrong, [`TextError::Unsupported`] names what this server does not do.
pub(super) fn check(bytes: &[u8]) -> Result<Checked, TextError> {
    let outline: Outline = serde_json::from_slice(bytes).map_err(|error| problem(error.to_string()))?;
    check_ids(&outline)?;
    check_model(&outline.model)?;
    check_normalizer(&outline.normalizer)?;
    check_pre_tokenizer(&outline.pre_tokenizer)?;
    let text_per_piece = text_per_piece(&outline);
    Ok(Checked { decoder: outline.decoder, post_processor: outline.post_processor, text_per_piece })
}

fn check_ids(outline: &Outline) -> Result<(), TextError> {
    let added = outline.added_tokens.iter().map(|token| token.id).max();
    let largest = match &outline.model.vocab {
        Some(VocabOutline::Ids(ids)) => ids.values().copied().max().max(added),
        Some(VocabOutline::Scored(pieces)) => added.max((pieces.len() as u64).checked_sub(1)),
        None => added,
    };
    match largest {
        None => Err(problem("it has no vocabulary".to_owned())),
        Some(id) if id >= MAX_TOKEN_IDS as u64 => Err(problem(format!("token id {id} is out of range"))),
        Some(_) => Ok(()),
    }
}

fn check_model(model: &ModelOutline) -> Result<(), TextError> {
    let is_bpe = model.kind.as_deref().is_none_or(|kind| kind == "BPE");
    let affix = [&model.continuing_subword_prefix, &model.end_of_word_suffix];
    // The library slices merges at the affix's length without looking; no model served here has one.
    if is_bpe && affix.into_iter().flatten().any(|affix| !affix.is_empty()) {
        let kind = "BPE with a subword prefix or suffix".to_owned();
        return Err(TextError::unsupported_in_json("model", &kind));
    }
    if model.dropout.is_some_and(|dropout| dropout != 0.0) {
        let kind = "BPE with dropout (random token ids)".to_owned();
        return Err(TextError::unsupported_in_json("model", &kind));
    }
    if let (Some(VocabOutline::Scored(pieces)), Some(unk_id)) = (&model.vocab, model.unk_id)
        && unk_id >= pieces.len() as u64
    {
        return Err(problem(format!("unk_id {unk_id} is out of range")));
    }
    if let (Some(VocabOutline::Ids(ids)), Some(unk)) = (&model.vocab, &model.unk_token)
        && is_bpe
        && !ids.contains_key(unk)
    {
        return Err(problem(format!("unk_token `{unk}` is not in the vocabulary")));
    }
    Ok(())
}

/// The normalizers that are safe to build from any file.
///
/// `Precompiled` is not: the library follows the offsets in its table without looking. It belongs to Unigram models.
const NORMALIZERS: [&str; 13] = [
    "BertNormalizer",
    "ByteLevel",
    "Lowercase",
    "NFC",
    "NFD",
    "NFKC",
    "NFKD",
    "Nmt",
    "Prepend",
    "Replace",
    "Sequence",
    "Strip",
    "StripAccents",
];

fn check_normalizer(part: &Value) -> Result<(), TextError> {
    if part.is_null() {
        return Ok(());
    }
    let kind = part.get("type").and_then(Value::as_str).unwrap_or("without a type");
    if !NORMALIZERS.contains(&kind) {
        return Err(TextError::unsupported_in_json("normalizer", kind));
    }
    part.get("normalizers").and_then(Value::as_array).into_iter().flatten().try_for_each(check_normalizer)
}

/// A fixed-length pre-tokenizer of length zero would divide by it.
fn check_pre_tokenizer(part: &Value) -> Result<(), TextError> {
    if part.get("type").and_then(Value::as_str) == Some("FixedLength")
        && part.get("length").and_then(Value::as_u64) == Some(0)
    {
        return Err(problem("its pre-tokenizer cuts into pieces of length 0".to_owned()));
    }
    part.get("pretokenizers").and_then(Value::as_array).into_iter().flatten().try_for_each(check_pre_tokenizer)
}

/// How much longer than its token a piece of text may be.
fn text_per_piece(outline: &Outline) -> Option<usize> {
    if outline.added_tokens.iter().any(|token| token.lstrip || token.rstrip) {
        return None;
    }
    let has_unknown = outline.model.unk_token.is_some() || outline.model.unk_id.is_some();
    if has_unknown && !outline.model.byte_fallback {
        return None;
    }
    growth_of(&outline.normalizer)
}

fn growth_of(normalizer: &Value) -> Option<usize> {
    let Some(kind) = normalizer.get("type").and_then(Value::as_str) else { return Some(1) };
    match kind {
        // Composition at most thirds the length: the longest decomposition of one character is three times its bytes.
        "NFC" | "NFKC" | "Lowercase" => Some(4),
        // A marker that is shorter than the space it replaces does not exist: a space is one byte.
        "Prepend" | "ByteLevel" => Some(1),
        "Replace" if normalizer.pointer("/pattern/String").and_then(Value::as_str) == Some(" ") => Some(1),
        "Sequence" => {
            let steps = normalizer.get("normalizers").and_then(Value::as_array)?;
            steps.iter().try_fold(1usize, |product, step| product.checked_mul(growth_of(step)?))
        }
        _ => None,
    }
}

fn problem(problem: String) -> TextError {
    TextError::in_json(problem)
}
