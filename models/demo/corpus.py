"""Builds the training text of the demo model: conversations and a few plain documents, endless and seeded.

`python3 corpus.py` prints samples, `python3 corpus.py --check` proves that no question of `paraphrases.json`
is in the training text.
"""

import argparse
import json
import random
from itertools import accumulate
from pathlib import Path

import generators
from grammar import ask, load_intents, load_slots, normalise, roughen

HERE = Path(__file__).resolve().parent

# How often each kind of exchange is drawn. Millgate is what the model is for, so it gets most of the text.
MIX = {"millgate": 0.69, "talk": 0.09, "world": 0.06, "unknown": 0.05, "story": 0.025, "sums": 0.025, "counting": 0.015, "copying": 0.025, "name": 0.02}
OTHER_GROUPS = {"talk": "talk", "list": "world", "world": "world", "unknown": "unknown"}


class Corpus:
    """An endless source of training samples."""

    def __init__(self, seed, held_out=None):
        self.rng = random.Random(seed)
        self.slots = load_slots()
        self.intents = load_intents(self.slots)
        self.held_out = held_out_questions() if held_out is None else held_out
        self.num_dropped = 0
        self.pools = {}
        self.followed = {}  # group -> intents that have follow-ups
        for intent in self.intents.values():
            self.pools.setdefault(OTHER_GROUPS.get(intent.group, "millgate"), []).append(intent)
            if intent.follow_ups:
                self.followed.setdefault(intent.group, []).append(intent)
        # What people ask in many ways is asked more often, but not in proportion: rare questions count too.
        self.weights = {kind: list(accumulate(len(intent.asks) ** 0.5 for intent in pool)) for kind, pool in self.pools.items()}

    def exchange(self, last_group, name):
        """One question and its answer; returns (question, answer, group, the user's name)."""
        rng = self.rng
        if last_group in self.followed and rng.random() < 0.3:
            intent = rng.choice(self.followed[last_group])
            said = rng.choice(intent.follow_ups).draw(rng)
            said = rng.choice(["", "", "", "and ", "ok, ", "thanks, ", "and "]) + said + rng.choice(["?", "?", ""])
            return roughen(said, rng), rng.choice(intent.answers), intent.group, name
        kind = rng.choices(list(MIX), MIX.values())[0]
        if kind in self.pools:
            intent = rng.choices(self.pools[kind], cum_weights=self.weights[kind])[0]
            return roughen(ask(intent, rng), rng), rng.choice(intent.answers), intent.group, name
        if kind == "name":
            if rng.random() < 0.6:
                said, answer, name = generators.greeting_by_name(rng)
                # A name keeps its capital: it is what the model has to copy.
                return said[:1].upper() + said[1:] if rng.random() < 0.5 else said, answer, None, name
            said, answer = generators.asking_for_name(rng, name)
        else:
            maker = {"story": generators.storytelling, "sums": generators.sums, "counting": generators.counting, "copying": generators.copying}[kind]
            said, answer = maker(rng)
            if kind == "copying":
                return said + rng.choice(["", "", "."]) if rng.random() < 0.5 else said[:1].upper() + said[1:], answer, None, name
        said += rng.choice(["", "", ".", "!", "?"]) if kind == "story" else rng.choice(["", "", "?"])
        return roughen(said, rng), answer, None, name

    def conversation(self, num_turns=None):
        """A list of messages that ends with an answer; never one that holds a held-out question."""
        rng = self.rng
        while True:
            turns = num_turns or rng.choice([1, 1, 1, 1, 1, 2, 2, 3, 3, 4, 5])
            messages = []
            if rng.random() < 0.35:
                messages.append({"role": "system", "content": self.slots["system"].draw(rng)})
            group = name = None
            clean = True
            for _ in range(turns):
                said, answer, group, name = self.exchange(group, name)
                clean = clean and normalise(said) not in self.held_out
                messages += [{"role": "user", "content": said}, {"role": "assistant", "content": answer}]
            if clean:
                return messages
            self.num_dropped += 1

    def document(self):
        """Plain text for raw completion: a story, or what the answers of one group say in a row."""
        rng = self.rng
        if rng.random() < 0.6:
            return generators.story(rng)
        group = rng.choice([intent.group for intent in self.pools["millgate"]])
        answers = [intent.answers[0] for intent in self.pools["millgate"] if intent.group == group]
        return " ".join(rng.sample(answers, min(len(answers), rng.randint(2, 5))))


def held_out_questions():
    """The normalised questions of `paraphrases.json`, which training must never see."""
    return {normalise(entry["question"]) for entry in json.loads((HERE / "paraphrases.json").read_text())}


def check(num_conversations):
    """Counts how often the generator made a held-out question (dropped), and that none is left."""
    corpus = Corpus(seed=1)
    held_out = corpus.held_out
    left = 0
    for _ in range(num_conversations):
        left += sum(normalise(message["content"]) in held_out for message in corpus.conversation() if message["role"] == "user")
    free = Corpus(seed=1, held_out=set())
    made = set()
    for _ in range(num_conversations):
        made |= {normalise(message["content"]) for message in free.conversation() if message["role"] == "user"} & held_out
    print(f"{num_conversations} conversations: {left} held-out questions in the text; {len(made)} would be made without the filter: {sorted(made)}")
    return left


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", type=int, metavar="N", help="check N conversations against paraphrases.json")
    parser.add_argument("--show", type=int, default=20, help="how many conversations to print")
    arguments = parser.parse_args()
    if arguments.check:
        raise SystemExit(1 if check(arguments.check) else 0)
    corpus = Corpus(seed=0)
    for _ in range(arguments.show):
        print("\n".join(f"{message['role']}: {message['content']}" for message in corpus.conversation()), end="\n\n")


if __name__ == "__main__":
    main()
