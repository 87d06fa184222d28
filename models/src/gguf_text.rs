//! The tokenizer metadata of a GGUF file as plain values.

use crate::text::GgufTokenizer;
use crate::weights::{GgufArray, GgufFile, GgufValue, WeightsError};

/// Gathers the `tokenizer.*` keys.
///
/// # Errors
/// [`WeightsError::Damaged`] naming the key, when one that every tokenizer needs is missing or of another kind.
pub(crate) fn gguf_tokenizer(file: &GgufFile) -> Result<GgufTokenizer, WeightsError> {
    let key = |name: &str| format!("tokenizer.ggml.{name}");
    let wrong = |name: &str, wanted: &str| {
        WeightsError::damaged(file.name(), format!("metadata key `{}` is missing or not {wanted}", key(name)))
    };
    let text = |name: &str| file.value(&key(name)).and_then(GgufValue::as_str).map(str::to_owned);
    let id = |name: &str| match file.value(&key(name)) {
        None => Ok(None),
        Some(value) => {
            let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
            id.map(Some).ok_or_else(|| wrong(name, "a token id"))
        }
    };
    let flag = |name: &str| file.value(&key(name)).and_then(GgufValue::as_bool);
    let texts = |name: &str| match file.value(&key(name)) {
        None => Ok(Vec::new()),
        Some(value) => value.as_strings().map(<[String]>::to_vec).ok_or_else(|| wrong(name, "a list of texts")),
    };
    Ok(GgufTokenizer {
        kind: text("model").ok_or_else(|| wrong("model", "a text"))?,
        pre: text("pre"),
        tokens: texts("tokens")?,
        scores: match file.value(&key("scores")) {
            None => Vec::new(),
            Some(GgufValue::Array(GgufArray::Float(scores))) => scores.iter().map(|&score| score as f32).collect(),
            Some(_) => return Err(wrong("scores", "a list of numbers")),
        },
        token_types: match file.value(&key("token_type")) {
            None => Vec::new(),
            Some(value) => small_integers(value).ok_or_else(|| wrong("token_type", "a list of whole numbers"))?,
        },
        merges: texts("merges")?,
        bos_token_id: id("bos_token_id")?,
        eos_token_id: id("eos_token_id")?,
        eot_token_id: id("eot_token_id")?,
        eom_token_id: id("eom_token_id")?,
        unknown_token_id: id("unknown_token_id")?,
        add_bos: flag("add_bos_token"),
        add_eos: flag("add_eos_token"),
        add_space_prefix: flag("add_space_prefix"),
        chat_template: file.value("tokenizer.chat_template").and_then(GgufValue::as_str).map(str::to_owned),
    })
}

fn small_integers(value: &GgufValue) -> Option<Vec<i32>> {
    match value {
        GgufValue::Array(GgufArray::Signed(values)) => values.iter().map(|&value| i32::try_from(value).ok()).collect(),
        GgufValue::Array(GgufArray::Unsigned(values)) => {
            values.iter().map(|&value| i32::try_from(value).ok()).collect()
        }
        _ => None,
    }
}
