//! GGUF metadata as config fields, so that each family reads one kind of config.

use serde_json::{Value, json};

use crate::arch::config::SUPPORTED_ARCHITECTURES;
use crate::arch::{ConfigError, Fields};
use crate::weights::{GgufArray, GgufFile, GgufValue};

/// Whole numbers: Hugging Face key, key under the architecture's prefix.
const COUNTS: [(&str, &str); 9] = [
    ("hidden_size", "embedding_length"),
    ("intermediate_size", "feed_forward_length"),
    ("num_hidden_layers", "block_count"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("sliding_window", "attention.sliding_window"),
    ("num_experts", "expert_count"),
];

/// Other numbers, likewise.
const NUMBERS: [(&str, &str); 2] =
    [("rms_norm_eps", "attention.layer_norm_rms_epsilon"), ("rope_theta", "rope.freq_base")];

/// The config that a GGUF file's metadata and tensor list describe.
///
/// # Errors
/// [`ConfigError`] naming the metadata key, for values that have no counterpart in a config.
pub(crate) fn fields_of_gguf(file: &GgufFile) -> Result<Fields, ConfigError> {
    let missing = |key: &str| ConfigError::Missing { key: key.to_owned() };
    let architecture = file.value("general.architecture").and_then(GgufValue::as_str);
    let architecture = architecture.ok_or_else(|| missing("general.architecture"))?;
    if !["llama", "qwen2", "qwen3"].contains(&architecture) {
        return Err(ConfigError::unsupported("model architecture", architecture, SUPPORTED_ARCHITECTURES));
    }
    let mut fields = Fields::default();
    fields.set("model_type", "general.architecture".into(), architecture.into());
    fields.set("gguf_architecture", "general.architecture".into(), architecture.into());
    for (key, name) in COUNTS {
        let name = format!("{architecture}.{name}");
        fields.spell(key, name.clone());
        if let Some(value) = file.value(&name) {
            fields.set(key, name.clone(), one_count(&name, value)?);
        }
    }
    for (key, name) in NUMBERS {
        let name = format!("{architecture}.{name}");
        fields.spell(key, name.clone());
        if let Some(value) = file.value(&name) {
            fields.set(key, name.clone(), number(value));
        }
    }
    if fields.get("sliding_window").and_then(Value::as_u64) == Some(0) {
        fields.set("sliding_window", format!("{architecture}.attention.sliding_window"), Value::Null);
    }
    fields.set(
        "use_sliding_window",
        format!("{architecture}.attention.sliding_window"),
        fields.get("sliding_window").is_some().into(),
    );
    fields.set("max_window_layers", "max_window_layers".into(), 0.into());
    if fields.get("head_dim").is_none() {
        let count = |key: &str| fields.get(key).and_then(Value::as_u64).filter(|&count| count > 0);
        if let (Some(hidden), Some(heads)) = (count("hidden_size"), count("num_attention_heads")) {
            fields.set("head_dim", format!("{architecture}.attention.key_length"), (hidden / heads).into());
        }
    }
    set_from_tensors(&mut fields, file)?;
    set_rope_scaling(&mut fields, file, architecture)?;
    check_head_sizes(&fields, file, architecture)?;
    Ok(fields)
}

/// What JSON cannot say (infinities, texts) stays visible, so that the check of the key refuses it.
fn number(value: &GgufValue) -> Value {
    value.as_f64().filter(|number| number.is_finite()).map_or_else(|| json!(format!("{value:?}")), Value::from)
}

/// One number for all layers; some files give a list of one number a layer.
fn one_count(name: &str, value: &GgufValue) -> Result<Value, ConfigError> {
    if let Some(count) = value.as_u64() {
        return Ok(count.into());
    }
    let counts: Vec<i128> = match value {
        GgufValue::Array(GgufArray::Unsigned(counts)) => counts.iter().map(|&count| count.into()).collect(),
        GgufValue::Array(GgufArray::Signed(counts)) => counts.iter().map(|&count| count.into()).collect(),
        _ => Vec::new(),
    };
    match counts.first().map(|&first| u64::try_from(first)) {
        Some(Ok(first)) if counts.iter().all(|&count| count == i128::from(first)) => Ok(first.into()),
        Some(_) => Err(ConfigError::unsupported(name, "another value in each layer", "one value for all layers")),
        None => Ok(json!(format!("{value:?}").chars().take(60).collect::<String>())),
    }
}

/// What the metadata does not say but the tensors show: vocabulary, biases, a head of its own.
fn set_from_tensors(fields: &mut Fields, file: &GgufFile) -> Result<(), ConfigError> {
    let tensors = file.tensors();
    let embedding = tensors.get("token_embd.weight");
    let rows = embedding.and_then(|tensor| tensor.shape.first()).copied();
    let rows = rows.ok_or_else(|| ConfigError::Missing { key: "token_embd.weight".into() })?;
    fields.set("vocab_size", "rows of token_embd.weight".into(), rows.into());
    let shows = |name: &str| Value::from(tensors.contains_key(name));
    fields.set("tie_word_embeddings", "output.weight".into(), (!tensors.contains_key("output.weight")).into());
    fields.set("attention_bias", "blk.0.attn_q.bias".into(), shows("blk.0.attn_q.bias"));
    fields.set("attention_output_bias", "blk.0.attn_output.bias".into(), shows("blk.0.attn_output.bias"));
    fields.set("mlp_bias", "blk.0.ffn_up.bias".into(), shows("blk.0.ffn_up.bias"));
    Ok(())
}

fn set_rope_scaling(fields: &mut Fields, file: &GgufFile, architecture: &str) -> Result<(), ConfigError> {
    let name = |key: &str| format!("{architecture}.rope.{key}");
    let kind = file.value(&name("scaling.type")).and_then(GgufValue::as_str).unwrap_or("none");
    let factor = file.value(&name("scaling.factor")).or_else(|| file.value(&name("scale_linear")));
    let factor = factor.and_then(GgufValue::as_f64);
    let attention = file.value(&name("scaling.attn_factor")).and_then(GgufValue::as_f64).unwrap_or(1.0);
    if attention != 1.0 {
        return Err(ConfigError::unsupported(&name("scaling.attn_factor"), attention, "1"));
    }
    let scaling = match (kind, factor) {
        ("none", None | Some(1.0)) => return Ok(()),
        // A factor without a type is linear: so files from before the type existed meant it.
        ("none", Some(factor)) => json!({"rope_type": "linear", "factor": factor}),
        (kind, factor) => json!({"rope_type": kind, "factor": factor}),
    };
    fields.set("rope_scaling", name("scaling"), scaling);
    Ok(())
}

/// Head sizes that a config has no key for must be what it takes for granted.
fn check_head_sizes(fields: &Fields, file: &GgufFile, architecture: &str) -> Result<(), ConfigError> {
    let Some(head_dim) = fields.get("head_dim").and_then(Value::as_u64) else { return Ok(()) };
    for key in ["attention.value_length", "rope.dimension_count"] {
        let name = format!("{architecture}.{key}");
        if let Some(found) = file.value(&name).and_then(GgufValue::as_u64).filter(|&found| found != head_dim) {
            return Err(ConfigError::unsupported(&name, found, &format!("the head size {head_dim}")));
        }
    }
    Ok(())
}
