"""The small notation of the text files: patterns with choices, and intents with questions and answers.

A pattern is text with `(a|b)` for a choice, `[a]` or `(a)?` for something that may be left out and
`{name}` for a pattern from `slots.txt`; a `{name}` that is not in there stays as it is.

An intent is a block of lines that begins with `@group.name`. Its lines say how people ask and what the
model answers:

    = noun phrase     asked as "what is X", "explain X", ...     (== for a plural)
    ! verb phrase     asked as "how do I X", "I want to X", ...
    ? question        asked as it is, with polite words around it
    ~ utterance       said as it is
    + follow-up       said only after another intent of the same group, so "it" is clear
    > answer          several lines are equally good answers
"""

import random
import re
from dataclasses import dataclass, field
from pathlib import Path

TEXT_FOLDER = Path(__file__).resolve().parent / "text"
INTENT_FILES = ["about", "keys", "tiers", "limits", "errors", "api", "commands", "engine", "smalltalk", "world", "unknown"]
LINE_KINDS = ("==", "=", "!", "?", "~", "+")


class Choice:
    """One of several alternatives, drawn evenly."""

    def __init__(self, alternatives):
        self.alternatives = alternatives

    def draw(self, rng):
        return "".join(part if isinstance(part, str) else part.draw(rng) for part in rng.choice(self.alternatives))


class Slot:
    """A named pattern, looked up when drawn so that slots may use slots."""

    def __init__(self, name, slots):
        self.name, self.slots = name, slots

    def draw(self, rng):
        pattern = self.slots.get(self.name)
        return pattern.draw(rng) if pattern else "{" + self.name + "}"


def parse_pattern(text, slots):
    """Turns the notation into something that can be drawn from."""
    alternatives, end = _parse_alternatives(text, 0, "", slots)
    if end != len(text):
        raise ValueError(f"unbalanced bracket at {end} in pattern: {text}")
    return Choice(alternatives)


def _parse_alternatives(text, at, closer, slots):
    alternatives, parts = [], []
    while at < len(text) and text[at] not in (closer or "\0"):
        char = text[at]
        if char in "([":
            inner, at = _parse_alternatives(text, at + 1, ")" if char == "(" else "]", slots)
            if at >= len(text):
                raise ValueError(f"bracket is never closed in pattern: {text}")
            at += 1
            optional = char == "["
            if char == "(" and text[at : at + 1] == "?":
                optional, at = True, at + 1
            parts.append(Choice([[Choice(inner)], []] if optional else inner))
        elif char == "|" and closer:
            alternatives.append(parts)
            parts, at = [], at + 1
        elif match := re.match(r"\{(\w+)\}", text[at:]):
            parts.append(Slot(match.group(1), slots))
            at += match.end()
        else:
            parts.append(char)
            at += 1
    return alternatives + [parts], at


@dataclass
class Intent:
    """One thing people may want to know: the ways to ask for it and the answers."""

    name: str
    asks: list = field(default_factory=list)  # (kind, pattern)
    follow_ups: list = field(default_factory=list)
    answers: list = field(default_factory=list)

    @property
    def group(self):
        return self.name.split(".")[0]


def load_slots():
    """Reads `slots.txt` into a dictionary of patterns."""
    slots = {}
    for line in (TEXT_FOLDER / "slots.txt").read_text().splitlines():
        if line.strip() and not line.startswith("#"):
            name, text = line.split(" = ", 1)
            slots[name.strip()] = parse_pattern(text.strip(), slots)
    return slots


def load_intents(slots):
    """Reads all intent files; a block without a question or an answer is an error."""
    intents = {}
    for file in INTENT_FILES:
        current = None
        for line in (TEXT_FOLDER / f"{file}.txt").read_text().splitlines():
            line = line.strip()
            if not line or line.startswith("# "):
                continue
            if line.startswith("@"):
                current = Intent(line[1:])
                if current.name in intents:
                    raise ValueError(f"intent {current.name} is defined twice")
                intents[current.name] = current
                continue
            kind, text = line.split(" ", 1)
            if kind == ">":
                current.answers.append(text)
            elif kind == "+":
                current.follow_ups.append(parse_pattern(text, slots))
            elif kind in LINE_KINDS:
                current.asks.append((kind, parse_pattern(text, slots)))
            else:
                raise ValueError(f"unknown line in {file}.txt: {line}")
    for intent in intents.values():
        if not intent.asks or not intent.answers:
            raise ValueError(f"intent {intent.name} lacks a question or an answer")
    return intents


TASK_FRAMES = """how do I X|how do I X|how can I X|how can I X|how to X|how would I X|how should I X|how does one X
how do you X|how can one X|how do we X|how could I X|what do I do to X|what do I have to do to X|what should I do to X
what must I do to X|what do I need to do to X|I want to X|I need to X|I would like to X|I'd like to X|I'm trying to X
I am trying to X|we want to X|we need to X|I have to X|help me X|help me to X|show me how to X|tell me how to X
explain how to X|what is the way to X|what's the best way to X|what is the easiest way to X|what is the command to X
is there a way to X|is there any way to X|is it possible to X|can I X|may I X|could I X|steps to X|do you know how to X
what are the steps to X|where do I X|where can I X|any idea how to X|X|I don't know how to X|how do people X
what does it take to X|which steps do I take to X|how is it possible to X|what would I do to X|I wish to X
let me X|how might I X|my boss wants me to X|I was asked to X|please X|instructions to X|the way to X
what do I call to X|what do I type to X|what do I run to X""".replace("\n", "|").split("|")

THING_FRAMES = """what is X|what is X|what is X|what's X|what is X exactly|what does X mean|explain X|explain X to me
tell me about X|tell me something about X|tell me what X is|describe X|define X|X|what do you know about X
I don't understand X|help me understand X|can you explain X|what is meant by X|give me a short explanation of X
how does X work|what is X for|what is X good for|what do I need to know about X|info on X|information about X
say something about X|I have a question about X|what about X|what can you tell me about X|I want to know about X
meaning of X|I would like to learn about X|I am curious about X|what does Millgate say about X|what exactly is X
in simple words, what is X|what should I know about X|how would you describe X|I read about X, what is it
I heard of X|what role does X play|could you define X""".replace("\n", "|").split("|")

PLURAL_FRAMES = [frame.replace("is X", "are X").replace("what's X", "what are X").replace("does X", "do X")
                 .replace("X is", "X are").replace("is it", "are they") for frame in THING_FRAMES] + ["which are X", "list X", "name X"]

OPENERS = """please tell me|can you tell me|could you tell me|tell me|hey,|quick question:|I have a question:|question:|hi,
hello,|excuse me,|do you know|please,|ok,|so,|well,|now,|and|hey there,|sorry,|I wonder,|one question:|just wondering,
I want to know,|I would like to know|another question:|next question:|good morning,|thanks,|hello there,
maybe you know,|would you tell me|I was wondering|in Millgate,|with Millgate,|help,|say,|please explain""".replace("\n", "|").split("|")

CLOSERS = """please|thanks|in Millgate|with Millgate|here|in short|exactly|again|by the way|on this server|then
for me|now|today|in general|if I may ask|do you know|thank you|in one sentence|briefly|can you tell me""".replace("\n", "|").split("|")


def ask(intent, rng):
    """One way to ask for `intent`: a pattern, the frame of its kind, perhaps polite words around it."""
    kind, pattern = rng.choice(intent.asks)
    text = pattern.draw(rng)
    if kind == "~":
        return _tidy(text)
    frames = {"=": THING_FRAMES, "==": PLURAL_FRAMES, "!": TASK_FRAMES}.get(kind)
    if frames:
        text = rng.choice(frames).replace("X", text, 1)
    if rng.random() < 0.25:
        text = rng.choice(OPENERS) + " " + text
    if rng.random() < 0.12:
        text = text + rng.choice([" ", " ", ", "]) + rng.choice(CLOSERS)
    text = _vary_words(_tidy(text), rng)
    if rng.random() < 0.05:
        text = rng.choice(LEADS) + " " + text
    if rng.random() < 0.04:
        return text + ", " + rng.choice(TAILS) + rng.choice(["?", ""])
    if rng.random() < 0.05:
        return _keywords(text)
    # Orders end in a full stop or nothing, questions mostly in a question mark.
    return text + rng.choice(["?", "?", "?", ""] if re.match(r"(?i)(what|how|which|who|why|when|where|is|are|can|do|does|may|could)\b", text) else ["", "", ".", "?"])


def _vary_words(text, rng):
    """Swaps a few words for others that mean about the same."""
    def vary(match):
        others = SYNONYMS.get(match.group(0).lower())
        return rng.choice(others.split("|")) if others and rng.random() < 0.12 else match.group(0)

    return re.sub(r"[A-Za-z]+", vary, text)


def _keywords(text):
    """What somebody types who is used to search engines: only the words that matter."""
    small = "i a an the is are do does can how what which to of for in on my me you it please tell with by would could should we".split()
    left = [word for word in text.split() if word.lower().strip("?,.") not in small]
    return " ".join(left) if len(left) > 1 else text


def _tidy(text):
    return re.sub(r"\s+", " ", text).strip()


LEADS = """I am new here.|I'm new to this.|I have a small team.|We are three people.|My boss asked me.|I am a beginner.
I read the README.|I tried it yesterday.|I just installed it.|I am a developer.|I am an administrator.|I work at a company.
This may be a silly question.|I could not find it in the docs.|Sorry to ask.|I am lost.|I have one more thing.|Ok.|Help!
I am in a hurry.|It is my first day.|I run a small lab.|As a user,|For my project,|Before I start,|To be sure,|Just to check,
For a start,|As an admin,|One thing,|Let me see,|At work,|In my app,|On my machine,""".replace("\n", "|").split("|")

TAILS = """any ideas|help|what now|can you help|I wonder|right|or not|please help|tell me|just curious|thanks in advance
if possible|that is my question|how|you know|is what I want to know|quickly""".replace("\n", "|").split("|")

# Words that may stand for each other in a question whatever it is about, so that the network learns to look past them.
SYNONYMS = {
    "create": "make|set up|generate|produce|add", "delete": "remove|erase|drop|get rid of", "show": "display|print|reveal|give",
    "server": "service|program|thing|system", "start": "begin|launch|run|open", "stop": "halt|end|finish",
    "find": "discover|locate|get", "see": "view|look at|check|find out", "use": "employ|work with|apply|take", "get": "obtain|receive|have",
    "change": "modify|alter|adjust|switch", "need": "require|want|have to have", "kind": "sort|type", "happens": "occurs|goes on|comes next",
    "stored": "kept|saved|held", "tell": "inform|say to", "allowed": "permitted|able", "may": "can|could|am I allowed to",
    "answer": "reply|response|output|result", "user": "person|customer|member", "users": "people|customers|members", "many": "lots of|a lot of",
    "long": "much time", "fast": "quick|quickly", "why": "how come|for what reason", "explain": "clarify|describe|tell me",
    "which": "what", "what": "which", "must": "should|do I have to|need to", "want": "wish|would like|need", "wait": "pause|hold on",
    "exist": "are out there|can I have", "work": "function|operate", "works": "functions|operates", "send": "post|submit|pass", "list": "show|enumerate|give me",
    "lost": "misplaced|forgot|mislaid", "again": "once more|another time|a second time", "request": "call|query", "requests": "calls|queries",
    "limit": "cap|maximum|limitation", "error": "failure|problem|message", "command": "instruction|line", "model": "LLM|network", "folder": "directory",
    "everybody": "everyone|all people", "somebody": "someone|anyone", "computer": "machine|box|PC", "exactly": "precisely|actually", "default": "standard|usual",
    "begin": "start", "called": "named", "small": "little|tiny", "quit": "leave", "large": "big", "speak": "talk", "load": "open|bring in",
    "difference": "distinction", "purpose": "point|goal|aim", "reach": "access|contact", "support": "offer|handle|know", "supported": "possible|available",
}

KEYBOARD = {"a": "sq", "e": "wr", "i": "uo", "o": "ip", "t": "ry", "n": "bm", "s": "ad", "r": "et", "l": "k", "u": "yi"}


def roughen(text, rng):
    """What people do to a sentence when they type: case, missing marks, dropped little words, slips."""
    draw = rng.random()
    if draw < 0.45:
        text = text.lower()
    elif draw < 0.85:
        text = text[:1].upper() + text[1:]
    elif draw < 0.87:
        text = text.upper()
    if rng.random() < 0.08:
        text = re.sub(r"\b(the|a|an|do|does|is|to|my) ", lambda m: "" if rng.random() < 0.6 else m.group(0), text)
    if rng.random() < 0.10:
        text = re.sub(r"(?i)\b(what|how|who|where) is\b", r"\1's", text)
    if rng.random() < 0.05:
        text = text.replace(" you ", " u ").replace("please", "pls").replace(" are ", " r ")
    if rng.random() < 0.12:
        for _ in range(rng.choice([1, 1, 2])):
            text = _slip(text, rng)
    return text


def _slip(text, rng):
    """One typing slip inside a word of four letters or more."""
    words = [match for match in re.finditer(r"[A-Za-z]{4,}", text)]
    if not words:
        return text
    word = rng.choice(words)
    at = rng.randrange(word.start() + 1, word.end() - 1)
    kind = rng.random()
    if kind < 0.35:
        return text[:at] + text[at + 1] + text[at] + text[at + 2 :]
    if kind < 0.65:
        return text[:at] + text[at + 1 :]
    if kind < 0.85:
        return text[:at] + text[at] + text[at:]
    return text[:at] + rng.choice(KEYBOARD.get(text[at].lower(), text[at])) + text[at + 1 :]


def normalise(text):
    """A text without case, marks and spacing: what counts as the same question."""
    return " ".join(re.findall(r"[a-z0-9/_.:-]+", text.lower())).strip(".:- ")


if __name__ == "__main__":
    all_slots = load_slots()
    shower = random.Random(0)
    for shown in load_intents(all_slots).values():
        print(f"{shown.name:20} {roughen(ask(shown, shower), shower)}  ->  {shown.answers[0]}")
