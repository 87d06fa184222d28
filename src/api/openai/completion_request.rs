//! The body of `POST /v1/completions`: a prompt in one of four forms, and the shared parameters.
use serde_json::Value;

use super::params::{GenerationParams, RequestBounds};
use super::unsupported::{COMPLETION_FIELDS, refuse_unsupported};
use crate::api::error::ApiError;
use crate::api::fields::{Fields, kind};

/// One prompt, as text or already as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Prompt {
    Text(String),
    Tokens(Vec<u32>),
}

/// A checked completion request.
#[derive(Debug)]
pub(crate) struct CompletionRequest {
    /// The model the body names; the path may name one too.
    pub(crate) model: Option<String>,
    /// At least one.
    pub(crate) prompts: Vec<Prompt>,
    pub(crate) params: GenerationParams,
    /// Whether the answer repeats the prompt.
    pub(crate) echo: bool,
    /// `Some(n)`: log-probabilities of the chosen token and the `n` most likely ones.
    pub(crate) logprobs: Option<u8>,
}

/// OpenAI's default cap of this older endpoint; chat has none.
const DEFAULT_MAX_TOKENS: u32 = 16;

impl CompletionRequest {
    /// Parses and checks a request body.
    ///
    /// # Errors
    /// A 400 whose `param` names the field.
    pub(crate) fn parse(body: &[u8], bounds: &RequestBounds) -> Result<Self, ApiError> {
        let mut body = Fields::parse(body)?;
        refuse_unsupported(&body, COMPLETION_FIELDS)?;
        let echo = body.boolean("echo")?.unwrap_or(false);
        // Nothing but the prompt's own log-probabilities may be wanted.
        let least_tokens = u32::from(!echo);
        let mut request = Self {
            model: body.string("model")?,
            prompts: take_prompts(&mut body, bounds.max_prompts)?,
            params: GenerationParams::take(&mut body, bounds, least_tokens)?,
            echo,
            logprobs: body.integer_in::<u8>("logprobs", 0..=20)?,
        };
        let floor = request.params.min_tokens.max(DEFAULT_MAX_TOKENS);
        request.params.max_tokens.get_or_insert(floor);
        Ok(request)
    }
}

fn take_prompts(body: &mut Fields, most: usize) -> Result<Vec<Prompt>, ApiError> {
    let prompts = match body.take("prompt") {
        None => return Err(body.complain("prompt", "is required")),
        Some(Value::String(text)) => vec![Prompt::Text(text)],
        Some(Value::Array(list)) if list.first().is_some_and(Value::is_number) => vec![take_tokens(body, list)?],
        Some(Value::Array(list)) => list
            .into_iter()
            .map(|item| match item {
                Value::String(text) => Ok(Prompt::Text(text)),
                Value::Array(tokens) => take_tokens(body, tokens),
                other => Err(wrong_prompt(body, &other)),
            })
            .collect::<Result<_, _>>()?,
        Some(other) => return Err(wrong_prompt(body, &other)),
    };
    if prompts.is_empty() || prompts.len() > most {
        return Err(body.complain("prompt", format!("must hold 1 to {most} prompts, found {}", prompts.len())));
    }
    Ok(prompts)
}

fn take_tokens(body: &Fields, list: Vec<Value>) -> Result<Prompt, ApiError> {
    let token = |value: Value| {
        let id = value.as_u64().and_then(|id| u32::try_from(id).ok());
        id.ok_or_else(|| body.complain("prompt", "holds something that is not a token id"))
    };
    list.into_iter().map(token).collect::<Result<_, _>>().map(Prompt::Tokens)
}

fn wrong_prompt(body: &Fields, found: &Value) -> ApiError {
    let wanted = "must be a string, a list of strings, a list of token ids or a list of such lists";
    body.complain("prompt", format!("{wanted}, found {}", kind(found)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(json: &str) -> Result<CompletionRequest, ApiError> {
        CompletionRequest::parse(json.as_bytes(), &RequestBounds::default())
    }

    #[test]
    fn the_four_forms_of_a_prompt_are_understood() {
        let text = |text: &str| Prompt::Text(text.to_owned());
        for (json, prompts) in [
            (r#""a""#, vec![text("a")]),
            (r#"["a", "b"]"#, vec![text("a"), text("b")]),
            ("[1, 2]", vec![Prompt::Tokens(vec![1, 2])]),
            ("[[1], [2, 3]]", vec![Prompt::Tokens(vec![1]), Prompt::Tokens(vec![2, 3])]),
        ] {
            assert_eq!(parse(&format!(r#"{{"prompt": {json}}}"#)).unwrap().prompts, prompts);
        }
    }

    #[test]
    fn other_prompts_are_refused() {
        for json in ["{}", "5", "[]", "[-1]", "[1, \"a\"]", "[1.5]", "[4294967296]", "[[1], [\"a\"]]", "[null]"] {
            let error = parse(&format!(r#"{{"prompt": {json}}}"#)).unwrap_err();
            assert_eq!(error.param(), Some("prompt"), "{json}");
        }
        assert_eq!(parse("{}").unwrap_err().param(), Some("prompt"));
    }

    #[test]
    fn the_default_cap_is_sixteen_tokens() {
        assert_eq!(parse(r#"{"prompt": "a"}"#).unwrap().params.max_tokens, Some(16));
        assert_eq!(parse(r#"{"prompt": "a", "max_tokens": 3}"#).unwrap().params.max_tokens, Some(3));
    }

    #[test]
    fn no_token_at_all_may_be_asked_for_where_the_prompt_comes_back() {
        let request = parse(r#"{"prompt": "a", "max_tokens": 0, "echo": true}"#).unwrap();
        assert_eq!((request.params.max_tokens, request.echo), (Some(0), true));
        assert_eq!(parse(r#"{"prompt": "a", "max_tokens": 0}"#).unwrap_err().param(), Some("max_tokens"));
    }

    #[test]
    fn suffix_and_best_of_are_not_supported_yet() {
        for field in [r#""suffix": "x""#, r#""best_of": 2"#] {
            let error = parse(&format!(r#"{{"prompt": "a", {field}}}"#)).unwrap_err();
            assert!(error.message().contains("not supported yet"), "{}", error.message());
        }
        assert!(parse(r#"{"prompt": "a", "best_of": 1, "suffix": null}"#).is_ok());
    }
}
