"""Writes models/testdata/text: tiny vocabularies, and the token ids, texts and prompts Hugging Face's own code makes.

Needs: transformers, tokenizers, sentencepiece, protobuf, gguf, jinja2. Run from anywhere: python3 models/scripts/make_text_testdata.py
"""

import datetime
import io
import json
import random
import shutil
from pathlib import Path

import gguf
import sentencepiece
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import GPT2Tokenizer, LlamaTokenizer, PreTrainedTokenizerFast, Qwen2Tokenizer
from transformers.convert_slow_tokenizer import import_protobuf
from transformers.integrations.gguf.gguf_tokenizer_mapping import GGUF_PRE_TOKENIZER_SPLITS
from transformers.tokenization_utils_base import generate_merges
from transformers.utils import chat_template_utils

OUT = Path(__file__).resolve().parent.parent / "testdata" / "text"

# What the vocabularies are trained on; we wrote it for this purpose.
CORPUS = """
The server answers questions about keys, tiers and limits. It's a small model, and it doesn't know everything.
We've measured 128 tokens in 2048 steps; they're counted in 1,234,567 pieces. I'll say: don't stop, I'M HERE, YOU'RE THERE.
Сервер отвечает на вопросы о ключах и пределах. Он не знает всего, но старается отвечать коротко и точно.
Ключ показывают один раз, потом хранится только отпечаток. Сколько стоит запрос? Сто двадцать восемь токенов.
服务器回答关于密钥和限制的问题。它不知道一切，但是会尽量回答。今天天气很好，我们去公园走走吧。
サーバーは鍵と制限についての質問に答えます。小さなモデルですが、できるだけ短く答えます。
يجيب الخادم عن الأسئلة حول المفاتيح والحدود. لا يعرف كل شيء لكنه يحاول أن يجيب بإيجاز.
सर्वर कुंजियों और सीमाओं के बारे में सवालों के जवाब देता है। यह सब कुछ नहीं जानता, पर कोशिश करता है।
서버는 키와 한도에 대한 질문에 답합니다. 작은 모델이지만 짧게 대답하려고 합니다.
fn main() { let total: u32 = (0..10).map(|x| x * x).sum(); println!("{total}"); } // end
def answer(question):\n    if question is None:\n        return "nothing"\n    return question.strip()\n
for (i = 0; i < n; i++) { a[i] += b[i] << 2; } /* http://localhost:8080/v1/chat/completions?x=1&y=2 */
Crème brûlée, naïve façade, Ångström, Straße, żółć, ½ cup, x² + y³ = z⁴, ①②③, ٣٤٥, १२३.
👍🏽 👩‍👩‍👧‍👦 🇩🇪 ❤️ 🙂🙂 — “quotes” … and ‘more’ • bullets → arrows.
"""

TEXTS = [
    "",
    " ",
    "a",
    "Hello, world!",
    " leading and trailing ",
    "  two spaces,   three,\ttab\t\ttabs\n\nnewlines\r\nand carriage returns \n \n  end   ",
    "I'm sure they're right; we've seen it, he'd say she'll go, don't you? IT'S 'tis O'Neil's 'S 'LL 'Re",
    "1 12 123 1234 12345 1234567890 3.14159 1,000,000 0xFF 1e-9 v2.0.1 ½ ² ٣٤٥ १२३ ①②③ Ⅷ",
    "Сервер отвечает на вопросы, 128 токенов! Ёжик и щука. ПРИВЕТ",
    "服务器回答关于密钥的问题。今天天气很好，我们去公园走走吧！123元",
    "サーバーは鍵と制限についての質問に答えます。カタカナ、ひらがな、漢字",
    "서버는 키와 한도에 대한 질문에 답합니다.",
    "يجيب الخادم عن الأسئلة حول المفاتيح والحدود، ١٢٣.",
    "सर्वर कुंजियों और सीमाओं के बारे में सवालों के जवाब देता है। क्षत्रिय",
    "👍🏽 👩‍👩‍👧‍👦 🇩🇪🇫🇷 ❤️ 🏳️‍🌈 🙂🙂🙂 ok👌ok",
    "fn main() {\n    let x: Vec<u32> = (0..10).map(|x| x * x).collect();\n\tprintln!(\"{x:?}\");\n}\n",
    "def f(a, b=None):\n    return {**a, 'k': [1, 2]} if b is not None else a[::-1]\n\n\n# done",
    "https://example.org/v1/chat?x=1&y=%20#frag user@mail.example C:\\path\\file.txt a/b//c",
    "e\u0301 vs \u00e9, A\u030a vs \u00c5, \u1112\u1161\u11ab vs \ud55c, \u0958 \ufb01 \u212b",
    "\u00a0non-breaking\u2003em space\u3000ideographic\u200bzero\u2028line\u2029para\u0085next",
    "!!!??? ... --- ___ ### $$$ %%% ^^^ &&& *** ((())) [[[]]] <<<>>> ~~~ ``` ||| +++===",
    "Crème brûlée naïve façade Ångström Straße żółć Ǆ ǅ ǆ ʰ ª º",
    "word" * 40,
    " " * 33 + "x",
    "\n" * 9 + "y" + "\r\n" * 3,
    "x\x00y\x01z\x7f\ufeff\ufffd",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𓀀 𠀀 \U0010fffd",
    "▁marker ▁▁ two, Ġ and Ċ letters, <0x41> <unk> literal",
    "The answer is<|end|>not here <|end|> nor<think>inside</think> it.",
    "MixedCASE camelCase snake_case SCREAMING_CASE iPhone McDonald's HTTPServer2Go",
]


def random_texts():
    dice = random.Random(20240229)
    alphabet = list("abcXYZ  \n\t'.,!0129éßИж漢字かعरา👍‍️-_/\\\"()") + ["'s", "'LL", "  ", "\r\n", "the ", " tokens"]
    return ["".join(dice.choice(alphabet) for _ in range(dice.randint(1, 60))) for _ in range(40)]


def bytes_to_chars():
    own = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {b: chr(b) for b in own}
    rest = [b for b in range(256) if b not in table]
    return {**table, **{b: chr(256 + n) for n, b in enumerate(rest)}}


def train_bpe():
    """One byte-level vocabulary for every way of cutting: trained on whole lines, so that any wrong cut shows."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\S+ ?\S*|\s+"), "isolated"),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    trainer = trainers.BpeTrainer(vocab_size=256 + 900, initial_alphabet=sorted(bytes_to_chars().values()), show_progress=False)
    tokenizer.train_from_iterator((CORPUS.splitlines(keepends=True) + ["the  \n\n", "12 123 1234 ", "   x", "'s's"]) * 2, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    vocab = model["vocab"]
    tokens = [token for token, _ in sorted(vocab.items(), key=lambda item: item[1])]
    merges = [" ".join(pair) for pair in model["merges"]]
    # Whole pieces that no merge reaches: only a vocabulary that ignores merges uses them.
    tokens += ["Ġwhole", "MixedCASE", "camelCase"]
    types = [1] * len(tokens)
    for token, kind in [("<|begin|>", 3), ("<|end|>", 3), ("<think>", 4), ("</think>", 4)]:
        tokens.append(token)
        types.append(kind)
    return tokens, types, merges


GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def hf_bpe(pre, tokens, merges):
    """The Hugging Face tokenizer of the family that `pre` stands for."""
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]
    if pre == "qwen2":
        return Qwen2Tokenizer(vocab=vocab, merges=pairs, unk_token=None, eos_token=None, pad_token=None).backend_tokenizer
    if pre == "gpt-2":
        return GPT2Tokenizer(vocab=vocab, merges=pairs, unk_token=None, bos_token=None, eos_token=None).backend_tokenizer
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=pairs, ignore_merges=pre in ("llama-bpe", "tekken")))
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    if pre == "smollm":
        cut = [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
    elif pre == "default":
        # Falcon's cutting, the one llama.cpp falls back to.
        steps = [r"[\p{P}\$\+<=>\^~\|]+", GPT2_SPLIT, r"\p{N}+", "[0-9][0-9][0-9]"]
        cut = [pre_tokenizers.Split(Regex(step), "isolated") for step in steps] + [byte_level]
    else:
        cut = [pre_tokenizers.Split(Regex(GGUF_PRE_TOKENIZER_SPLITS[pre]), "isolated"), byte_level]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(cut)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def add_gguf_tokens(tokenizer, tokens, types):
    for kind, special in [(3, True), (4, False)]:
        chosen = [AddedToken(t, normalized=False, special=special) for t, k in zip(tokens, types) if k == kind]
        tokenizer.add_special_tokens(chosen) if special else tokenizer.add_tokens(chosen)


def encode_all(tokenizer, texts):
    return [tokenizer.encode(text, add_special_tokens=False).ids for text in texts]


def make_bpe(texts):
    tokens, types, merges = train_bpe()
    cases = {}
    for pre in ["default", "gpt-2", "llama-bpe", "qwen2", "tekken", "smollm"]:
        tokenizer = hf_bpe(pre, tokens, merges)
        add_gguf_tokens(tokenizer, tokens, types)
        ids = encode_all(tokenizer, texts)
        cases[pre] = {"ids": ids, "decoded": [tokenizer.decode(row, skip_special_tokens=True) for row in ids]}
    # Different families must differ, or the file would not notice a wrong cut.
    assert len({json.dumps(case["ids"]) for case in cases.values()}) == len(cases)
    write("bpe.json", {"kind": "gpt2", "tokens": tokens, "token_types": types, "merges": merges, "cases": cases})
    return tokens, types, merges


def train_spm():
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS.splitlines()), model_writer=model, model_type="bpe", vocab_size=900,
        byte_fallback=True, character_coverage=0.98, normalization_rule_name="identity", remove_extra_whitespaces=False,
        split_digits=True, allow_whitespace_only_pieces=True, user_defined_symbols=["<think>", "</think>"],
        control_symbols=["<|end|>"], minloglevel=2,
    )
    return model.getvalue()


def hf_spm(pieces, prefix):
    """What the tokenizer.json of the original Llama models holds, with merges as transformers derives them."""
    vocab = {piece.piece: index for index, piece in enumerate(pieces)}
    scores = {piece.piece: piece.score for piece in pieces}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=generate_merges(vocab, scores), unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    marker = normalizers.Replace(" ", "▁")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), marker] if prefix else [marker])
    strip = [decoders.Strip(content=" ", left=1)] if prefix else []
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    kinds = {2: True, 3: True, 4: False}
    for piece in pieces:
        if piece.type in kinds:
            special = kinds[piece.type]
            added = [AddedToken(piece.piece, normalized=False, special=special)]
            tokenizer.add_special_tokens(added) if special else tokenizer.add_tokens(added)
    return tokenizer


def make_spm(texts):
    blob = train_spm()
    proto = import_protobuf().ModelProto()
    proto.ParseFromString(blob)
    pieces = proto.pieces
    variants = {}
    for name, prefix in [("prefix", True), ("no_prefix", False)]:
        tokenizer = hf_spm(pieces, prefix)
        ids = encode_all(tokenizer, texts)
        variants[name] = {"ids": ids, "decoded": [tokenizer.decode(row, skip_special_tokens=True) for row in ids]}
    # Independent of the converter: SentencePiece itself, on text without the names of special tokens.
    processor = sentencepiece.SentencePieceProcessor(model_proto=blob)
    plain = [i for i, t in enumerate(texts) if t and not any(name in t for name in ("<|end|>", "<unk>", "▁", "\x00"))]
    differing = [texts[i] for i in plain if processor.encode(texts[i]) != variants["prefix"]["ids"][i]]
    print(f"sentencepiece itself agrees on {len(plain) - len(differing)} of {len(plain)} texts; differs on {differing!r}")
    metadata = {"kind": "llama", "tokens": [p.piece for p in pieces], "scores": [p.score for p in pieces],
                "token_types": [p.type for p in pieces]}
    write("spm.json", {**metadata, "variants": variants})
    write_gguf(metadata)


def write_gguf(metadata):
    writer = gguf.GGUFWriter(OUT / "vocabulary.gguf", "llama")
    writer.add_tokenizer_model(metadata["kind"])
    writer.add_token_list(metadata["tokens"])
    writer.add_token_scores(metadata["scores"])
    writer.add_token_types(metadata["token_types"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(True)
    writer.add_chat_template("{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


CHATML = """{% for message in messages %}{{ '<|begin|>' + message['role'] + '\\n' + message['content'] + '<|end|>' + '\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|begin|>assistant\\n' }}{% endif %}"""


def make_folders(texts, tokens, merges):
    """Complete model folders as transformers saves them."""
    shutil.rmtree(OUT / "folders", ignore_errors=True)
    # A small part of the vocabulary keeps the files small.
    merges = merges[:350]
    tokens = [t for t in tokens if len(t) == 1] + ["".join(m.split(" ")) for m in merges]
    tokens = list(dict.fromkeys(tokens))
    vocab = {token: index for index, token in enumerate(tokens)}
    pairs = [tuple(merge.split(" ")) for merge in merges]

    llama3 = hf_bpe("llama-bpe", tokens, merges)
    llama3.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in ("<|begin|>", "<|end|>")])
    begin = llama3.token_to_id("<|begin|>")
    llama3.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin|> $A", pair="<|begin|> $A <|begin|> $B", special_tokens=[("<|begin|>", begin)]),
    ])
    fast = PreTrainedTokenizerFast(tokenizer_object=llama3, bos_token="<|begin|>", eos_token="<|end|>", chat_template=CHATML)
    save_folder("llama3", fast, texts, {"generation_config.json": {"eos_token_id": [begin + 1, 3]}, "config.json": {"eos_token_id": 9}})

    qwen = Qwen2Tokenizer(vocab={**vocab, "<|end|>": len(vocab)}, merges=pairs, unk_token=None, eos_token="<|end|>", pad_token=None)
    qwen.chat_template = CHATML
    save_folder("qwen2", qwen, texts, {"config.json": {"eos_token_id": 7}})

    spm = json.loads((OUT / "spm.json").read_text())
    spm_vocab = {token: index for index, token in enumerate(spm["tokens"])}
    spm_merges = generate_merges(spm_vocab, dict(zip(spm["tokens"], spm["scores"])))
    llama = LlamaTokenizer(vocab=spm_vocab, merges=spm_merges, legacy=False, add_bos_token=True)
    save_folder("llama2", llama, texts, {})


def save_folder(name, tokenizer, texts, extra):
    folder = OUT / "folders" / name
    tokenizer.save_pretrained(folder)
    for file in folder.iterdir():
        if file.name == "tokenizer.json":
            compact = json.loads(file.read_text())
            file.write_text(json.dumps(compact, ensure_ascii=False, separators=(",", ":")) + "\n")
    for file, content in extra.items():
        (folder / file).write_text(json.dumps(content) + "\n")
    fast = tokenizer.backend_tokenizer
    ids = [tokenizer(text)["input_ids"] for text in texts]
    messages = [{"role": "user", "content": "Hello, world!"}]
    write(f"folders/{name}/expected.json", {
        "ids": ids,
        "ids_rendered": encode_all(fast, texts),
        "decoded": [fast.decode(row, skip_special_tokens=True) for row in ids],
        "decoded_with_special": [fast.decode(row, skip_special_tokens=False) for row in ids],
        "prompt": tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) if tokenizer.chat_template else None,
    })


def conversation(*pairs):
    return [{"role": role, "content": content} for role, content in pairs]


CHATS = {
    "one turn": conversation(("user", "  Hi there!  ")),
    "system": conversation(("system", "Be brief.\n"), ("user", "Hello")),
    "several turns": conversation(("system", "S"), ("user", "one"), ("assistant", " two "), ("user", "three\n\nfour")),
    "thinking": conversation(("user", "Q"), ("assistant", "<think>\nhm\n</think>\n\nA"), ("user", "again <think> &amp; \"quoted\" 漢字 👍")),
    "wrong order": conversation(("assistant", "me first"), ("user", "Hello")),
    "unknown role": conversation(("robot", "beep")),
    "named": [{"role": "user", "content": "x", "name": "Ann"}],
    "empty": [],
}


def make_templates():
    sources = {path.stem: path.read_text() for path in sorted((OUT / "templates").glob("*.jinja"))}
    cases = []
    # The date is fixed, as the test's clock is.
    class Fixed(datetime.datetime):
        @classmethod
        def now(cls, tz=None):
            return cls(2024, 2, 29, 13, 5, 9)
    chat_template_utils.datetime = Fixed
    for name, source in sources.items():
        for chat, messages in CHATS.items():
            for generate in (True, False):
                case = {"template": name, "chat": chat, "messages": messages, "add_generation_prompt": generate}
                try:
                    rendered, _ = chat_template_utils.render_jinja_template(
                        [messages], chat_template=source, add_generation_prompt=generate, bos_token="<s>", eos_token="</s>")
                    case["prompt"] = rendered[0]
                except Exception as error:
                    if type(error).__name__ != "TemplateError":
                        raise
                    case["raised"] = str(error)
                cases.append(case)
    write("templates.json", cases)


def write(name, content):
    (OUT / name).write_text(json.dumps(content, ensure_ascii=False, separators=(",", ":")) + "\n")


def main():
    texts = TEXTS + random_texts()
    write("texts.json", texts)
    tokens, types, merges = make_bpe(texts)
    make_spm(texts)
    make_folders(texts, tokens, merges)
    make_templates()


if __name__ == "__main__":
    main()
