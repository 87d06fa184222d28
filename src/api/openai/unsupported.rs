//! Fields that OpenAI's or vLLM's API knows and this server does not support yet: a clear refusal, never silence.
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::fields::Fields;

/// A field, and which of its values mean "not used".
pub(crate) struct Unsupported {
    name: &'static str,
    is_harmless: fn(&Value) -> bool,
}

const fn unless(name: &'static str, is_harmless: fn(&Value) -> bool) -> Unsupported {
    Unsupported { name, is_harmless }
}

const fn never(name: &'static str) -> Unsupported {
    Unsupported { name, is_harmless: |_| false }
}

/// Of `POST /v1/chat/completions`.
pub(crate) const CHAT_FIELDS: &[Unsupported] = &[
    unless("tools", is_empty_list),
    unless("tool_choice", |value| value == "none"),
    never("parallel_tool_calls"),
    unless("functions", is_empty_list),
    unless("function_call", |value| value == "none"),
    unless("response_format", |value| value["type"] == "text"),
    never("audio"),
    unless("modalities", |value| *value == serde_json::json!(["text"])),
    never("prediction"),
    never("web_search_options"),
    never("reasoning_effort"),
    never("verbosity"),
    unless("store", is_false),
    unless("service_tier", |value| value == "auto" || value == "default"),
    unless("continue_final_message", is_false),
    unless("add_generation_prompt", |value| *value == true),
    never("chat_template"),
    never("chat_template_kwargs"),
    never("documents"),
];

/// Of `POST /v1/completions`.
pub(crate) const COMPLETION_FIELDS: &[Unsupported] =
    &[unless("suffix", |value| value == ""), never("prompt_embeds"), never("response_format")];

/// Of both: extensions of vLLM that change the answer.
const SHARED_FIELDS: &[Unsupported] = &[
    unless("best_of", |value| *value == 1),
    unless("use_beam_search", is_false),
    never("guided_json"),
    never("guided_regex"),
    never("guided_choice"),
    never("guided_grammar"),
    never("structured_outputs"),
    unless("stop_token_ids", is_empty_list),
    unless("bad_words", is_empty_list),
    unless("allowed_token_ids", is_empty_list),
    unless("include_stop_str_in_output", is_false),
    unless("skip_special_tokens", |value| *value == true),
    never("prompt_logprobs"),
    never("truncate_prompt_tokens"),
    never("logits_processors"),
    // Ignoring it would share a cached prefix that the client asked to keep apart.
    never("cache_salt"),
];

/// Refuses a body that uses one of `fields`, or one of the shared ones.
pub(crate) fn refuse_unsupported(body: &Fields, fields: &[Unsupported]) -> Result<(), ApiError> {
    for (name, value) in body.rest() {
        let known = fields.iter().chain(SHARED_FIELDS).find(|field| field.name == name);
        match known {
            Some(field) if !value.is_null() && !(field.is_harmless)(value) => {
                return Err(body.complain(name, "is not supported yet"));
            }
            _ => {}
        }
    }
    Ok(())
}

fn is_empty_list(value: &Value) -> bool {
    value.as_array().is_some_and(Vec::is_empty)
}

fn is_false(value: &Value) -> bool {
    *value == false
}
