//! The body of `POST /v1/chat/completions`: what is accepted, what is not supported yet, what is wrong.
use millgate_models::text::ChatMessage;
use serde_json::Value;

use super::params::{GenerationParams, RequestBounds};
use super::unsupported::{CHAT_FIELDS, refuse_unsupported};
use crate::api::error::ApiError;
use crate::api::fields::{Fields, kind};

/// A checked chat request.
#[derive(Debug)]
pub(crate) struct ChatRequest {
    /// The model the body names; the path may name one too.
    pub(crate) model: Option<String>,
    pub(crate) messages: Vec<ChatMessage>,
    pub(crate) params: GenerationParams,
    /// `Some(n)`: log-probabilities of the chosen token and the `n` most likely ones.
    pub(crate) logprobs: Option<u8>,
}

/// The most messages of a conversation; the byte bound usually bites first.
const MAX_MESSAGES: usize = 4096;

impl ChatRequest {
    /// Parses and checks a request body.
    ///
    /// # Errors
    /// A 400 whose `param` names the field.
    pub(crate) fn parse(body: &[u8], bounds: &RequestBounds) -> Result<Self, ApiError> {
        let mut body = Fields::parse(body)?;
        refuse_unsupported(&body, CHAT_FIELDS)?;
        Ok(Self {
            model: body.string("model")?,
            messages: take_messages(&mut body)?,
            params: GenerationParams::take(&mut body, bounds, 1)?,
            logprobs: take_logprobs(&mut body)?,
        })
    }
}

fn take_logprobs(body: &mut Fields) -> Result<Option<u8>, ApiError> {
    let wanted = body.boolean("logprobs")?.unwrap_or(false);
    let top = body.integer_in::<u8>("top_logprobs", 0..=20)?;
    match (wanted, top) {
        (true, top) => Ok(Some(top.unwrap_or(0))),
        (false, Some(1..)) => Err(body.complain("top_logprobs", "needs `logprobs` to be true")),
        (false, _) => Ok(None),
    }
}

fn take_messages(body: &mut Fields) -> Result<Vec<ChatMessage>, ApiError> {
    let Some(messages) = body.objects("messages")? else { return Err(body.complain("messages", "is required")) };
    if messages.is_empty() || messages.len() > MAX_MESSAGES {
        let message = format!("must hold 1 to {MAX_MESSAGES} messages, found {}", messages.len());
        return Err(body.complain("messages", message));
    }
    messages.into_iter().map(take_message).collect()
}

fn take_message(mut message: Fields) -> Result<ChatMessage, ApiError> {
    let role = match message.required_string("role")?.as_str() {
        "system" => "system",
        // The newer name of the same thing; chat templates know the older one.
        "developer" => "system",
        "user" => "user",
        "assistant" => "assistant",
        "tool" | "function" => return Err(not_supported(&message, "role", "messages of tools are")),
        other => {
            let shown: String = other.chars().take(20).collect();
            let wanted = "must be one of `system`, `developer`, `user`, `assistant`";
            return Err(message.complain("role", format!("{wanted}, found `{shown}`")));
        }
    };
    for field in ["tool_calls", "function_call", "audio"] {
        match message.take(field) {
            None => {}
            Some(Value::Array(list)) if list.is_empty() => {}
            Some(_) => return Err(not_supported(&message, field, "this is")),
        }
    }
    let name = message.string("name")?;
    let content = take_content(&mut message)?;
    Ok(ChatMessage { role: role.to_owned(), content, name })
}

fn take_content(message: &mut Fields) -> Result<String, ApiError> {
    match message.take("content") {
        None => Err(message.complain("content", "is required")),
        Some(Value::String(text)) => Ok(text),
        Some(Value::Array(parts)) => {
            let mut text = String::new();
            for (index, part) in parts.into_iter().enumerate() {
                let path = message.name_of(&format!("content[{index}]"));
                text.push_str(&take_text_part(Fields::of_value(part, path)?)?);
            }
            Ok(text)
        }
        Some(other) => {
            Err(message.complain("content", format!("must be a string or a list of parts, found {}", kind(&other))))
        }
    }
}

fn take_text_part(mut part: Fields) -> Result<String, ApiError> {
    match part.required_string("type")?.as_str() {
        "text" => match part.string("text")? {
            Some(text) => Ok(text),
            None => Err(part.complain("text", "is required")),
        },
        "image_url" | "input_audio" | "file" | "refusal" => {
            Err(not_supported(&part, "type", "parts other than text are"))
        }
        _ => Err(part.complain("type", "must be `text`")),
    }
}

fn not_supported(fields: &Fields, field: &str, what: &str) -> ApiError {
    fields.complain(field, format!("cannot be used: {what} not supported yet"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<ChatRequest, ApiError> {
        ChatRequest::parse(json.as_bytes(), &RequestBounds::default())
    }

    const HELLO: &str = r#"{"role": "user", "content": "hello"}"#;

    #[test]
    fn text_parts_are_joined_and_developer_speaks_as_system() {
        let request = parse(
            r#"{"messages": [{"role": "developer", "content": "be brief"},
                {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]}"#,
        )
        .unwrap();
        assert_eq!(request.messages[0].role, "system");
        assert_eq!(request.messages[1].content, "ab");
    }

    #[test]
    fn a_message_as_the_sdk_returned_it_can_be_sent_back() {
        let answer = r#"{"role": "assistant", "content": "hi", "refusal": null, "annotations": [], "audio": null,
            "function_call": null, "tool_calls": null}"#;
        assert_eq!(parse(&format!(r#"{{"messages": [{HELLO}, {answer}]}}"#)).unwrap().messages.len(), 2);
    }

    #[test]
    fn what_is_known_but_not_supported_says_so() {
        for (field, value) in [
            ("tools", r#"[{"type": "function"}]"#),
            ("tool_choice", r#""auto""#),
            ("functions", "[{}]"),
            ("response_format", r#"{"type": "json_object"}"#),
            ("response_format", r#"{"type": "json_schema", "json_schema": {}}"#),
            ("audio", "{}"),
            ("modalities", r#"["text", "audio"]"#),
            ("prediction", "{}"),
            ("web_search_options", "{}"),
            ("reasoning_effort", r#""low""#),
            ("store", "true"),
            ("guided_json", "{}"),
            ("stop_token_ids", "[1]"),
        ] {
            let error = parse(&format!(r#"{{"messages": [{HELLO}], "{field}": {value}}}"#)).unwrap_err();
            assert_eq!(error.param(), Some(field));
            assert!(error.message().contains("not supported yet"), "{}", error.message());
        }
    }

    #[test]
    fn harmless_values_of_unsupported_fields_and_unknown_fields_pass() {
        let body = format!(
            r#"{{"messages": [{HELLO}], "tools": [], "tool_choice": "none", "response_format": {{"type": "text"}},
                "modalities": ["text"], "store": false, "service_tier": "auto", "user": "u", "metadata": {{}}, "colour": 1}}"#
        );
        assert!(parse(&body).is_ok());
    }

    #[test]
    fn messages_that_are_wrong_are_named_by_position() {
        for (messages, param) in [
            ("[]", "messages"),
            ("{}", "messages"),
            ("[1]", "messages[0]"),
            (r#"[{"content": "x"}]"#, "messages[0].role"),
            (r#"[{"role": "robot", "content": "x"}]"#, "messages[0].role"),
            (r#"[{"role": "tool", "content": "x"}]"#, "messages[0].role"),
            (r#"[{"role": "user"}]"#, "messages[0].content"),
            (r#"[{"role": "user", "content": 5}]"#, "messages[0].content"),
            (r#"[{"role": "user", "content": [{"type": "image_url"}]}]"#, "messages[0].content[0].type"),
            (r#"[{"role": "assistant", "content": "x", "tool_calls": [{}]}]"#, "messages[0].tool_calls"),
        ] {
            let error = parse(&format!(r#"{{"messages": {messages}}}"#)).unwrap_err();
            assert_eq!(error.param(), Some(param), "{messages}");
        }
        assert_eq!(parse("{}").unwrap_err().param(), Some("messages"));
    }

    #[test]
    fn top_logprobs_need_logprobs() {
        let with = |rest: &str| parse(&format!(r#"{{"messages": [{HELLO}], {rest}}}"#));
        assert_eq!(with(r#""logprobs": true, "top_logprobs": 3"#).unwrap().logprobs, Some(3));
        assert_eq!(with(r#""logprobs": true"#).unwrap().logprobs, Some(0));
        assert_eq!(with(r#""logprobs": false"#).unwrap().logprobs, None);
        assert_eq!(with(r#""top_logprobs": 3"#).unwrap_err().param(), Some("top_logprobs"));
        assert_eq!(with(r#""logprobs": true, "top_logprobs": 21"#).unwrap_err().param(), Some("top_logprobs"));
    }
}
