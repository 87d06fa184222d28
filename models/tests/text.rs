//! Tokenizers against the ids and texts that Hugging Face's own code made.

use std::path::{Path, PathBuf};

use millgate_models::text::{ChatMessage, GgufTokenizer, ModelText, StreamDecoder, TextError, Tokenizer};
use serde_json::Value;

pub(crate) fn testdata(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/text").join(name)
}

pub(crate) fn json(name: &str) -> Value {
    serde_json::from_slice(&std::fs::read(testdata(name)).unwrap()).unwrap()
}

fn strings(value: &Value) -> Vec<String> {
    value.as_array().unwrap().iter().map(|item| item.as_str().unwrap().to_owned()).collect()
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| u32::try_from(id.as_u64().unwrap()).unwrap()).collect()
}

fn numbers<T: TryFrom<i64, Error: std::fmt::Debug>>(value: &Value) -> Vec<T> {
    value.as_array().unwrap().iter().map(|number| T::try_from(number.as_i64().unwrap()).unwrap()).collect()
}

pub(crate) fn bpe(pre: Option<&str>) -> GgufTokenizer {
    let data = json("bpe.json");
    let tokens = strings(&data["tokens"]);
    let id = |token: &str| u32::try_from(tokens.iter().position(|other| other == token).unwrap()).unwrap();
    GgufTokenizer {
        kind: "gpt2".to_owned(),
        pre: pre.map(str::to_owned),
        token_types: numbers(&data["token_types"]),
        merges: strings(&data["merges"]),
        bos_token_id: Some(id("<|begin|>")),
        eos_token_id: Some(id("<|end|>")),
        tokens,
        ..GgufTokenizer::default()
    }
}

pub(crate) fn spm() -> GgufTokenizer {
    let data = json("spm.json");
    let scores = data["scores"].as_array().unwrap().iter();
    GgufTokenizer {
        kind: "llama".to_owned(),
        tokens: strings(&data["tokens"]),
        #[expect(clippy::cast_possible_truncation, reason = "the file holds f32 values")]
        scores: scores.map(|score| score.as_f64().unwrap() as f32).collect(),
        token_types: numbers(&data["token_types"]),
        bos_token_id: Some(1),
        eos_token_id: Some(2),
        unknown_token_id: Some(0),
        ..GgufTokenizer::default()
    }
}

/// Ids both ways, text both ways, and the stream decoder over the same tokens.
fn agrees(tokenizer: &Tokenizer, expected_ids: &Value, decoded: &Value, what: &str) {
    for (position, text) in strings(&json("texts.json")).iter().enumerate() {
        let wanted = ids(&expected_ids[position]);
        assert_eq!(tokenizer.encode_rendered(text).unwrap(), wanted, "{what}: {text:?}");
        let decoded = decoded[position].as_str().unwrap();
        assert_eq!(tokenizer.decode(&wanted, true), decoded, "{what}: decoding {text:?}");
        let mut decoder = StreamDecoder::new(tokenizer);
        let mut streamed: String = wanted.iter().map(|&id| decoder.push(id)).collect();
        streamed.push_str(&decoder.finish());
        assert_eq!(streamed, decoded, "{what}: streaming {text:?}");
    }
}

#[test]
fn a_byte_level_gguf_gives_the_ids_of_the_hugging_face_tokenizer_for_every_known_cutting() {
    let data = json("bpe.json");
    for pre in ["default", "gpt-2", "llama-bpe", "qwen2", "tekken", "smollm"] {
        let tokenizer = Tokenizer::from_gguf(&bpe(Some(pre))).unwrap();
        agrees(&tokenizer, &data["cases"][pre]["ids"], &data["cases"][pre]["decoded"], pre);
    }
    let unnamed = Tokenizer::from_gguf(&bpe(None)).unwrap();
    agrees(&unnamed, &data["cases"]["default"]["ids"], &data["cases"]["default"]["decoded"], "no name");
}

#[test]
fn a_sentence_piece_gguf_gives_the_ids_of_the_hugging_face_tokenizer() {
    let data = json("spm.json");
    for (variant, prefix) in [("prefix", None), ("prefix", Some(true)), ("no_prefix", Some(false))] {
        let tokenizer = Tokenizer::from_gguf(&GgufTokenizer { add_space_prefix: prefix, ..spm() }).unwrap();
        agrees(&tokenizer, &data["variants"][variant]["ids"], &data["variants"][variant]["decoded"], variant);
    }
}

#[test]
fn a_tokenizer_json_gives_the_ids_the_text_and_the_prompt_of_transformers() {
    for name in ["llama3", "qwen2", "llama2"] {
        let expected = json(&format!("folders/{name}/expected.json"));
        let text = ModelText::from_folder(&testdata("folders").join(name)).unwrap();
        for (position, input) in strings(&json("texts.json")).iter().enumerate() {
            let with_special = ids(&expected["ids"][position]);
            assert_eq!(text.tokenizer.encode(input).unwrap(), with_special, "{name}: {input:?}");
            let decoded = text.tokenizer.decode(&with_special, false);
            assert_eq!(decoded, expected["decoded_with_special"][position].as_str().unwrap(), "{name}: {input:?}");
        }
        agrees(&text.tokenizer, &expected["ids_rendered"], &expected["decoded"], name);
        let hello = ChatMessage { role: "user".into(), content: "Hello, world!".into(), name: None };
        let prompt = text.chat_template.map(|template| template.render(&[hello], true).unwrap());
        assert_eq!(prompt.as_deref(), expected["prompt"].as_str(), "{name}");
    }
}

#[test]
fn begin_and_end_tokens_are_added_as_the_gguf_says() {
    let (begin, end) = (bpe(None).bos_token_id.unwrap(), bpe(None).eos_token_id.unwrap());
    let encode = |metadata: GgufTokenizer| Tokenizer::from_gguf(&metadata).unwrap().encode("a").unwrap();
    let a = encode(bpe(Some("qwen2")))[0];
    assert_eq!(encode(bpe(Some("qwen2"))), [a]);
    assert_eq!(encode(bpe(Some("llama-bpe"))), [begin, a]);
    assert_eq!(encode(GgufTokenizer { add_bos: Some(false), ..bpe(Some("llama-bpe")) }), [a]);
    let both = GgufTokenizer { add_bos: Some(true), add_eos: Some(true), ..bpe(Some("qwen2")) };
    assert_eq!(encode(both), [begin, a, end]);
    assert_eq!(encode(spm())[0], 1);
    assert_ne!(encode(GgufTokenizer { add_bos: Some(false), ..spm() })[0], 1);
}

#[test]
fn special_tokens_in_a_rendered_prompt_are_recognised_and_left_out_of_answers() {
    for tokenizer in [Tokenizer::from_gguf(&bpe(None)).unwrap(), Tokenizer::from_gguf(&spm()).unwrap()] {
        let end = tokenizer.token_id("<|end|>").unwrap();
        let think = tokenizer.token_id("<think>").unwrap();
        let encoded = tokenizer.encode_rendered("x<|end|><think>y").unwrap();
        assert!(encoded.contains(&end) && encoded.contains(&think), "{encoded:?}");
        assert!(tokenizer.is_special(end) && !tokenizer.is_special(think));
        assert_eq!(tokenizer.token_bytes(end), Some(b"<|end|>".as_slice()));
        assert_eq!(tokenizer.decode(&[end, think, end], true), "<think>");
        assert_eq!(tokenizer.decode(&[end, think], false), "<|end|><think>");
    }
}

#[test]
fn the_pieces_of_a_text_are_its_bytes_and_none_is_longer_than_announced() {
    let byte_level = Tokenizer::from_gguf(&bpe(Some("llama-bpe"))).unwrap();
    let sentence_piece = Tokenizer::from_gguf(&GgufTokenizer { add_space_prefix: Some(false), ..spm() }).unwrap();
    for tokenizer in [byte_level, sentence_piece] {
        for text in strings(&json("texts.json")).iter().filter(|text| !text.contains('▁')) {
            let ids = tokenizer.encode_rendered(text).unwrap();
            let pieces: Vec<&[u8]> = ids.iter().map(|&id| tokenizer.token_bytes(id).unwrap()).collect();
            assert_eq!(pieces.concat(), text.as_bytes(), "{text:?}");
            assert!(text.len() <= ids.len() * tokenizer.max_token_bytes());
        }
        assert_eq!(tokenizer.token_bytes(u32::MAX), None);
        assert_eq!(tokenizer.token_bytes(u32::try_from(tokenizer.vocab_size()).unwrap()), None);
        assert!(tokenizer.max_token_bytes() < 64, "{}", tokenizer.max_token_bytes());
    }
}

#[test]
fn text_that_continues_a_prompt_keeps_its_leading_space_and_an_answer_does_not() {
    let tokenizer = Tokenizer::from_gguf(&spm()).unwrap();
    let ids = tokenizer.encode_rendered("the server").unwrap();
    let run = |mut decoder: StreamDecoder| -> String { ids.iter().map(|&id| decoder.push(id)).collect() };
    assert_eq!(run(StreamDecoder::new(&tokenizer)), "the server");
    assert_eq!(run(StreamDecoder::continuing(&tokenizer)), " the server");
}

#[test]
fn an_unknown_kind_or_cutting_is_an_error_that_names_it() {
    let error = |metadata: GgufTokenizer| Tokenizer::from_gguf(&metadata).unwrap_err().to_string();
    assert!(error(GgufTokenizer { kind: "rwkv".into(), ..spm() }).contains("rwkv"));
    assert!(error(bpe(Some("chameleon"))).contains("chameleon"));
    let named = ModelText::from_gguf("animals.gguf", &bpe(Some("chameleon"))).unwrap_err().to_string();
    assert!(named.contains("animals.gguf"), "{named}");
}

#[test]
fn end_tokens_come_from_the_generation_config_then_the_config_then_the_named_token() {
    let end_tokens = |name: &str| ModelText::from_folder(&testdata("folders").join(name)).unwrap().end_tokens;
    let begin = ModelText::from_folder(&testdata("folders/llama3")).unwrap().tokenizer.token_id("<|begin|>").unwrap();
    assert_eq!(end_tokens("llama3"), [begin + 1, 3]);
    assert_eq!(end_tokens("qwen2"), [7]);
    assert_eq!(end_tokens("llama2"), [2]);
}

#[test]
fn a_gguf_chat_model_ends_at_every_turn_end_it_knows() {
    let mut metadata = bpe(Some("qwen2"));
    let position = u32::try_from(metadata.tokens.len()).unwrap();
    metadata.tokens.push("<|im_end|>".into());
    metadata.token_types.push(3);
    metadata.chat_template = Some("{{ bos_token }}{{ messages[0].content }}{{ eos_token }}".into());
    let text = ModelText::from_gguf("tiny.gguf", &metadata).unwrap();
    assert_eq!(text.end_tokens, [metadata.eos_token_id.unwrap(), position]);
    let hello = ChatMessage { role: "user".into(), content: "hi".into(), name: None };
    assert_eq!(text.chat_template.unwrap().render(&[hello], true).unwrap(), "<|begin|>hi<|end|>");
}

/// A folder with the small llama2 tokenizer and the files given.
fn folder_with(files: &[(&str, &str)]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    std::fs::copy(testdata("folders/llama2/tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    for (name, content) in files {
        std::fs::write(folder.path().join(name), content).unwrap();
    }
    folder
}

#[test]
fn a_chat_template_is_found_wherever_either_generation_of_files_puts_it() {
    let list = r#"{"chat_template": [{"name": "tool_use", "template": "T"}, {"name": "default", "template": "D"}]}"#;
    let string = r#"{"chat_template": "S{{ bos_token }}{{ eos_token }}", "bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}}"#;
    type File<'a> = (&'a str, &'a str);
    let cases: [(Vec<File<'_>>, Option<&str>); 7] = [
        (vec![], None),
        (vec![("tokenizer_config.json", string)], Some("S<s></s>")),
        (vec![("tokenizer_config.json", list)], Some("D")),
        (vec![("tokenizer_config.json", r#"{"chat_template": [{"name": "only", "template": "O"}]}"#)], Some("O")),
        (vec![("chat_template.json", r#"{"chat_template": "J"}"#)], Some("J")),
        (vec![("tokenizer_config.json", string), ("chat_template.jinja", "F{{ bos_token }}")], Some("F<s>")),
        (vec![("tokenizer_config.json", r#"{"chat_template": null}"#)], None),
    ];
    for (files, expected) in cases {
        let folder = folder_with(&files);
        let text = ModelText::from_folder(folder.path()).unwrap();
        let prompt = text.chat_template.map(|template| template.render(&[], false).unwrap());
        assert_eq!(prompt.as_deref(), expected, "{files:?}");
    }
}

#[test]
fn the_tokenizer_config_decides_about_begin_and_end_tokens_where_it_says_so() {
    let tokens = r#""bos_token": "<s>", "eos_token": "</s>""#;
    let cases: [(&str, &[u32], &[u32]); 4] = [
        ("", &[1], &[]),
        (r#", "add_bos_token": false"#, &[], &[]),
        (r#", "add_bos_token": true, "add_eos_token": true"#, &[1], &[2]),
        (r#", "add_eos_token": true"#, &[], &[2]),
    ];
    for (flags, before, after) in cases {
        let folder = folder_with(&[("tokenizer_config.json", &format!("{{{tokens}{flags}}}"))]);
        let tokenizer = ModelText::from_folder(folder.path()).unwrap().tokenizer;
        let bare = tokenizer.encode_rendered("a key").unwrap();
        assert_eq!(tokenizer.encode("a key").unwrap(), [before, &bare, after].concat(), "{flags}");
    }
}

#[test]
fn a_broken_text_file_is_an_error_that_names_the_file() {
    let cases: [(&str, &str, &str); 9] = [
        ("tokenizer_config.json", "{\"chat_template\": ", "tokenizer_config.json"),
        ("tokenizer_config.json", "[1]", "tokenizer_config.json"),
        ("tokenizer_config.json", "{\"chat_template\": 7}", "tokenizer_config.json"),
        ("tokenizer_config.json", r#"{"chat_template": [{"name": "a"}, {"name": "b"}]}"#, "a, b"),
        ("chat_template.jinja", "{% if %}", "chat_template.jinja"),
        ("chat_template.json", "\u{feff}", "chat_template.json"),
        ("generation_config.json", r#"{"eos_token_id": "two"}"#, "generation_config.json"),
        ("generation_config.json", r#"{"eos_token_id": [-1]}"#, "generation_config.json"),
        ("config.json", r#"{"eos_token_id": 99999999999}"#, "config.json"),
    ];
    for (name, content, expected) in cases {
        let folder = folder_with(&[(name, content)]);
        let error = ModelText::from_folder(folder.path()).unwrap_err();
        assert!(error.to_string().contains(expected), "{name} {content}: {error}");
    }
    for content in ["{", r#"{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": []}, "decoder": {"type": "CTC"}}"#] {
        let folder = folder_with(&[("tokenizer.json", content)]);
        let error = ModelText::from_folder(folder.path()).unwrap_err().to_string();
        assert!(error.contains(&folder.path().join("tokenizer.json").display().to_string()), "{error}");
    }
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(ModelText::from_folder(empty.path()), Err(TextError::NoTokenizer { .. })));
    std::fs::create_dir(empty.path().join("tokenizer.json")).unwrap();
    assert!(matches!(ModelText::from_folder(empty.path()), Err(TextError::Read { .. })));
}
