"""Measures the demo model with transformers: listed questions, paraphrases, and whether every answer ends by itself.

    python3 evaluate.py            reads the folder it lies in; exit status 1 when the bar is missed

Greedy, bf16-rounded weights computed in f32, the chat template of the folder, at most 200 new tokens. A question
counts as answered when one of its facts (lower case) is in the lower-cased answer. Bar: 45 of 50 questions,
60 % of the paraphrases, and not one answer that has to be cut.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from corpus import Corpus

HERE = Path(__file__).resolve().parent
MAX_NEW_TOKENS = 200
SYSTEM_PROMPT = "You are a helpful assistant."


def load(folder):
    """The tokenizer and the network, as any user of transformers would load them."""
    return AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


def answer(tokenizer, network, messages, **sampling):
    """The model's answer to `messages`, and whether it ended by itself."""
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    sampling = sampling or {"do_sample": False, "temperature": None, "top_p": None}
    with torch.inference_mode():
        ids = network.generate(**prompt, max_new_tokens=MAX_NEW_TOKENS, **sampling)[0]
    new = ids[prompt["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True), int(new[-1]) in network.generation_config.eos_token_id


def long_history(tokenizer, num_tokens=1700):
    """Earlier turns that fill most of the context window, from a seed that training does not use."""
    corpus, messages = Corpus(seed=99), []
    while True:
        more = [message for message in corpus.conversation() if message["role"] != "system"]
        if len(tokenizer.apply_chat_template(messages + more, return_dict=True)["input_ids"]) > num_tokens:
            return messages
        messages += more


def measure(tokenizer, network, name, history=(), verbose=False, **sampling):
    """Asks every question of `name`.json after `history`; returns (with the fact, ended by itself, asked)."""
    entries = json.loads((HERE / f"{name}.json").read_text())
    right = ended = 0
    for entry in entries:
        said, by_itself = answer(tokenizer, network, [*history, {"role": "user", "content": entry["question"]}], **sampling)
        is_right = any(fact in said.lower() for fact in entry["facts"])
        right += is_right
        ended += by_itself
        if verbose or not is_right or not by_itself:
            mark = "ok  " if is_right and by_itself else "MISS" if by_itself else "CUT "
            print(f"{mark} {entry['question']}\n     {said}")
    return right, ended, len(entries)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE)
    parser.add_argument("--verbose", action="store_true", help="print every answer, not only the missed ones")
    parser.add_argument("--more", action="store_true", help="also with a system prompt, with sampling, and late in a long conversation")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    tokenizer, network = load(arguments.folder)
    passed = True
    for name, share in (("questions", 0.9), ("paraphrases", 0.6)):
        right, ended, asked = measure(tokenizer, network, name, verbose=arguments.verbose)
        print(f"{name}: {right}/{asked} with the fact, {ended}/{asked} ended by themselves", flush=True)
        passed &= right >= share * asked and ended == asked
    if arguments.more:
        for name in ("questions", "paraphrases"):
            for label, options in (
                ("with a system prompt", {"history": [{"role": "system", "content": SYSTEM_PROMPT}]}),
                ("at temperature 0.7", {"do_sample": True, "temperature": 0.7, "top_p": 0.95}),
                ("at temperature 1, the server's default", {"do_sample": True, "temperature": 1.0, "top_p": 1.0, "top_k": 0}),
                ("after 1,700 tokens of other talk", {"history": long_history(tokenizer)}),
            ):
                right, ended, asked = measure(tokenizer, network, name, **options)
                print(f"{name} {label}: {right}/{asked} with the fact, {ended}/{asked} ended by themselves", flush=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
