#!/usr/bin/env python3
"""Writes a random-weight checkpoint with a real model's shape, for benchmarks: speed does not depend on what the weights say.

    python3 make_random.py --shape qwen3-0.6b --format bf16 --out /tmp/qwen3-bf16        # a folder in Hugging Face layout
    python3 make_random.py --shape qwen3-0.6b --format q8_0 --out /tmp/qwen3-q8_0.gguf   # one GGUF file, as every --out *.gguf

Needs numpy, tokenizers and gguf. The vocabulary is a byte-level BPE of 32,000 entries trained on the Python sources and licence
texts that the machine has; the chat template is ChatML. Weights are drawn tensor by tensor, so memory stays small.
"""

import argparse
import json
import pathlib
import struct
import sysconfig

import numpy as np

VOCABULARY = 32_000
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SHAPES = {
    "qwen3-0.6b": dict(
        family="qwen3", hidden=1024, mlp=3072, layers=28, heads=16, kv_heads=8, head_dim=128, theta=1e6, eps=1e-6, context=40960
    ),
    "llama3-1b": dict(
        family="llama", hidden=2048, mlp=8192, layers=16, heads=32, kv_heads=8, head_dim=64, theta=5e5, eps=1e-5, context=32768
    ),
}
CLASSES = {"qwen3": "Qwen3ForCausalLM", "llama": "LlamaForCausalLM"}
STANDARD_DEVIATION = 0.02


def tensors(shape):
    """Every tensor as (name in Hugging Face's files, dimensions), in the order they are written."""
    hidden, mlp, width = shape["hidden"], shape["mlp"], shape["head_dim"]
    yield "model.embed_tokens.weight", (VOCABULARY, hidden)
    for layer in range(shape["layers"]):
        prefix = f"model.layers.{layer}"
        yield f"{prefix}.input_layernorm.weight", (hidden,)
        yield f"{prefix}.self_attn.q_proj.weight", (shape["heads"] * width, hidden)
        yield f"{prefix}.self_attn.k_proj.weight", (shape["kv_heads"] * width, hidden)
        yield f"{prefix}.self_attn.v_proj.weight", (shape["kv_heads"] * width, hidden)
        yield f"{prefix}.self_attn.o_proj.weight", (hidden, shape["heads"] * width)
        if shape["family"] == "qwen3":
            yield f"{prefix}.self_attn.q_norm.weight", (width,)
            yield f"{prefix}.self_attn.k_norm.weight", (width,)
        yield f"{prefix}.post_attention_layernorm.weight", (hidden,)
        yield f"{prefix}.mlp.gate_proj.weight", (mlp, hidden)
        yield f"{prefix}.mlp.up_proj.weight", (mlp, hidden)
        yield f"{prefix}.mlp.down_proj.weight", (hidden, mlp)
    yield "model.norm.weight", (hidden,)


def draw(generator, dims):
    """Norm weights are ones; everything else is normal noise."""
    if len(dims) == 1:
        return np.ones(dims, dtype=np.float32)
    return generator.standard_normal(dims, dtype=np.float32) * STANDARD_DEVIATION


def to_bf16(values):
    """Rounds to nearest even and keeps the upper half."""
    bits = values.view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def train_tokenizer():
    """A byte-level BPE over text that any machine with Python has."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    library = pathlib.Path(sysconfig.get_paths()["stdlib"])
    files = sorted(library.glob("*.py")) + sorted(library.glob("*/*.py"))
    files += sorted(pathlib.Path("/usr/share/common-licenses").glob("*"))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=SPECIAL, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files if file.is_file())
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def config_of(shape):
    """config.json as transformers writes it."""
    return {
        "architectures": [CLASSES[shape["family"]]],
        "model_type": shape["family"],
        "hidden_size": shape["hidden"],
        "intermediate_size": shape["mlp"],
        "num_hidden_layers": shape["layers"],
        "num_attention_heads": shape["heads"],
        "num_key_value_heads": shape["kv_heads"],
        "head_dim": shape["head_dim"],
        "hidden_act": "silu",
        "rms_norm_eps": shape["eps"],
        "rope_theta": shape["theta"],
        "max_position_embeddings": shape["context"],
        "vocab_size": VOCABULARY,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "torch_dtype": "bfloat16",
        "eos_token_id": SPECIAL.index("<|im_end|>"),
    }


def write_folder(shape, tokenizer, out, generator):
    """One safetensors file in bf16 and the files around it."""
    out.mkdir(parents=True, exist_ok=True)
    header, end = {}, 0
    for name, dims in tensors(shape):
        size = 2 * int(np.prod(dims))
        header[name] = {"dtype": "BF16", "shape": list(dims), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(out / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, dims in tensors(shape):
            to_bf16(draw(generator, dims)).tofile(file)
    tokenizer.save(str(out / "tokenizer.json"))
    (out / "config.json").write_text(json.dumps(config_of(shape), indent=2))
    settings = {"chat_template": TEMPLATE, "eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast"}
    (out / "tokenizer_config.json").write_text(json.dumps(settings, indent=2))
    (out / "generation_config.json").write_text(json.dumps({"eos_token_id": SPECIAL.index("<|im_end|>")}))


GGUF_NAMES = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    """The same tensor's name in GGUF files. Random rows need no permutation for Llama's rotary layout."""
    if name == "model.embed_tokens.weight":
        return "token_embd.weight"
    if name == "model.norm.weight":
        return "output_norm.weight"
    _, _, layer, rest = name.split(".", 3)
    return f"blk.{layer}.{GGUF_NAMES[rest.removesuffix('.weight')]}.weight"


def write_gguf(shape, tokenizer, out, generator, kind):
    """One GGUF file with every matrix in `kind` and norms in F32."""
    import gguf

    quantization = getattr(gguf.GGMLQuantizationType, kind.upper())
    writer = gguf.GGUFWriter(str(out), shape["family"], use_temp_file=True)
    writer.add_context_length(shape["context"])
    writer.add_embedding_length(shape["hidden"])
    writer.add_block_count(shape["layers"])
    writer.add_feed_forward_length(shape["mlp"])
    writer.add_head_count(shape["heads"])
    writer.add_head_count_kv(shape["kv_heads"])
    writer.add_key_length(shape["head_dim"])
    writer.add_value_length(shape["head_dim"])
    writer.add_rope_dimension_count(shape["head_dim"])
    writer.add_rope_freq_base(shape["theta"])
    writer.add_layer_norm_rms_eps(shape["eps"])
    writer.add_vocab_size(VOCABULARY)
    spec = json.loads(tokenizer.to_str())["model"]
    ids = sorted(spec["vocab"], key=spec["vocab"].get)
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(ids)
    writer.add_token_types([control if token in SPECIAL else normal for token in ids])
    writer.add_token_merges([" ".join(pair) if isinstance(pair, list) else pair for pair in spec["merges"]])
    writer.add_eos_token_id(SPECIAL.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(TEMPLATE)
    for name, dims in tensors(shape):
        values = draw(generator, dims)
        if len(dims) == 1:
            writer.add_tensor(gguf_name(name), values)
        else:
            writer.add_tensor(gguf_name(name), gguf.quants.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, required=True)
    parser.add_argument("--format", choices=["bf16", "q8_0", "q4_0"], required=True)
    parser.add_argument("--out", type=pathlib.Path, required=True)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    shape, generator = SHAPES[arguments.shape], np.random.default_rng(arguments.seed)
    tokenizer = train_tokenizer()
    if arguments.format == "bf16" and arguments.out.suffix != ".gguf":
        write_folder(shape, tokenizer, arguments.out, generator)
    else:
        write_gguf(shape, tokenizer, arguments.out, generator, arguments.format)
    print(f"wrote {arguments.out}")


if __name__ == "__main__":
    main()
