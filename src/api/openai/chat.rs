//! `POST /v1/chat/completions`.
use axum::body::Body;
use axum::http::Response;
use tokio::time::Instant;

use super::chat_request::ChatRequest;
use super::driver::{Finished, Output};
use super::logprobs::chat_logprobs;
use super::params::Delivery;
use super::start::{Caller, Plan, choose_model, start, tokenize_chat};
use super::wire::{AnswerMessage, ChatChoice, ChatChunkChoice, ChatLogprobs, ChunkUsage, Delta, Extension, Preamble};
use super::writer::{StreamWriter, answer_stream, collect, finish_word, json_answer};
use crate::api::error::ApiError;
use crate::api::sse::Frame;
use crate::api::state::Api;
use crate::engine::{FinishReason, TokenLogprob};

const CHUNK: &str = "chat.completion.chunk";

/// Answers a chat request.
pub(crate) async fn chat(
    api: &Api,
    caller: Caller,
    path_model: Option<&str>,
    body: &[u8],
) -> Result<Response<Body>, ApiError> {
    let request = ChatRequest::parse(body, &api.config.bounds)?;
    let (model, ready) = choose_model(api, &caller.principal, path_model, request.model.as_deref())?;
    let tokenizing_since = Instant::now();
    let prompt = tokenize_chat(api, &ready, request.messages).await?;
    let preamble = Preamble {
        id: format!("chatcmpl-{}", caller.context.id.simple()),
        created: i64::try_from(api.now().as_secs()).unwrap_or(i64::MAX),
        model: model.name.clone(),
        system_fingerprint: model.fingerprint.clone(),
    };
    let (choices, delivery) = (request.params.choices, request.params.delivery);
    let has_logprobs = request.logprobs.is_some();
    let plan = Plan {
        model,
        ready,
        prompts: vec![prompt],
        params: request.params,
        logprobs: request.logprobs,
        prompt_logprobs: None,
        continues_text: false,
        tokenizing_since,
    };
    let running = start(api, caller, plan).await?;
    match delivery {
        Delivery::Stream { include_usage } => {
            answer_stream(running, ChatStream { preamble, choices, include_usage, has_logprobs }).await
        }
        Delivery::Whole => {
            let headers = running.headers;
            let mut answers = vec![Answer::default(); choices as usize];
            let finished = collect(running.outputs, |output| add(&mut answers, output)).await;
            let finished = finished.map_err(|error| error.with_headers(headers.clone()))?;
            Ok(json_answer(headers, &whole(&preamble, answers, finished, has_logprobs)))
        }
    }
}

/// One choice of a whole answer, as it grows.
#[derive(Clone, Debug, Default)]
struct Answer {
    text: String,
    logprobs: Vec<TokenLogprob>,
}

fn add(answers: &mut [Answer], output: Output) {
    if let Output::Text { choice, text, logprobs } = output {
        let answer = &mut answers[choice as usize];
        answer.text.push_str(&text);
        answer.logprobs.extend(logprobs);
    }
}

fn whole<'a>(
    preamble: &'a Preamble,
    answers: Vec<Answer>,
    finished: Finished,
    has_logprobs: bool,
) -> super::wire::Document<'a, ChatChoice> {
    let choice = |(index, (answer, reason)): (u32, (Answer, &FinishReason))| ChatChoice {
        index,
        message: AnswerMessage { role: "assistant", content: answer.text, refusal: None, annotations: [] },
        logprobs: has_logprobs.then(|| chat_logprobs(&answer.logprobs)),
        finish_reason: finish_word(*reason),
    };
    let choices = (0..).zip(answers.into_iter().zip(&finished.reasons)).map(choice).collect();
    let mut document = preamble.document("chat.completion", choices);
    document.usage = Some(ChunkUsage::Known(finished.tell_usage()));
    document.millgate = finished.limit.map(|detail| Extension { detail });
    document
}

/// Writes chat chunks.
struct ChatStream {
    preamble: Preamble,
    choices: u32,
    include_usage: bool,
    has_logprobs: bool,
}

impl ChatStream {
    fn write(&self, frame: &mut Frame, choice: ChatChunkChoice, extension: Option<Extension>) {
        let mut document = self.preamble.document(CHUNK, vec![choice]);
        document.usage = self.include_usage.then_some(ChunkUsage::Pending(()));
        document.millgate = extension;
        frame.event(&document);
    }
}

fn chunk_choice(index: u32, delta: Delta) -> ChatChunkChoice {
    ChatChunkChoice { index, delta, logprobs: None, finish_reason: None }
}

impl StreamWriter for ChatStream {
    fn chunk(&mut self, output: Output, frame: &mut Frame) {
        match output {
            Output::Started => {
                for index in 0..self.choices {
                    let delta = Delta::Role { role: "assistant", content: "", refusal: None };
                    self.write(frame, chunk_choice(index, delta), None);
                }
            }
            // Empty text carries log-probabilities of tokens that show nothing yet, or nothing at all.
            Output::Text { text, logprobs, .. } if text.is_empty() && (logprobs.is_empty() || !self.has_logprobs) => {}
            Output::Text { choice, text, logprobs } => {
                let logprobs: Option<ChatLogprobs> = self.has_logprobs.then(|| chat_logprobs(&logprobs));
                let choice = ChatChunkChoice { logprobs, ..chunk_choice(choice, Delta::Content { content: text }) };
                self.write(frame, choice, None);
            }
            Output::PromptLogprobs { .. } | Output::Finished(_) | Output::Failed(_) => {}
        }
    }

    fn finish(&mut self, finished: Finished, frame: &mut Frame) {
        for (index, reason) in (0..).zip(&finished.reasons) {
            let finish_reason = Some(finish_word(*reason));
            let detail = finished.limit.clone().filter(|_| *reason == FinishReason::Allowance);
            let choice = ChatChunkChoice { finish_reason, ..chunk_choice(index, Delta::Nothing {}) };
            self.write(frame, choice, detail.map(|detail| Extension { detail }));
        }
        if self.include_usage {
            let mut document = self.preamble.document(CHUNK, Vec::<ChatChunkChoice>::new());
            document.usage = Some(ChunkUsage::Known(finished.tell_usage()));
            frame.event(&document);
        }
    }
}
