//! Tensor names: Hugging Face's and their GGUF counterparts.

/// Tensors outside the layers: Hugging Face name, GGUF name.
const GLOBAL: [(&str, &str); 3] = [
    ("model.embed_tokens.weight", "token_embd.weight"),
    ("model.norm.weight", "output_norm.weight"),
    ("lm_head.weight", "output.weight"),
];

/// Modules of one layer: the part between `model.layers.N.` (`blk.N.`) and `.weight` or `.bias`.
const IN_LAYER: [(&str, &str); 11] = [
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
];

/// The GGUF name of a tensor with this Hugging Face name.
pub fn gguf_name(huggingface: &str) -> Option<String> {
    translate(huggingface, "model.layers.", "blk.", |pair| pair)
}

/// The Hugging Face name of a tensor with this GGUF name.
pub fn huggingface_name(gguf: &str) -> Option<String> {
    translate(gguf, "blk.", "model.layers.", |(huggingface, gguf)| (gguf, huggingface))
}

type Pair = (&'static str, &'static str);

fn translate(name: &str, prefix: &str, other_prefix: &str, direct: fn(Pair) -> Pair) -> Option<String> {
    if let Some((_, to)) = GLOBAL.into_iter().map(direct).find(|(from, _)| *from == name) {
        return Some(to.to_owned());
    }
    let (layer, rest) = name.strip_prefix(prefix)?.split_once('.')?;
    // Parsed and printed again, so that `01` and `1` are never two names of one tensor.
    let layer = layer.parse::<u32>().ok().filter(|number| number.to_string() == layer)?;
    let (module, kind) = rest.rsplit_once('.')?;
    if kind != "weight" && kind != "bias" {
        return None;
    }
    let (_, to) = IN_LAYER.into_iter().map(direct).find(|(from, _)| *from == module)?;
    Some(format!("{other_prefix}{layer}.{to}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_translates_there_and_back() {
        let in_layer = IN_LAYER.iter().map(|(name, _)| format!("model.layers.17.{name}.weight"));
        let names: Vec<String> = GLOBAL.iter().map(|(name, _)| (*name).to_owned()).chain(in_layer).collect();
        for name in names {
            let gguf = gguf_name(&name).unwrap();
            assert_ne!(gguf, name);
            assert_eq!(huggingface_name(&gguf), Some(name));
        }
        assert_eq!(gguf_name("model.layers.3.self_attn.k_proj.bias").unwrap(), "blk.3.attn_k.bias");
    }

    #[test]
    fn what_is_not_in_the_table_has_no_counterpart() {
        for name in ["", "blk.", "blk.x.attn_q.weight", "blk.01.attn_q.weight", "blk.0.attn_q", "rope_freqs.weight"] {
            assert_eq!(huggingface_name(name), None, "{name}");
        }
    }
}
