//! The config of a decoder: what every family's file fills in, and how a family is chosen.

use serde_json::Value;

use crate::arch::rope_config::rope;
use crate::arch::{ConfigError, Fields, llama, mistral, qwen2, qwen3};
use crate::layers::RopeScaling;

/// Families that can be computed, by their `model_type`.
pub const SUPPORTED_ARCHITECTURES: &str = "llama, mistral, qwen2, qwen3";

// Far above every published model, far below where products of sizes overflow.
const MAX_WIDTH: usize = 1 << 18;
const MAX_INTERMEDIATE: usize = 1 << 22;
const MAX_LAYERS: usize = 1 << 12;
const MAX_HEADS: usize = 1 << 12;
const MAX_HEAD_DIM: usize = 1 << 12;
const MAX_VOCAB: usize = 1 << 24;
const MAX_CONTEXT: usize = 1 << 22;

/// Sizes and choices of a pre-norm decoder with gated feed-forward layers.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct DecoderConfig {
    /// Family, as in `model_type`.
    pub(crate) architecture: &'static str,
    /// Rows of the embedding and of the output head.
    pub(crate) vocab_size: usize,
    /// Width of the stream between layers.
    pub(crate) hidden_size: usize,
    /// Width inside feed-forward layers.
    pub(crate) intermediate_size: usize,
    /// Decoder layers.
    pub(crate) num_layers: usize,
    /// Query heads.
    pub(crate) num_heads: usize,
    /// Key and value heads; divides `num_heads`.
    pub(crate) num_kv_heads: usize,
    /// Elements of one head; a multiple of 8.
    pub(crate) head_dim: usize,
    /// Added to the mean square in every norm.
    pub(crate) rms_norm_eps: f32,
    /// Base of the rotary wavelengths.
    pub(crate) rope_theta: f64,
    /// How they are stretched.
    pub(crate) rope_scaling: RopeScaling,
    /// Longest sequence, in tokens.
    pub(crate) context_window: usize,
    /// Per layer: latest positions a query sees, itself included.
    pub(crate) windows: Vec<Option<u32>>,
    /// Query, key and value projections have biases.
    pub(crate) qkv_bias: bool,
    /// The attention's output projection has one.
    pub(crate) output_bias: bool,
    /// Feed-forward projections have biases.
    pub(crate) mlp_bias: bool,
    /// Queries and keys are normed a head at a time.
    pub(crate) qk_norm: bool,
    /// Whether the output head is the embedding; `None` leaves it to the files.
    pub(crate) tied_head: Option<bool>,
}

/// What a family assumes where its files are silent.
pub(crate) struct FamilyDefaults {
    pub(crate) architecture: &'static str,
    pub(crate) num_kv_heads: Option<usize>,
    pub(crate) head_dim: Option<usize>,
}

impl DecoderConfig {
    /// Reads the config of whatever family the fields name.
    pub(crate) fn from_fields(fields: &Fields) -> Result<Self, ConfigError> {
        refuse_what_is_not_a_plain_decoder(fields)?;
        match fields.optional_text("model_type")?.ok_or_else(|| fields.missing("model_type"))? {
            "llama" => llama::config(fields),
            "mistral" => mistral::config(fields),
            "qwen2" => qwen2::config(fields),
            "qwen3" => qwen3::config(fields),
            other => Err(ConfigError::unsupported("model architecture", other, SUPPORTED_ARCHITECTURES)),
        }
    }

    /// The part that all families spell alike; no biases, norms or windows.
    pub(crate) fn common(fields: &Fields, defaults: &FamilyDefaults) -> Result<Self, ConfigError> {
        let hidden_size = fields.count("hidden_size", 1..=MAX_WIDTH)?;
        let num_heads = fields.count("num_attention_heads", 1..=MAX_HEADS)?;
        let num_layers = fields.count("num_hidden_layers", 1..=MAX_LAYERS)?;
        let (rope_theta, rope_scaling) = rope(fields)?;
        Ok(Self {
            architecture: defaults.architecture,
            vocab_size: fields.count("vocab_size", 1..=MAX_VOCAB)?,
            hidden_size,
            intermediate_size: fields.count("intermediate_size", 1..=MAX_INTERMEDIATE)?,
            num_layers,
            num_heads,
            num_kv_heads: num_kv_heads(fields, num_heads, defaults)?,
            head_dim: head_dim(fields, hidden_size, num_heads, defaults)?,
            rms_norm_eps: fields.optional_positive("rms_norm_eps")?.unwrap_or(1e-6) as f32,
            rope_theta,
            rope_scaling,
            context_window: fields.count("max_position_embeddings", 1..=MAX_CONTEXT)?,
            windows: vec![None; num_layers],
            qkv_bias: false,
            output_bias: false,
            mlp_bias: false,
            qk_norm: false,
            tied_head: fields.optional_flag("tie_word_embeddings")?,
        })
    }

    /// Sets the window of the layers for which `is_sliding` holds, or of those that `layer_types` names.
    pub(crate) fn set_windows(
        &mut self,
        fields: &Fields,
        window: Option<u32>,
        is_sliding: impl Fn(usize) -> bool,
    ) -> Result<(), ConfigError> {
        let sliding: Vec<bool> = match fields.get("layer_types") {
            None => (0..self.num_layers).map(is_sliding).collect(),
            Some(types) => layer_types(fields, types, self.num_layers)?,
        };
        if window.is_none() && fields.mentions("layer_types") && sliding.contains(&true) {
            return Err(fields.missing("sliding_window"));
        }
        self.windows = sliding.into_iter().map(|is_sliding| window.filter(|_| is_sliding)).collect();
        Ok(())
    }

    /// Width of all query heads together.
    pub(crate) fn query_width(&self) -> usize {
        self.num_heads * self.head_dim
    }

    /// Width of all key (or value) heads together.
    pub(crate) fn key_width(&self) -> usize {
        self.num_kv_heads * self.head_dim
    }
}

/// The window of a family that has one, as the files name it.
pub(crate) fn sliding_window(fields: &Fields, default: Option<u32>) -> Result<Option<u32>, ConfigError> {
    if !fields.mentions("sliding_window") {
        return Ok(default);
    }
    let window = fields.optional_count("sliding_window", 1..=u32::MAX as usize)?;
    Ok(window.map(|window| u32::try_from(window).expect("bounded by the range above")))
}

fn layer_types(fields: &Fields, types: &Value, num_layers: usize) -> Result<Vec<bool>, ConfigError> {
    let wrong = || fields.kind_error("layer_types", types, format!("a list of {num_layers} layer types"));
    let list = types.as_array().filter(|list| list.len() == num_layers).ok_or_else(wrong)?;
    list.iter()
        .map(|kind| match kind.as_str() {
            Some("full_attention") => Ok(false),
            Some("sliding_attention") => Ok(true),
            _ => Err(ConfigError::unsupported("layer type", kind, "full_attention, sliding_attention")),
        })
        .collect()
}

fn num_kv_heads(fields: &Fields, num_heads: usize, defaults: &FamilyDefaults) -> Result<usize, ConfigError> {
    let key = "num_key_value_heads";
    let default = if fields.mentions(key) { None } else { defaults.num_kv_heads };
    let count = fields.optional_count(key, 1..=MAX_HEADS)?.or(default).unwrap_or(num_heads);
    if num_heads.is_multiple_of(count) {
        Ok(count)
    } else {
        Err(fields.kind_error(key, &Value::from(count), format!("a divisor of the {num_heads} query heads")))
    }
}

fn head_dim(
    fields: &Fields,
    hidden_size: usize,
    num_heads: usize,
    defaults: &FamilyDefaults,
) -> Result<usize, ConfigError> {
    let given = fields.optional_count("head_dim", 1..=MAX_HEAD_DIM)?.or(defaults.head_dim);
    let head_dim = given.unwrap_or(hidden_size / num_heads);
    if head_dim > 0 && head_dim.is_multiple_of(8) {
        Ok(head_dim)
    } else {
        Err(fields.kind_error("head_dim", &Value::from(head_dim), "a multiple of 8"))
    }
}

fn refuse_what_is_not_a_plain_decoder(fields: &Fields) -> Result<(), ConfigError> {
    for key in ["num_local_experts", "num_experts", "n_routed_experts"] {
        if let Some(experts) = fields.get(key).filter(|experts| experts.as_u64() != Some(0)) {
            let found = format!("{experts} experts a layer");
            return Err(ConfigError::unsupported("mixture of experts", found, "dense feed-forward layers"));
        }
    }
    if let Some(quantisation) = fields.get("quantization_config") {
        let method = quantisation.get("quant_method").and_then(Value::as_str).unwrap_or("unnamed");
        let supported = "f32, f16 and bf16 safetensors, or a GGUF file";
        return Err(ConfigError::unsupported("quantisation method", method, supported));
    }
    if let Some(activation) = fields.optional_text("hidden_act")?.filter(|name| !matches!(*name, "silu" | "swish")) {
        return Err(ConfigError::unsupported("hidden_act", activation, "silu"));
    }
    let classes = fields.get("architectures").and_then(Value::as_array);
    if let Some(class) = classes.and_then(|classes| classes.first()).and_then(Value::as_str)
        && !class.ends_with("ForCausalLM")
    {
        return Err(ConfigError::unsupported("model class", class, "those that end in ForCausalLM"));
    }
    Ok(())
}
