//! The tensors that a config needs, with their shapes: checked before anything heavy is read.

use std::collections::BTreeSet;

use crate::arch::DecoderConfig;
use crate::weights::Weights;

/// Names and shapes of all tensors of a decoder; the head is listed unless it is the embedding.
pub(crate) fn required_tensors(config: &DecoderConfig, is_tied: bool) -> Vec<(String, Vec<usize>)> {
    let hidden = config.hidden_size;
    let mut tensors = vec![
        ("model.embed_tokens.weight".to_owned(), vec![config.vocab_size, hidden]),
        ("model.norm.weight".to_owned(), vec![hidden]),
    ];
    if !is_tied {
        tensors.push(("lm_head.weight".to_owned(), vec![config.vocab_size, hidden]));
    }
    for layer in 0..config.num_layers {
        add_layer(config, &format!("model.layers.{layer}"), &mut tensors);
    }
    tensors
}

fn add_layer(config: &DecoderConfig, layer: &str, tensors: &mut Vec<(String, Vec<usize>)>) {
    let (hidden, intermediate) = (config.hidden_size, config.intermediate_size);
    let (query, key) = (config.query_width(), config.key_width());
    for norm in ["input_layernorm", "post_attention_layernorm"] {
        tensors.push((format!("{layer}.{norm}.weight"), vec![hidden]));
    }
    if config.qk_norm {
        for norm in ["q_norm", "k_norm"] {
            tensors.push((format!("{layer}.self_attn.{norm}.weight"), vec![config.head_dim]));
        }
    }
    let projections = [
        ("self_attn.q_proj", query, hidden, config.qkv_bias),
        ("self_attn.k_proj", key, hidden, config.qkv_bias),
        ("self_attn.v_proj", key, hidden, config.qkv_bias),
        ("self_attn.o_proj", hidden, query, config.output_bias),
        ("mlp.gate_proj", intermediate, hidden, config.mlp_bias),
        ("mlp.up_proj", intermediate, hidden, config.mlp_bias),
        ("mlp.down_proj", hidden, intermediate, config.mlp_bias),
    ];
    for (module, rows, cols, is_biased) in projections {
        tensors.push((format!("{layer}.{module}.weight"), vec![rows, cols]));
        if is_biased {
            tensors.push((format!("{layer}.{module}.bias"), vec![rows]));
        }
    }
}

/// A tensor of the files that the decoder has no use for, and whose absence from the computation would be silent.
pub(crate) fn unexpected_tensor(weights: &dyn Weights, required: &[(String, Vec<usize>)]) -> Option<String> {
    let known: BTreeSet<&str> = required.iter().map(|(name, _)| name.as_str()).collect();
    weights.names().into_iter().find(|name| !known.contains(name.as_str()) && !is_harmless(name))
}

/// Tables that are computed anew, and the head that tied models sometimes store twice.
fn is_harmless(name: &str) -> bool {
    name.ends_with("rotary_emb.inv_freq")
        || name.ends_with("attn_rot_embd.weight")
        || name == "rope_freqs.weight"
        || name == "lm_head.weight"
}
