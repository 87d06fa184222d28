"""Makes the tiny random-weight checkpoints of models/testdata and what transformers computes with them.

Every checkpoint is a folder (or a GGUF file) with, beside it, `expected.json` (prompt and greedy tokens) and
`expected.bin` (f32 log-probabilities of the whole vocabulary at every position of prompt + greedy, row-major).
The reference computes in f32 on the weights exactly as they are stored. Run through `parity.sh`.
"""

import argparse
import json
import math
import shutil
from pathlib import Path

import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

import gguf_export
from tiny_tokenizer import make_tokenizer

VOCAB = 320
PROMPT_TOKENS = 40
NEW_TOKENS = 24
# Below this distance between the best two logits, another order of additions could pick another token.
CLEAR_MARGIN = 2e-3

DEFAULT_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}

SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_parameters": DEFAULT_ROPE,
    "tie_word_embeddings": False,
}
# K-quants need rows of whole blocks of 256.
WIDE = SMALL | {"hidden_size": 256, "intermediate_size": 256, "head_dim": 64, "tie_word_embeddings": True}

# name: (model type, sizes and choices, dtype of the files, how they are written)
FOLDERS = {
    "tiny-llama": ("llama", SMALL, torch.float32, {"old_config": True}),
    "llama3-rope": (
        "llama",
        SMALL | {"rope_parameters": LLAMA3_ROPE, "tie_word_embeddings": True},
        torch.float32,
        {},
    ),
    "llama-linear-biased": (
        "llama",
        SMALL | {"rope_parameters": LINEAR_ROPE, "attention_bias": True, "mlp_bias": True},
        torch.float32,
        {"old_config": True},
    ),
    "llama-bf16-sharded": ("llama", SMALL | {"rope_parameters": LLAMA3_ROPE}, torch.bfloat16, {"shards": 3}),
    "llama-f16": ("llama", SMALL, torch.float16, {}),
    "mistral-window": ("mistral", SMALL | {"sliding_window": 20}, torch.float32, {"old_config": True}),
    "mistral-bf16": ("mistral", SMALL | {"sliding_window": None, "head_dim": 24}, torch.bfloat16, {}),
    "qwen2": (
        "qwen2",
        SMALL | {"use_sliding_window": False, "sliding_window": 8, "max_window_layers": 1},
        torch.float32,
        {"old_config": True},
    ),
    "qwen2-window": (
        "qwen2",
        SMALL | {"use_sliding_window": True, "sliding_window": 20, "max_window_layers": 1},
        torch.float32,
        {},
    ),
    "qwen2-f16": ("qwen2", SMALL | {"tie_word_embeddings": True}, torch.float16, {}),
    "qwen3": ("qwen3", SMALL | {"head_dim": 32, "tie_word_embeddings": True}, torch.float32, {}),
    "qwen3-bf16": ("qwen3", SMALL | {"head_dim": 32, "rms_norm_eps": 1e-6}, torch.bfloat16, {"old_config": True}),
}


def q4_k_m(name: str, array) -> Kind:
    """The usual mixture: values and down projections, and the head, in the finer format."""
    return Kind.Q6_K if "v_proj" in name or "down_proj" in name or "embed_tokens" in name else Kind.Q4_K


# name: (folder whose weights are written, or model type and sizes; format of the matrices)
GGUFS = {
    "llama-f32": ("tiny-llama", Kind.F32),
    "llama-f16": ("llama-f16", Kind.F16),
    "llama3-rope-bf16": ("llama-bf16-sharded", Kind.BF16),
    "llama-q8_0": ("tiny-llama", Kind.Q8_0),
    "llama-q4_0": ("tiny-llama", Kind.Q4_0),
    "llama-linear-biased-q8_0": ("llama-linear-biased", Kind.Q8_0),
    "qwen2-q8_0": ("qwen2", Kind.Q8_0),
    "qwen3-q8_0": ("qwen3", Kind.Q8_0),
    "llama-q4_k_m": (("llama", WIDE), q4_k_m),
    "qwen3-q5_k": (("qwen3", WIDE | {"num_hidden_layers": 1, "tie_word_embeddings": False}), Kind.Q5_K),
    "llama-q6_k": (("llama", WIDE | {"num_hidden_layers": 1}), Kind.Q6_K),
}


def make_model(model_type: str, sizes: dict, seed: int, spread: float = 3.0):
    """A model of random weights, norms and biases included, whose logits have about `spread` as standard deviation."""
    torch.manual_seed(seed)
    config = AutoConfig.for_model(model_type, **sizes, bos_token_id=None, eos_token_id=2, pad_token_id=0)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(1 + 0.2 * torch.randn_like(parameter))
            elif name.endswith(".bias"):
                parameter.copy_(0.5 * torch.randn_like(parameter))
            elif "embed_tokens" in name or "lm_head" in name:
                parameter.copy_(torch.randn_like(parameter) * spread / math.sqrt(parameter.shape[1]))
            else:
                parameter.copy_(torch.randn_like(parameter) * 1.2 / math.sqrt(parameter.shape[1]))
    return model


def reference(model, seed: int) -> dict:
    """Greedy continuation of a random prompt, and the log-probabilities at every position."""
    generator = torch.Generator().manual_seed(seed)
    prompt = torch.randint(3, VOCAB, (PROMPT_TOKENS,), generator=generator).tolist()
    tokens = list(prompt)
    margin = math.inf
    with torch.no_grad():
        for _ in range(NEW_TOKENS):
            logits = model(torch.tensor([tokens]), use_cache=False).logits[0, -1]
            best = logits.topk(2)
            margin = min(margin, float(best.values[0] - best.values[1]))
            tokens.append(int(best.indices[0]))
        logits = model(torch.tensor([tokens]), use_cache=False).logits[0]
    logprobs = torch.log_softmax(logits.double(), dim=-1).float()
    return {"prompt": prompt, "greedy": tokens[PROMPT_TOKENS:], "logprobs": logprobs, "margin": margin}


def clear_reference(build) -> dict:
    """The first seed under which no greedy choice is close."""
    for seed in range(1, 100):
        expected = reference(build(seed), seed)
        if expected["margin"] > CLEAR_MARGIN:
            return expected
    raise SystemExit("no seed gives clear greedy choices")


def write_expected(folder: Path, stem: str, expected: dict) -> None:
    logprobs = expected.pop("logprobs")
    (folder / f"{stem}.bin").write_bytes(logprobs.contiguous().numpy().astype("<f4").tobytes())
    expected["vocab_size"] = logprobs.shape[1]
    (folder / f"{stem}.json").write_text(json.dumps(expected) + "\n")


def old_style(config: dict) -> dict:
    """The same config in the words of transformers 4."""
    rope = dict(config.pop("rope_parameters"))
    config["rope_theta"] = rope.pop("rope_theta")
    config["rope_scaling"] = None if rope["rope_type"] == "default" else rope
    if rope["rope_type"] == "linear":
        rope["type"] = rope.pop("rope_type")
    config["torch_dtype"] = config.pop("dtype")
    config.pop("layer_types", None)
    config["transformers_version"] = "4.51.0"
    return config


def save_folder(model, folder: Path, dtype, tokenizer, old_config=False, shards=1) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    tensors = {name: tensor.to(dtype).contiguous() for name, tensor in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight", None)
    save_tensors(tensors, folder, shards)
    config = json.loads(model.config.to_json_string(use_diff=False))
    config["architectures"] = [type(model).__name__]
    config["dtype"] = str(dtype).removeprefix("torch.")
    config = old_style(config) if old_config else config
    kept = {key: value for key, value in sorted(config.items()) if value is not None or key == "sliding_window"}
    (folder / "config.json").write_text(json.dumps(kept, indent=2) + "\n")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [2]}) + "\n")
    tokenizer.save_pretrained(folder)
    template = folder / "chat_template.jinja"
    if old_config and template.exists():
        settings = json.loads((folder / "tokenizer_config.json").read_text())
        settings["chat_template"] = template.read_text()
        (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
        template.unlink()


def save_tensors(tensors: dict, folder: Path, shards: int) -> None:
    if shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    names = sorted(tensors)
    weight_map = {}
    for shard in range(shards):
        file = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::shards]}
        weight_map |= dict.fromkeys(part, file)
        save_file(part, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1) + "\n")


def make_folder(out: Path, name: str, tokenizer) -> None:
    model_type, sizes, dtype, how = FOLDERS[name]
    folder = out / name

    def build(seed: int):
        # Rounding to 8 bits shifts logits in proportion to their size: the bound that half formats are held to is
        # meant for logits of about this spread.
        spread = 3.0 if dtype == torch.float32 else 1.0
        save_folder(make_model(model_type, sizes, seed, spread), folder, dtype, tokenizer, **how)
        # Read back from disk: the reference sees the files, in whichever words they are written.
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()

    write_expected(folder, "expected", clear_reference(build))


def make_gguf(out: Path, name: str, tokenizer) -> None:
    origin, kind = GGUFS[name]
    kind_of = kind if callable(kind) else lambda _name, _array: kind
    path = out / "gguf" / f"{name}.gguf"
    path.parent.mkdir(exist_ok=True)

    def build(seed: int):
        if isinstance(origin, str):
            model = AutoModelForCausalLM.from_pretrained(out / origin, dtype=torch.float32).eval()
        else:
            model = make_model(*origin, seed)
        tensors = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
        if model.config.tie_word_embeddings:
            tensors.pop("lm_head.weight", None)
        gguf_export.write(path, model.config, tensors.items(), tokenizer, kind_of)
        weights = gguf_export.read_weights(path, model.config)
        missing, unexpected = model.load_state_dict(weights, strict=False)
        assert not unexpected and set(missing) <= {"lm_head.weight"}, (missing, unexpected)
        model.tie_weights()
        return model

    write_expected(path.parent, name, clear_reference(build))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "testdata")
    parser.add_argument("--only", help="make only the checkpoint of this name")
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    torch.set_num_threads(1)
    tokenizer = make_tokenizer(VOCAB)
    assert len(tokenizer) == VOCAB, len(tokenizer)
    for names, make in ((FOLDERS, make_folder), (GGUFS, make_gguf)):
        for name in names:
            if arguments.only in (None, name):
                make(arguments.out, name, tokenizer)
                print(f"made {name}", flush=True)


if __name__ == "__main__":
    main()
