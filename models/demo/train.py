"""Makes the demo model again: corpus, tokenizer, weights and all files of the folder, with one command.

    python3 train.py --out .

Seeds are fixed; the result differs in the last bits between machines, because bf16 products do. See README.md
for how long it takes. `--steps 20 --out /tmp/x` is a quick trial.
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM

from corpus import Corpus

VOCAB_SIZE = 3072
END, START, STOP = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
ROW_TOKENS, LONG_ROW_TOKENS = 192, 2048
STEP_TOKENS = 4096
LONG_STEP_EVERY = 40  # one step in so many trains on full-length rows, so that late positions work too
ASSISTANT_SHARE = 0.60  # room for scored tokens in a batch, about a tenth more than there are; questions are read, not scored
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if message['role'] not in ['system', 'user', 'assistant'] %}"
    "{{ raise_exception('the role of a message must be system, user or assistant') }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def train_tokenizer(seed):
    """A byte-level BPE whose digits stand alone, trained on a sample of the corpus."""
    corpus = Corpus(seed)

    def texts():
        for _ in range(40_000):
            yield from (message["content"] for message in corpus.conversation(num_turns=1))
            yield corpus.document()

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE, special_tokens=[END, START, STOP], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts(), trainer)
    return tokenizer


def config(vocab_size):
    """The architecture: widths are multiples of 256 so that every quantisation fits."""
    return LlamaConfig(
        vocab_size=vocab_size, hidden_size=256, intermediate_size=768, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, head_dim=64, max_position_embeddings=2048, rope_theta=10000.0, rms_norm_eps=1e-5,
        tie_word_embeddings=True, attention_bias=False, mlp_bias=False, bos_token_id=0, eos_token_id=2, pad_token_id=0,
        initializer_range=0.03,
    )


class Rows:
    """Packs conversations into rows of tokens, and marks which tokens are scored."""

    def __init__(self, tokenizer, seed):
        self.tokenizer, self.corpus = tokenizer, Corpus(seed)
        self.rng = random.Random(seed + 1)
        self.end, self.stop = tokenizer.token_to_id(END), tokenizer.token_to_id(STOP)
        self.heads = {role: self.ids(f"{START}{role}\n") for role in ("system", "user", "assistant")}
        self.newline = self.ids("\n")
        self.cache = {}

    def ids(self, text):
        return self.tokenizer.encode(text).ids

    def sample(self, num_turns):
        """One conversation or document as (ids, scored); ends with the end-of-text token."""
        if self.rng.random() < 0.03:
            ids = self.ids(self.corpus.document()) + [self.end]
            return ids, [True] * len(ids)
        ids, scored = [], []
        for message in self.corpus.conversation(num_turns):
            content = self.ids(message["content"]) + [self.stop]
            part = self.heads[message["role"]] + content + self.newline
            is_answer = message["role"] == "assistant"
            ids += part
            scored += [False] * len(self.heads[message["role"]]) + [is_answer] * len(content) + [False] * len(self.newline)
        return ids + [self.end], scored + [False]

    def row(self, num_tokens):
        ids, scored = [], []
        while len(ids) <= num_tokens:
            # Long rows hold long conversations, so that late positions see what a long chat looks like.
            turns = self.rng.choice([None, None, 12, 30]) if num_tokens > ROW_TOKENS else None
            more_ids, more_scored = self.sample(turns)
            ids += more_ids
            scored += more_scored
        return ids[: num_tokens + 1], scored[: num_tokens + 1]

    def batch(self, num_tokens):
        """Inputs `[rows, num_tokens]`, flat indices of the scored places, and what belongs there."""
        rows = [self.row(num_tokens) for _ in range(STEP_TOKENS // num_tokens)]
        ids = torch.tensor([row[0] for row in rows])
        scored = torch.tensor([row[1] for row in rows])[:, 1:].reshape(-1)
        places = scored.nonzero().squeeze(1)
        size = int(STEP_TOKENS * ASSISTANT_SHARE)  # fixed, so that the compiled step has one shape
        index = torch.zeros(size, dtype=torch.long)
        target = torch.full((size,), -100)
        places = places[:size]
        index[: len(places)] = places
        target[: len(places)] = ids[:, 1:].reshape(-1)[places]
        return ids[:, :-1].contiguous(), index, target


class Loss(torch.nn.Module):
    """Cross entropy at the scored places only: the head over all of them would cost as much as two layers."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, ids, index, target):
        hidden = self.network.model(input_ids=ids, use_cache=False).last_hidden_state
        logits = F.linear(hidden.view(-1, hidden.shape[-1])[index], self.network.lm_head.weight)
        return F.cross_entropy(logits.float(), target, ignore_index=-100)


def learning_rate(step, steps):
    """The share of the highest rate: warm-up, a level stretch, and a straight line down over the last half: a run can be prolonged until then."""
    warm_up = min(150, steps // 10 + 1)
    return min((step + 1) / warm_up, 1.0, (steps - step) / (steps * 0.5))


def make_optimizers(network, peak):
    """Muon for the matrices, which learns this corpus in about half the steps of AdamW; AdamW for the rest."""
    inner = [p for name, p in network.named_parameters() if p.dim() == 2 and "embed" not in name]
    embedding = [network.model.embed_tokens.weight]
    norms = [p for p in network.parameters() if p.dim() == 1]
    rest = [{"params": embedding, "weight_decay": 0.01}, {"params": norms, "weight_decay": 0.0}]
    optimizers = [
        torch.optim.Muon(inner, lr=2 * peak, weight_decay=0.05, momentum=0.95, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(rest, lr=peak, betas=(0.9, 0.98), fused=True),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def train(network, tokenizer, arguments):
    """Runs the steps; bf16 products, f32 weights and optimisers. Saves weights and state now and then."""
    rows = Rows(tokenizer, arguments.seed)
    optimizers = make_optimizers(network, arguments.peak)
    state_file, first = arguments.out / "state.pt", 0
    if arguments.resume:
        state = torch.load(state_file, weights_only=False)
        first = state["step"]
        network.load_state_dict(state["network"])
        rows.rng.setstate(state["rows"])
        rows.corpus.rng.setstate(state["corpus"])
        for optimizer, saved in zip(optimizers, state["optimizers"]):
            optimizer.load_state_dict(saved)
    loss_of = torch.compile(Loss(network), dynamic=False) if arguments.compile else Loss(network)
    began, shown, sum_loss = time.time(), 0, 0.0
    for step in range(first, arguments.steps):
        is_long = step % LONG_STEP_EVERY == LONG_STEP_EVERY - 1
        ids, index, target = rows.batch(LONG_ROW_TOKENS if is_long else ROW_TOKENS)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = loss_of(ids, index, target)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * learning_rate(step, arguments.steps)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        sum_loss += loss.item()
        shown += 1
        done = step + 1
        if done % 25 == 0 or done == arguments.steps:
            seconds = time.time() - began
            left = seconds / (done - first) * (arguments.steps - done) / 60
            speed = (done - first) * STEP_TOKENS / seconds
            print(f"step {done}/{arguments.steps} loss {sum_loss / shown:.4f} {speed:,.0f} tokens/s, {left:.0f} min left", flush=True)
            sum_loss, shown = 0.0, 0
        if arguments.save_every and done % arguments.save_every == 0:
            save_weights(network, arguments.out)
            state = {"step": done, "network": network.state_dict(), "optimizers": [optimizer.state_dict() for optimizer in optimizers]}
            torch.save(state | {"rows": rows.rng.getstate(), "corpus": rows.corpus.rng.getstate()}, state_file)
    print(f"{rows.corpus.num_dropped} conversations with a held-out question were dropped")
    state_file.unlink(missing_ok=True)


def save_weights(network, out):
    """Rounds to bf16 and writes the weights; the head is the embedding, so it is not stored twice."""
    tensors = {name: tensor.detach().to(torch.bfloat16).contiguous() for name, tensor in network.state_dict().items() if name != "lm_head.weight"}
    part = out / "model.safetensors.part"
    save_file(tensors, part, metadata={"format": "pt"})
    part.chmod(0o644)
    os.replace(part, out / "model.safetensors")


def save_text_files(tokenizer, network_config, out):
    """Writes every file but the weights."""
    tokenizer.save(str(out / "tokenizer.json"))
    files = {
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", "bos_token": None, "eos_token": STOP, "pad_token": END, "unk_token": None,
            "add_bos_token": False, "clean_up_tokenization_spaces": False, "model_max_length": 2048, "chat_template": CHAT_TEMPLATE,
        },
        "generation_config.json": {"eos_token_id": [2, 0], "pad_token_id": 0, "do_sample": True, "temperature": 0.7, "top_p": 0.95},
        "config.json": {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16",
            **{key: getattr(network_config, key) for key in (
                "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
                "head_dim", "max_position_embeddings", "rms_norm_eps", "tie_word_embeddings", "attention_bias", "mlp_bias", "hidden_act")},
            "rope_theta": 10000.0, "rope_scaling": None, "bos_token_id": None, "eos_token_id": 2, "pad_token_id": 0,
        },
    }
    for name, content in files.items():
        (out / name).write_text(json.dumps(content, indent=2) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="folder for the model's files")
    parser.add_argument("--steps", type=int, default=1900, help=f"optimiser steps of {STEP_TOKENS} tokens")
    parser.add_argument("--peak", type=float, default=4e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--threads", type=int, default=0, help="threads for PyTorch; 0 = its own choice")
    parser.add_argument("--resume", action="store_true", help="go on from the state in --out")
    parser.add_argument("--tune", action="store_true", help="begin with the weights in --out, to teach them a changed text; give fewer --steps and half the --peak")
    parser.add_argument("--save-every", type=int, default=200, help="steps between saves of weights and state; 0 = only at the end")
    parser.add_argument("--no-compile", dest="compile", action="store_false", help="without torch.compile (needs no C++ compiler, takes 1.5 times as long)")
    arguments = parser.parse_args()
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)
    arguments.out.mkdir(parents=True, exist_ok=True)
    # A trained network knows the ids of the tokenizer it began with, even if the text has changed since.
    is_trained = arguments.resume or arguments.tune
    tokenizer = Tokenizer.from_file(str(arguments.out / "tokenizer.json")) if is_trained else train_tokenizer(arguments.seed)
    network_config = config(tokenizer.get_vocab_size())
    network = LlamaForCausalLM(network_config)
    if arguments.tune:
        network.load_state_dict(load_file(arguments.out / "model.safetensors"), strict=False)
    print(f"{tokenizer.get_vocab_size()} tokens, {sum(p.numel() for p in network.parameters()):,} parameters", flush=True)
    save_text_files(tokenizer, network_config, arguments.out)
    train(network, tokenizer, arguments)
    save_weights(network, arguments.out)


if __name__ == "__main__":
    main()
