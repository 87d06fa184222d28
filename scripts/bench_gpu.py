"""Speed on an NVIDIA GPU, as shares of what the card was measured to do in the same run; prints a table last.

    python3 scripts/bench_gpu.py 8b [BUNDLE]       # 0.6b, 1b, 8b; tiny for a try without a GPU

Needs the bundle of `make gpu-bundle` (default target/gpu), no cargo, no network. The checkpoint is made here: random
bf16 weights of a real model's shape, since speed does not depend on what weights say. Operations (the first table), decode
steps and prompts are timed by the device's own clock; mixed load, and what transformers is compared with, go over HTTP
through the server and `millgate bench`. Hugging Face transformers runs the same checkpoint where it is installed.
"""

import json
import os
import pathlib
import random
import re
import secrets
import shutil
import struct
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
SHAPES = {
    "0.6b": dict(hidden=1024, mlp=3072, layers=28, heads=16, kv_heads=8, dim=128, vocab=151_936, tied=True, qwen=True),
    "1b": dict(hidden=2048, mlp=8192, layers=16, heads=32, kv_heads=8, dim=64, vocab=128_256, tied=True, qwen=False),
    "8b": dict(hidden=4096, mlp=14_336, layers=32, heads=32, kv_heads=8, dim=128, vocab=128_256, tied=False, qwen=False),
    "tiny": dict(hidden=64, mlp=128, layers=2, heads=4, kv_heads=2, dim=16, vocab=4096, tied=True, qwen=False),
}
# What is hoped for, in percent of what the card was measured to do.
BARS = {
    ("1b", "decode", 1): 60,
    ("8b", "decode", 1): 80,
    ("8b", "prefill", 512): 45,
    ("8b", "prefill", 4096): 55,
    ("8b", "prefill", 16_384): 55,
}
# Tokens of each prompt of the runs over HTTP, of transformers, and of the decode steps of models/benches/steps.rs.
DECODE_PROMPT = 128


def tensors(shape):
    """Name and dimensions of every tensor, as in Hugging Face's files."""
    hidden, mlp, dim = shape["hidden"], shape["mlp"], shape["dim"]
    yield "model.embed_tokens.weight", (shape["vocab"], hidden)
    for layer in range(shape["layers"]):
        at = f"model.layers.{layer}"
        yield f"{at}.input_layernorm.weight", (hidden,)
        yield f"{at}.self_attn.q_proj.weight", (shape["heads"] * dim, hidden)
        yield f"{at}.self_attn.k_proj.weight", (shape["kv_heads"] * dim, hidden)
        yield f"{at}.self_attn.v_proj.weight", (shape["kv_heads"] * dim, hidden)
        yield f"{at}.self_attn.o_proj.weight", (hidden, shape["heads"] * dim)
        if shape["qwen"]:
            yield f"{at}.self_attn.q_norm.weight", (dim,)
            yield f"{at}.self_attn.k_norm.weight", (dim,)
        yield f"{at}.post_attention_layernorm.weight", (hidden,)
        yield f"{at}.mlp.gate_proj.weight", (mlp, hidden)
        yield f"{at}.mlp.up_proj.weight", (mlp, hidden)
        yield f"{at}.mlp.down_proj.weight", (hidden, mlp)
    yield "model.norm.weight", (hidden,)
    if not shape["tied"]:
        yield "lm_head.weight", (shape["vocab"], hidden)


def count(dims):
    product = 1
    for dim in dims:
        product *= dim
    return product


def bf16(value):
    return struct.pack("<f", value)[2:]


def write_checkpoint(folder, shape):
    folder.mkdir(parents=True)
    config = dict(
        architectures=["Qwen3ForCausalLM" if shape["qwen"] else "LlamaForCausalLM"],
        model_type="qwen3" if shape["qwen"] else "llama",
        torch_dtype="bfloat16",
        vocab_size=shape["vocab"],
        hidden_size=shape["hidden"],
        intermediate_size=shape["mlp"],
        num_hidden_layers=shape["layers"],
        num_attention_heads=shape["heads"],
        num_key_value_heads=shape["kv_heads"],
        head_dim=shape["dim"],
        max_position_embeddings=32_768,
        rms_norm_eps=1e-5,
        tie_word_embeddings=shape["tied"],
        attention_bias=False,
        mlp_bias=False,
        hidden_act="silu",
        rope_theta=500_000.0,
        bos_token_id=None,
        eos_token_id=2,
        pad_token_id=0,
    )
    (folder / "config.json").write_text(json.dumps(config))
    # The bundled tokenizer, with a word for every further id, so that whatever is drawn is text.
    demo = ROOT / "models" / "demo"
    tokenizer = json.loads((demo / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    known = {*vocabulary.values(), *(token["id"] for token in tokenizer.get("added_tokens", []))}
    vocabulary.update({f"\u0120w{id}": id for id in range(shape["vocab"]) if id not in known})
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = json.loads((demo / "tokenizer_config.json").read_text())
    settings["model_max_length"] = 32_768
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))

    header, at = {}, 0
    for name, dims in tensors(shape):
        end = at + 2 * count(dims)
        header[name] = dict(dtype="BF16", shape=list(dims), data_offsets=[at, end])
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    draw = random.Random(1)
    # A prime number of draws, over and over: no two rows alike.
    noise = b"".join(bf16(draw.gauss(0, 0.02)) for _ in range(999_983)) * 4
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, dims in tensors(shape):
            left = 2 * count(dims)
            if len(dims) == 1:
                file.write(bf16(1.0) * (left // 2))
                continue
            while left > 0:
                left -= file.write(noise[:left])
    return sum(2 * count(dims) for _, dims in tensors(shape))


class Server:
    def __init__(self, millgate, folder, work):
        self.millgate = millgate
        key = secrets.token_hex(24)
        self.environment = {**os.environ, "MILLGATE_ADMIN_KEY": key, "MILLGATE_API_KEY": key}
        self.log = open(work / "log", "w+")
        command = [millgate, "serve", "--listen", "127.0.0.1:0", "--data-dir", work / "data", "--model", f"bench={folder}"]
        self.process = subprocess.Popen(command, env=self.environment, stderr=self.log, stdout=self.log)
        for _ in range(1200):
            text = (work / "log").read_text()
            if found := re.search(r"http://127\.0\.0\.1:\d+", text):
                self.environment["MILLGATE_URL"] = found[0]
                return
            if self.process.poll() is not None:
                break
            time.sleep(0.25)
        sys.exit("the server did not start:\n" + (work / "log").read_text())

    def bench(self, clients, requests, prompt, output, *more, seed=1):
        command = [self.millgate, "bench", "--model", "bench", "--json", "--clients", clients, "--requests", requests]
        command += ["--prompt-tokens", prompt, "--output-tokens", output, "--seed", seed, *more]
        done = subprocess.run([str(word) for word in command], env=self.environment, capture_output=True, text=True)
        if done.returncode:
            sys.exit("millgate bench failed:\n" + done.stderr)
        report = json.loads(done.stdout)
        if report["failed"]:
            sys.exit(f"{report['failed']} requests failed: {report['first_failure']}")
        return report

    def stop(self):
        self.process.terminate()
        self.process.wait(30)


def transformers_rate(folder, streams, output):
    """Tokens a second of transformers' continuous batching, or why there is none."""
    try:
        import torch
        from transformers import AutoModelForCausalLM, GenerationConfig

        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, device_map="cuda")
        prompts = [[3 + (i * 7 + j) % 1000 for j in range(DECODE_PROMPT)] for i in range(streams)]
        settings = GenerationConfig(max_new_tokens=output, min_new_tokens=output, do_sample=False, eos_token_id=-1)
        model.generate_batch(inputs=prompts[:2], generation_config=settings)
        start = time.monotonic()
        model.generate_batch(inputs=prompts, generation_config=settings)
        return streams * output / (time.monotonic() - start)
    except Exception as error:  # whatever stands in its way is the answer
        return f"not run: {type(error).__name__}: {error}"[:120]


def by_device(bundle, folder, name, card, table):
    """Decode steps and prompts by events of the device."""
    shape = SHAPES[name]
    command = [bundle / "steps", folder] + (["tiny"] if shape["hidden"] < 512 else [])
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the benchmark of steps failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    matrix = sum(count(dims) for tensor, dims in tensors(shape) if len(dims) == 2 and "embed" not in tensor)
    head = shape["vocab"] * shape["hidden"]
    read = 2 * (matrix + (head if shape["tied"] else 0))
    layer_flops = 2 * (matrix - (0 if shape["tied"] else head))
    rates = {}
    for line in map(json.loads, done.stdout.splitlines()):
        size, seconds = line["size"], max(line["median_ms"], 1e-6) / 1e3
        bar = BARS.get((name, line["what"], size))
        bar = f"; bar: {bar} %" if bar else ""
        detail = f"median {line['median_ms']:.2f} ms of {line['runs']}, {line['least_ms']:.2f} to {line['most_ms']:.2f}"
        if line["what"] == "decode":
            rates[size] = size / seconds
            share = f"{read / seconds / card[0] * 100:.0f} % of bandwidth (weights alone){bar}"
            table.append((f"decode, {size} streams", f"{rates[size]:.0f} tokens/s", detail, share))
        else:
            flops = layer_flops * size + 2 * head + 2 * shape["layers"] * shape["heads"] * shape["dim"] * size**2
            share = f"{flops / seconds / card[1] * 100:.0f} % of the matrix rate{bar}"
            table.append((f"prefill, {size} tokens", f"{size / seconds:.0f} tokens/s", detail, share))
    if 32 in rates:
        table.append(("32 streams over 1", f"{rates[32] / rates[1]:.1f} times", "", "bar: 20" if name == "8b" else ""))


def over_http(server, shape, table):
    """What clients see; returns tokens a second of 32 streams, or of as many as were tried."""
    is_tiny = shape["hidden"] < 512
    output, prompt, streams = (16, 32, 4) if is_tiny else (256, DECODE_PROMPT, 32)
    server.bench(2, 2, prompt, 8)
    report = server.bench(streams, streams, prompt, output, seed=streams)
    itl, rate = report["itl_ms"], report["output_tokens_per_s"]
    detail = f"ITL p50 {itl['p50']:.2f}, p99 {itl['p99']:.2f} ms"
    table.append((f"over HTTP, {streams} streams", f"{rate:.0f} tokens/s", detail, ""))
    report = server.bench(64, 8 if is_tiny else 160, 64 if is_tiny else 512, output, "--rate", 8)
    ttft, itl = report["ttft_ms"], report["itl_ms"]
    detail = f"TTFT p50 {ttft['p50']:.0f}, p99 {ttft['p99']:.0f} ms; ITL p50 {itl['p50']:.1f}, p99 {itl['p99']:.1f} ms"
    table.append(("mixed, 8 requests/s", f"{report['total_tokens_per_s']:.0f} tokens/s", detail, ""))
    return rate


def main():
    name = sys.argv[1] if len(sys.argv) > 1 else "8b"
    bundle = pathlib.Path(sys.argv[2]) if len(sys.argv) > 2 else ROOT / "target" / "gpu"
    if name not in SHAPES or not (bundle / "millgate").exists():
        sys.exit(f"usage: bench_gpu.py {'|'.join(SHAPES)} [BUNDLE]; the bundle is made by `make gpu-bundle`")
    shape = SHAPES[name]
    done = subprocess.run([bundle / "bench", name], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"the benchmark of operations failed ({done.returncode}):\n{done.stdout}{done.stderr}")
    parts = done.stdout
    print(parts)
    found = re.search(r"copies (\d+) GB/s, bf16 products (\d+) TFLOP/s", parts)
    unknown = float("nan")
    card = (float(found[1]) * 1e9 or unknown, float(found[2]) * 1e12 or unknown) if found else (unknown, unknown)
    work = pathlib.Path(tempfile.mkdtemp(prefix="millgate-bench-"))
    table = []
    try:
        weight_bytes = write_checkpoint(work / "model", shape)
        by_device(bundle, work / "model", name, card, table)
        server = Server(bundle / "millgate", work / "model", work)
        try:
            rate = over_http(server, shape, table)
        finally:
            server.stop()
        summary = (work / "log").read_text()
        other = transformers_rate(work / "model", 32, 256) if name != "tiny" else "not run: tiny"
        if isinstance(other, float):
            table.append(("transformers, 32 streams", f"{other:.0f} tokens/s", f"Millgate over HTTP {rate / other:.1f} times", "bar: 3"))
        else:
            table.append(("transformers, 32 streams", str(other), "", ""))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    print("\n".join(line.strip() for line in summary.splitlines() if "KV cache for" in line))
    print(f"\nshape {name}, {weight_bytes / 1e9:.2f} GB of bf16 weights; decode and prefill by events of the device, one run\n")
    print("| what | rate | detail | share of the card |\n|---|---:|---|---|")
    for row in table:
        print("| " + " | ".join(row) + " |")


main()
