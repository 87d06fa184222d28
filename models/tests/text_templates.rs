//! Chat templates against the prompts that transformers renders, and templates that mean harm.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use millgate_models::text::{ChatMessage, ChatTemplate, TemplateError};

use crate::text::{json, testdata};

/// 2024-02-29 13:05:09 UTC, the date the expected prompts were made with.
fn fixed_clock() -> SystemTime {
    UNIX_EPOCH + Duration::from_secs(1_709_211_909)
}

fn template(source: &str) -> ChatTemplate {
    ChatTemplate::with_clock(source, Some("<s>".into()), Some("</s>".into()), fixed_clock).unwrap()
}

fn message(role: &str, content: &str) -> ChatMessage {
    ChatMessage { role: role.into(), content: content.into(), name: None }
}

#[test]
fn prompts_equal_those_of_transformers() {
    let cases = json("templates.json");
    let mut seen = 0;
    for case in cases.as_array().unwrap() {
        let name = case["template"].as_str().unwrap();
        let source = std::fs::read_to_string(testdata("templates").join(format!("{name}.jinja"))).unwrap();
        let messages: Vec<ChatMessage> = case["messages"]
            .as_array()
            .unwrap()
            .iter()
            .map(|message| {
                let text = |key: &str| message[key].as_str().map(str::to_owned);
                ChatMessage { role: text("role").unwrap(), content: text("content").unwrap(), name: text("name") }
            })
            .collect();
        let rendered = template(&source).render(&messages, case["add_generation_prompt"].as_bool().unwrap());
        let what = format!("{name}, {}", case["chat"]);
        match (case["prompt"].as_str(), rendered) {
            (Some(prompt), Ok(rendered)) => assert_eq!(rendered, prompt, "{what}"),
            (None, Err(TemplateError::Raised { message })) => {
                assert_eq!(message, case["raised"].as_str().unwrap(), "{what}")
            }
            (expected, rendered) => panic!("{what}: expected {expected:?}, got {rendered:?}"),
        }
        seen += 1;
    }
    assert!(seen >= 80, "{seen} cases");
}

#[test]
fn a_template_that_never_ends_or_fills_memory_is_stopped() {
    let bombs = [
        "{% for a in range(100000) %}{% for b in range(100000) %}{% endfor %}{% endfor %}",
        "{% macro again() %}{{ again() }}{% endmacro %}{{ again() }}",
        "{% for m in messages recursive %}{{ loop(messages) }}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}{{ ns.s }}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
        "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
        "{% set ns = namespace(l=[1,2,3,4]) %}{% for i in range(60) %}{% set ns.l = (ns.l + ns.l) | list %}{% endfor %}",
        "{% set s = 'x' * 4000000 %}{{ s.replace('x', s) }}",
        "{% set s = 'x' * 4000000 %}{{ s | replace('x', s) }}",
        "{% set s = 'x' * 4000000 %}{{ s.join(range(100000) | list) }}",
        "{% set s = 'x' * 4000000 %}{{ range(100000) | join(s) }}",
        "{{ 'x' * 100000000 * 100 }}",
        "{{ '%999999999999d' | format(1) }}",
        "{{ '{:999999999999}'.format(1) }}",
        "{{ 'x' | indent(999999999999) }}{{ 'a\nb' | indent(999999999999) }}",
        "{{ 'x' | center(999999999999) }}",
        "{{ [1] | tojson(indent=4000000000) }}{{ range(100000) | list | tojson(indent=4000000000) | length * 'x' * 1000 }}",
        "{% for i in range(100000) %}{{ 'x' * 1000 }}{% endfor %}",
        "{% include 'chat_template' %}",
        "{% extends 'chat_template' %}",
        "{% from 'chat_template' import x %}",
    ];
    for source in bombs {
        let started = std::time::Instant::now();
        let rendered = template(source).render(&[message("user", "x")], true);
        let error = rendered.err().unwrap_or_else(|| panic!("`{source}` was rendered"));
        assert!(!matches!(error, TemplateError::Raised { .. }), "`{source}`: {error}");
        assert!(started.elapsed() < Duration::from_secs(20), "`{source}` took {:?}", started.elapsed());
    }
}

#[test]
fn a_broken_template_is_refused_when_it_is_compiled() {
    let deep = format!("{{{{ {}1{} }}}}", "(".repeat(50_000), ")".repeat(50_000));
    let nested = format!("{}{}", "{% if true %}".repeat(20_000), "{% endif %}".repeat(20_000));
    let long = "x".repeat(2 << 20);
    for source in ["{% if %}", "{{ unclosed", "{% nonsense %}", &deep, &nested, &long] {
        let error = ChatTemplate::new(source, None, None).unwrap_err();
        assert!(matches!(error, TemplateError::Broken { .. }), "{error}");
    }
}

#[test]
fn a_long_conversation_fits_the_budget() {
    let text = "A sentence of some length, as people write them.\n".repeat(2_000);
    let messages: Vec<ChatMessage> =
        (0..64).map(|turn| message(if turn % 2 == 0 { "user" } else { "assistant" }, &text)).collect();
    for name in ["chatml", "llama3", "qwen3", "mistral"] {
        let source = std::fs::read_to_string(testdata("templates").join(format!("{name}.jinja"))).unwrap();
        let prompt = template(&source).render(&messages, true).unwrap();
        assert!(prompt.len() > 64 * text.trim().len(), "{name}");
    }
}

#[test]
fn what_a_message_says_is_never_read_as_template() {
    let prompt = template("{{ messages[0].content }}").render(&[message("user", "{{ 1 + 1 }}{% if %}<b>&")], true);
    assert_eq!(prompt.unwrap(), "{{ 1 + 1 }}{% if %}<b>&");
}
