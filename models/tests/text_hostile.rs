//! Broken and hostile tokenizer files, and texts meant to be slow: an error or an answer, never a panic or a hang.

use std::time::{Duration, Instant};

use millgate_models::text::{GgufTokenizer, TextError, Tokenizer};
use serde_json::{Value, json};

use crate::text::{bpe, spm, testdata};

const FOLDERS: [&str; 3] = ["llama3", "qwen2", "llama2"];

fn tokenizer_json(folder: &str) -> Vec<u8> {
    std::fs::read(testdata("folders").join(folder).join("tokenizer.json")).unwrap()
}

/// A small generator of its own, so that a failure comes back with the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from((self.0 >> 33) % limit as u64).unwrap()
    }
}

/// Loads it if it loads, and then uses it: no panic either way.
fn try_out(bytes: &[u8]) {
    let Ok(tokenizer) = Tokenizer::from_json(bytes) else { return };
    for text in ["", " Hello, wörld! 123 \n\n  漢字 👍", "<|end|><think>x</think>▁", "<0x41>"] {
        let Ok(ids) = tokenizer.encode(text) else { continue };
        let _ = tokenizer.encode_rendered(text);
        tokenizer.decode(&ids, true);
        tokenizer.decode(&ids, false);
    }
    tokenizer.decode(&[0, 1, u32::MAX, 7], false);
}

#[test]
fn a_truncated_tokenizer_json_is_refused_at_every_length() {
    for folder in FOLDERS {
        let bytes = tokenizer_json(folder);
        for length in (0..bytes.trim_ascii_end().len()).step_by(397) {
            let error = Tokenizer::from_json(&bytes[..length]).unwrap_err();
            assert!(error.to_string().contains("tokenizer.json"), "{error}");
        }
    }
}

#[test]
fn a_tokenizer_json_with_flipped_bytes_never_panics() {
    let mut dice = Dice(1);
    for folder in FOLDERS {
        let bytes = tokenizer_json(folder);
        for _ in 0..120 {
            let mut broken = bytes.clone();
            for _ in 0..=dice.below(4) {
                let position = dice.below(broken.len());
                broken[position] = u8::try_from(dice.below(256)).unwrap();
            }
            try_out(&broken);
        }
    }
}

#[test]
fn a_tokenizer_json_with_absurd_values_never_panics() {
    let absurd = [
        json!(null),
        json!(-1),
        json!(0),
        json!(1),
        json!(4_294_967_295u64),
        json!(18_446_744_073_709_551_615u64),
        json!(1e300),
        json!(""),
        json!("x"),
        json!("漢"),
        json!("("),
        json!("$A"),
        json!([]),
        json!({}),
        json!(true),
        json!([0, 0]),
        json!(["a", "b"]),
        json!({"String": ""}),
        json!({"Regex": "(?:"}),
        json!({"type": "Sequence"}),
        json!({"type": "FixedLength", "length": 0}),
        json!({"type": "Strip", "content": " ", "start": 9, "stop": 9}),
        json!({"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true}),
        json!({"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        json!({"type": "Precompiled", "precompiled_charsmap": "/////w=="}),
        json!({"type": "Replace", "pattern": {"String": ""}, "content": "xx"}),
        json!({"type": "Truncate"}),
        json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "first"}),
    ];
    let mut dice = Dice(2);
    for folder in FOLDERS {
        let good: Value = serde_json::from_slice(&tokenizer_json(folder)).unwrap();
        let mut pointers = Vec::new();
        collect(&good, String::new(), &mut pointers);
        for _ in 0..500 {
            let mut broken = good.clone();
            for _ in 0..=dice.below(2) {
                let pointer = &pointers[dice.below(pointers.len())];
                if let Some(node) = broken.pointer_mut(pointer) {
                    *node = absurd[dice.below(absurd.len())].clone();
                }
            }
            try_out(broken.to_string().as_bytes());
        }
    }
}

/// Pointers to every node, but only to a few of each long list or table.
fn collect(node: &Value, pointer: String, out: &mut Vec<String>) {
    match node {
        Value::Object(fields) => {
            for (key, value) in fields.iter().take(16) {
                let key = key.replace('~', "~0").replace('/', "~1");
                collect(value, format!("{pointer}/{key}"), out);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate().take(4) {
                collect(value, format!("{pointer}/{index}"), out);
            }
        }
        _ => {}
    }
    out.push(pointer);
}

fn with(change: impl FnOnce(&mut Value)) -> Result<Tokenizer, TextError> {
    let mut value: Value = serde_json::from_slice(&tokenizer_json("llama3")).unwrap();
    change(&mut value);
    Tokenizer::from_json(value.to_string().as_bytes())
}

#[test]
fn what_is_wrong_with_a_tokenizer_json_is_said() {
    type Change = fn(&mut Value);
    let cases: [(Change, &str); 9] = [
        (|json| json["model"]["vocab"]["a"] = json!(4_000_000_000u64), "4000000000"),
        (|json| json["added_tokens"][0]["id"] = json!(4_294_967_295u64), "4294967295"),
        (|json| json["model"]["merges"][0] = json!(["nowhere", "a"]), "nowhere"),
        (|json| json["model"]["continuing_subword_prefix"] = json!("##########"), "prefix"),
        (|json| json["model"]["dropout"] = json!(0.1), "dropout"),
        (|json| json["model"]["unk_token"] = json!("<gone>"), "<gone>"),
        (|json| json["decoder"] = json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), "WordPiece"),
        (|json| json["decoder"] = json!(null), "decoder"),
        (|json| json["version"] = json!("9.0"), "9.0"),
    ];
    for (change, expected) in cases {
        let error = with(change).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
    assert!(Tokenizer::from_json(deep.as_bytes()).is_err());
    assert!(Tokenizer::from_json(b"\xff\xfe").is_err());
}

#[test]
fn settings_that_would_cut_or_pad_prompts_are_not_followed() {
    let tokenizer = with(|json| {
        json["truncation"] = json!({"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0});
        json["padding"] = json!({"strategy": {"Fixed": 50}, "direction": "Right", "pad_to_multiple_of": null,
            "pad_id": 0, "pad_type_id": 0, "pad_token": "!"});
    })
    .unwrap();
    let plain = Tokenizer::from_json(&tokenizer_json("llama3")).unwrap();
    let text = "more than three tokens of text";
    assert_eq!(tokenizer.encode(text).unwrap(), plain.encode(text).unwrap());
}

#[test]
fn gguf_metadata_that_contradicts_itself_is_refused() {
    type Change = fn(&mut GgufTokenizer);
    let cases: [(Change, &str); 12] = [
        (|bpe| bpe.tokens.clear(), "no tokens"),
        (|bpe| bpe.merges.clear(), "merges"),
        (|bpe| bpe.merges[3] = "nospace".into(), "nospace"),
        (|bpe| bpe.merges[3] = " x".into(), "two pieces"),
        (|bpe| bpe.merges[3] = "no where".into(), "no"),
        (|bpe| bpe.merges[3] = format!("{} y", "x".repeat(1 << 20)), "xxx"),
        (|bpe| bpe.token_types.truncate(5), "token_type"),
        (|bpe| bpe.scores = vec![0.0; 3], "scores"),
        (|bpe| bpe.bos_token_id = Some(u32::MAX), "bos"),
        (|bpe| bpe.eot_token_id = Some(9_999_999), "eot"),
        (|bpe| bpe.kind = "llama".into(), "scores"),
        (|bpe| bpe.kind = String::new(), "tokenizer.ggml.model"),
    ];
    for (change, expected) in cases {
        let mut metadata = bpe(Some("gpt-2"));
        change(&mut metadata);
        let error = Tokenizer::from_gguf(&metadata).unwrap_err().to_string();
        assert!(error.contains(expected), "{expected}: {error}");
        assert!(error.len() < 2_000, "an error of {} bytes", error.len());
    }
}

#[test]
fn odd_but_consistent_gguf_metadata_works() {
    let mut metadata = spm();
    // Equal tokens, an empty one, scores that are no numbers, a token of a megabyte, types nobody knows.
    metadata.tokens[300] = metadata.tokens[299].clone();
    metadata.tokens[301] = String::new();
    metadata.tokens[302] = "x".repeat(1 << 20);
    for (id, score) in [(303, f32::NAN), (304, f32::INFINITY), (305, f32::NEG_INFINITY)] {
        metadata.scores[id] = score;
    }
    metadata.token_types[306] = -7;
    let tokenizer = Tokenizer::from_gguf(&metadata).unwrap();
    let ids = tokenizer.encode("The server answers questions.").unwrap();
    assert_eq!(tokenizer.decode(&ids, true), "The server answers questions.");
    assert_eq!(tokenizer.token_bytes(300), tokenizer.token_bytes(299));
    assert_eq!(tokenizer.token_bytes(301), Some(b"".as_slice()));
}

#[test]
fn no_text_is_slow_to_tokenize() {
    let texts = [
        "a".repeat(1 << 16),
        " ".repeat(1 << 16),
        "\n ".repeat(1 << 15),
        "1".repeat(1 << 16),
        "!?".repeat(1 << 15),
        "e\u{301}".repeat(1 << 16),
        "\u{301}".repeat(1 << 16),
        "漢".repeat(1 << 16),
        "<|end|>".repeat(1 << 16),
        "<|end".repeat(1 << 16),
        "aB".repeat(1 << 15),
        "'".repeat(1 << 16),
    ];
    let mut tokenizers = vec![Tokenizer::from_gguf(&spm()).unwrap()];
    for pre in ["default", "llama-bpe", "qwen2", "tekken"] {
        tokenizers.push(Tokenizer::from_gguf(&bpe(Some(pre))).unwrap());
    }
    for (number, tokenizer) in tokenizers.iter().enumerate() {
        for text in &texts {
            let started = Instant::now();
            let ids = tokenizer.encode_rendered(text);
            let took = started.elapsed();
            let head: String = text.chars().take(4).collect();
            assert!(took < Duration::from_secs(20), "tokenizer {number}: {took:?} for {head:?}...");
            if let Ok(ids) = ids {
                assert!(text.len() <= ids.len().saturating_mul(tokenizer.max_token_bytes()), "{number}: {head:?}");
            }
        }
    }
}

#[test]
fn models_of_other_kinds_with_odd_vocabularies_never_panic() {
    let models = [
        json!({"type": "Unigram", "unk_id": null, "vocab": [["", 0.0], ["a", -1.0]]}),
        json!({"type": "Unigram", "unk_id": 0, "vocab": [["", 0.0], ["", -1.0], ["a", -2.0]]}),
        json!({"type": "Unigram", "unk_id": 0, "vocab": [["a", 1e308], ["aa", -1e308], ["▁", 1e308], ["H", 1e308]]}),
        json!({"type": "Unigram", "unk_id": 1, "vocab": [["<0x41>", -1.0], ["x", 0.0]], "byte_fallback": true}),
        json!({"type": "Unigram", "unk_id": 0, "vocab": [["漢", 0.0], ["漢字", 0.0], ["\u{0}", 3.0]]}),
        json!({"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "##",
            "max_input_chars_per_word": 0, "vocab": {"": 0, "##": 1, "H": 2}}),
        json!({"type": "WordPiece", "unk_token": "?", "continuing_subword_prefix": "",
            "max_input_chars_per_word": 100, "vocab": {"": 0, "?": 1, "e": 7}}),
        json!({"type": "WordLevel", "unk_token": "?", "vocab": {"": 3, "Hello": 3}}),
        json!({"type": "BPE", "vocab": {"": 0, "a": 1, "H": 2, "e": 3, "He": 3}, "merges": [["", ""], ["H", "e"]]}),
        json!({"type": "BPE", "vocab": {"H": 2, "e": 3, "He": 2}, "merges": ["H e"], "ignore_merges": true}),
    ];
    let metaspace = json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": true});
    let pre_tokenizers = [
        json!(null),
        metaspace.clone(),
        json!({"type": "Split", "pattern": {"String": ""}, "behavior": "Isolated", "invert": false}),
        json!({"type": "Split", "pattern": {"Regex": ""}, "behavior": "Removed", "invert": true}),
        json!({"type": "UnicodeScripts"}),
        json!({"type": "Punctuation", "behavior": "Contiguous"}),
    ];
    for model in &models {
        for pre_tokenizer in &pre_tokenizers {
            let file = json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
                "normalizer": null, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": metaspace,
                "model": model});
            try_out(file.to_string().as_bytes());
        }
    }
}
