//! The generation parameters that chat and text completions share.
use serde_json::Value;

use crate::api::error::ApiError;
use crate::api::fields::{Fields, kind};

/// How many choices, prompts and sequences one request may ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestBounds {
    /// The most choices a prompt (`n`).
    pub max_choices: u32,
    /// The most prompts a request.
    pub max_prompts: usize,
    /// The most stop strings.
    pub max_stops: usize,
}

impl Default for RequestBounds {
    fn default() -> Self {
        Self { max_choices: 128, max_prompts: 128, max_stops: 16 }
    }
}

/// How the answer is delivered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// One JSON document at the end.
    Whole,
    /// Server-sent events, with a last chunk that carries the usage if asked for.
    Stream {
        /// Whether a chunk with `usage` comes before `[DONE]`.
        include_usage: bool,
    },
}

/// Checked generation parameters, with OpenAI's defaults filled in.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct GenerationParams {
    pub(crate) delivery: Delivery,
    /// Choices a prompt.
    pub(crate) choices: u32,
    /// The client's cap in tokens a choice; `None` when it set none.
    pub(crate) max_tokens: Option<u32>,
    pub(crate) min_tokens: u32,
    pub(crate) ignore_eos: bool,
    pub(crate) temperature: f32,
    pub(crate) top_p: f32,
    /// 0 = off.
    pub(crate) top_k: u32,
    pub(crate) min_p: f32,
    pub(crate) presence_penalty: f32,
    pub(crate) frequency_penalty: f32,
    pub(crate) repetition_penalty: f32,
    pub(crate) logit_bias: Vec<(u32, f32)>,
    pub(crate) seed: Option<u64>,
    pub(crate) stop: Vec<String>,
}

/// The most bytes a stop string may have: longer ones only hold text back.
const MAX_STOP_BYTES: usize = 1024;
/// The most entries of `logit_bias`.
const MAX_BIASES: usize = 1024;

impl GenerationParams {
    /// Takes the shared fields out of `body`; `least_tokens` is the smallest cap that makes sense there.
    pub(crate) fn take(body: &mut Fields, bounds: &RequestBounds, least_tokens: u32) -> Result<Self, ApiError> {
        let params = Self {
            delivery: take_delivery(body)?,
            choices: body.integer_in("n", 1..=bounds.max_choices)?.unwrap_or(1),
            max_tokens: take_max_tokens(body, least_tokens)?,
            min_tokens: body.integer_in("min_tokens", 0..=u32::MAX)?.unwrap_or(0),
            ignore_eos: body.boolean("ignore_eos")?.unwrap_or(false),
            temperature: take_f32(body, "temperature", 0.0, 2.0)?.unwrap_or(1.0),
            top_p: take_f32(body, "top_p", 0.0, 1.0)?.unwrap_or(1.0),
            top_k: take_top_k(body)?,
            min_p: take_f32(body, "min_p", 0.0, 1.0)?.unwrap_or(0.0),
            presence_penalty: take_f32(body, "presence_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            frequency_penalty: take_f32(body, "frequency_penalty", -2.0, 2.0)?.unwrap_or(0.0),
            repetition_penalty: take_f32(body, "repetition_penalty", 0.01, 10.0)?.unwrap_or(1.0),
            logit_bias: take_logit_bias(body)?,
            // Any 64 bits make a seed; clients send negative ones too.
            seed: body.integer("seed")?.map(|seed| seed as u64),
            stop: take_stop(body, bounds.max_stops)?,
        };
        match params.max_tokens {
            Some(most) if params.min_tokens > most => Err(body.complain(
                "min_tokens",
                format!("must not be larger than the maximum of {most} tokens, found {}", params.min_tokens),
            )),
            _ => Ok(params),
        }
    }
}

fn take_f32(body: &mut Fields, field: &str, least: f64, most: f64) -> Result<Option<f32>, ApiError> {
    Ok(body.number_in(field, least..=most)?.map(|value| value as f32))
}

fn take_delivery(body: &mut Fields) -> Result<Delivery, ApiError> {
    let stream = body.boolean("stream")?.unwrap_or(false);
    let options = body.object("stream_options")?;
    match (stream, options) {
        (false, None) => Ok(Delivery::Whole),
        (false, Some(_)) => Err(body.complain("stream_options", "is only allowed when `stream` is true")),
        (true, None) => Ok(Delivery::Stream { include_usage: false }),
        (true, Some(mut options)) => {
            Ok(Delivery::Stream { include_usage: options.boolean("include_usage")?.unwrap_or(false) })
        }
    }
}

/// `max_tokens` and its newer name; both may be given if they agree.
fn take_max_tokens(body: &mut Fields, least: u32) -> Result<Option<u32>, ApiError> {
    let old = body.integer_in("max_tokens", least..=u32::MAX)?;
    let new = body.integer_in("max_completion_tokens", least..=u32::MAX)?;
    match (old, new) {
        (Some(old), Some(new)) if old != new => Err(body.complain(
            "max_tokens",
            format!("({old}) and `max_completion_tokens` ({new}) contradict each other: give one of them"),
        )),
        (old, new) => Ok(old.or(new)),
    }
}

/// As vLLM takes it: -1 and 0 switch it off.
fn take_top_k(body: &mut Fields) -> Result<u32, ApiError> {
    match body.integer("top_k")? {
        None | Some(-1 | 0) => Ok(0),
        Some(value) => u32::try_from(value)
            .map_err(|_| body.complain("top_k", format!("must be between -1 and {}, found {value}", u32::MAX))),
    }
}

fn take_logit_bias(body: &mut Fields) -> Result<Vec<(u32, f32)>, ApiError> {
    let Some(map) = body.object("logit_bias")? else { return Ok(Vec::new()) };
    let mut biases = Vec::new();
    for (token, bias) in map.rest() {
        let id = token.parse::<u32>().map_err(|_| {
            body.complain("logit_bias", format!("must map token ids to numbers, found the key `{}`", brief(token)))
        })?;
        match bias.as_f64() {
            Some(value) if (-100.0..=100.0).contains(&value) => biases.push((id, value as f32)),
            _ => {
                let message = format!("must hold numbers between -100 and 100, found {} for `{id}`", brief_value(bias));
                return Err(body.complain("logit_bias", message));
            }
        }
    }
    if biases.len() > MAX_BIASES {
        return Err(body.complain("logit_bias", format!("has {} entries, at most {MAX_BIASES} fit", biases.len())));
    }
    Ok(biases)
}

fn take_stop(body: &mut Fields, most: usize) -> Result<Vec<String>, ApiError> {
    let stops = match body.take("stop") {
        None => return Ok(Vec::new()),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(list)) => list
            .into_iter()
            .map(|value| match value {
                Value::String(text) => Ok(text),
                other => Err(body.complain("stop", format!("must hold strings, found {}", kind(&other)))),
            })
            .collect::<Result<Vec<_>, _>>()?,
        Some(other) => {
            return Err(body.complain("stop", format!("must be a string or a list of strings, found {}", kind(&other))));
        }
    };
    if stops.len() > most {
        return Err(body.complain("stop", format!("holds {} strings, at most {most} are allowed", stops.len())));
    }
    if stops.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        return Err(body.complain("stop", format!("must hold strings of 1 to {MAX_STOP_BYTES} bytes")));
    }
    Ok(stops)
}

/// Enough of a client's text to recognise it in a message, never all of it.
fn brief(text: &str) -> String {
    text.chars().take(20).collect()
}

fn brief_value(value: &Value) -> String {
    match value {
        Value::Number(number) => number.to_string(),
        other => kind(other).to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(json: &str) -> Result<GenerationParams, ApiError> {
        GenerationParams::take(&mut Fields::parse(json.as_bytes()).unwrap(), &RequestBounds::default(), 1)
    }

    #[test]
    fn an_empty_request_has_openais_defaults() {
        let params = take("{}").unwrap();
        assert_eq!(params.delivery, Delivery::Whole);
        assert_eq!((params.choices, params.temperature, params.top_p, params.top_k), (1, 1.0, 1.0, 0));
        assert_eq!((params.max_tokens, params.seed, params.ignore_eos), (None, None, false));
    }

    #[test]
    fn every_parameter_out_of_range_is_refused_by_name() {
        for (json, param) in [
            (r#"{"temperature": -0.1}"#, "temperature"),
            (r#"{"temperature": 1e300}"#, "temperature"),
            (r#"{"top_p": 1.1}"#, "top_p"),
            (r#"{"top_k": -2}"#, "top_k"),
            (r#"{"min_p": 2}"#, "min_p"),
            (r#"{"n": 0}"#, "n"),
            (r#"{"n": 129}"#, "n"),
            (r#"{"max_tokens": 0}"#, "max_tokens"),
            (r#"{"max_tokens": -5}"#, "max_tokens"),
            (r#"{"max_completion_tokens": 4294967296}"#, "max_completion_tokens"),
            (r#"{"max_tokens": 4, "min_tokens": 5}"#, "min_tokens"),
            (r#"{"presence_penalty": 2.5}"#, "presence_penalty"),
            (r#"{"frequency_penalty": "1"}"#, "frequency_penalty"),
            (r#"{"repetition_penalty": 0}"#, "repetition_penalty"),
            (r#"{"logit_bias": {"x": 1}}"#, "logit_bias"),
            (r#"{"logit_bias": {"1": 101}}"#, "logit_bias"),
            (r#"{"logit_bias": []}"#, "logit_bias"),
            (r#"{"seed": 1.5}"#, "seed"),
            (r#"{"stop": ""}"#, "stop"),
            (r#"{"stop": [1]}"#, "stop"),
            (r#"{"stream": "yes"}"#, "stream"),
            (r#"{"stream_options": {"include_usage": true}}"#, "stream_options"),
            (r#"{"stream": true, "stream_options": {"include_usage": 1}}"#, "stream_options.include_usage"),
        ] {
            assert_eq!(take(json).unwrap_err().param(), Some(param), "{json}");
        }
    }

    #[test]
    fn the_two_names_of_the_cap_must_agree() {
        assert_eq!(take(r#"{"max_tokens": 7, "max_completion_tokens": 7}"#).unwrap().max_tokens, Some(7));
        assert_eq!(take(r#"{"max_completion_tokens": 9}"#).unwrap().max_tokens, Some(9));
        let error = take(r#"{"max_tokens": 7, "max_completion_tokens": 8}"#).unwrap_err();
        assert_eq!(error.param(), Some("max_tokens"));
        assert!(error.message().contains("contradict"), "{}", error.message());
    }

    #[test]
    fn a_single_stop_string_and_a_list_mean_the_same() {
        assert_eq!(take(r#"{"stop": "a"}"#).unwrap().stop, take(r#"{"stop": ["a"]}"#).unwrap().stop);
    }
}
