"""Writes Hugging Face models as GGUF files, and reads them back as the weights that a reader must see."""

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind

import kquants

GLOBAL = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}
IN_LAYER = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
OWN_QUANTISERS = {Kind.Q4_K: kquants.q4_k, Kind.Q5_K: kquants.q5_k, Kind.Q6_K: kquants.q6_k}


def gguf_name(name: str) -> str:
    if name in GLOBAL:
        return GLOBAL[name]
    _, _, layer, rest = name.split(".", 3)
    module, kind = rest.rsplit(".", 1)
    return f"blk.{layer}.{IN_LAYER[module]}.{kind}"


def _rotary_heads(config, name: str):
    """GGUF's `llama` keeps the rows of these projections as interleaved pairs."""
    if config.model_type != "llama":
        return None
    if ".q_proj." in name:
        return config.num_attention_heads
    return config.num_key_value_heads if ".k_proj." in name else None


def to_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def from_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def quantise(rows: np.ndarray, kind: Kind) -> np.ndarray:
    """Rows in the bytes of the format, as the writer wants them."""
    if kind in OWN_QUANTISERS:
        return OWN_QUANTISERS[kind](rows)
    return gguf.quants.quantize(rows.astype(np.float32), kind)


def write(path, config, tensors, tokenizer, kind_of) -> None:
    """Writes `tensors` (an iterable of name, float array); `kind_of(name, array)` picks each one's format."""
    writer = gguf.GGUFWriter(str(path), config.model_type)
    _add_config(writer, config)
    _add_tokenizer(writer, tokenizer)
    for name, array in tensors:
        heads = _rotary_heads(config, name)
        if heads is not None:
            array = to_pairs(array, heads)
        kind = Kind.F32 if array.ndim == 1 else kind_of(name, array)
        writer.add_tensor(gguf_name(name), quantise(array, kind), raw_dtype=kind)
    factors = rope_factors(config)
    if factors is not None:
        writer.add_tensor("rope_freqs.weight", factors)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_config(writer, config) -> None:
    rope = config.rope_parameters
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_vocab_size(config.vocab_size)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if head_dim * config.num_attention_heads != config.hidden_size:
        writer.add_key_length(head_dim)
        writer.add_value_length(head_dim)
    else:
        writer.add_rope_dimension_count(head_dim)
    if rope["rope_type"] == "linear":
        writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
        writer.add_rope_scaling_factor(rope["factor"])


def rope_factors(config):
    """Llama 3's scaling as GGUF files carry it: a divisor for each frequency."""
    rope = config.rope_parameters
    if rope["rope_type"] != "llama3":
        return None
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    frequencies = 1.0 / rope["rope_theta"] ** (np.arange(0, head_dim, 2) / head_dim)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    kept = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / (kept + (1 - kept) / rope["factor"])).astype(np.float32)


def _add_tokenizer(writer, tokenizer) -> None:
    """A byte-level BPE tokenizer with the GPT-2 pattern."""
    import json

    model = json.loads(tokenizer.backend_tokenizer.to_str())
    special = {token["id"] for token in model["added_tokens"] if token["special"]}
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["model"]["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    kinds = [gguf.TokenType.CONTROL if vocabulary[token] in special else gguf.TokenType.NORMAL for token in tokens]
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_add_bos_token(False)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def read_weights(path, config) -> dict:
    """The file's weights dequantised by the gguf package, under Hugging Face names and in their row order."""
    names = {gguf: name for name, gguf in GLOBAL.items()}
    modules = {gguf: module for module, gguf in IN_LAYER.items()}
    weights = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        if tensor.name == "rope_freqs.weight":
            continue
        if tensor.name in names:
            name = names[tensor.name]
        else:
            _, layer, module, kind = tensor.name.split(".")
            name = f"model.layers.{layer}.{modules[module]}.{kind}"
        array = gguf.quants.dequantize(tensor.data, tensor.tensor_type).astype(np.float32)
        array = array.reshape(tuple(int(size) for size in reversed(tensor.shape)))
        heads = _rotary_heads(config, name)
        weights[name] = torch.from_numpy((from_pairs(array, heads) if heads is not None else array).copy())
    return weights
