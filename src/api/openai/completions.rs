//! `POST /v1/completions`: raw prompts, several at once if asked for.
use axum::body::Body;
use axum::http::Response;
use tokio::time::Instant;

use super::completion_request::{CompletionRequest, Prompt};
use super::driver::{Finished, Output};
use super::logprobs::{Scored, TextScores, append};
use super::params::Delivery;
use super::start::{Caller, Plan, choose_model, start, tokenize_prompts};
use super::wire::{ChunkUsage, Document, Extension, Preamble, TextChoice, TextLogprobs};
use super::writer::{StreamWriter, answer_stream, collect, finish_word, json_answer};
use crate::api::error::ApiError;
use crate::api::models::ReadyModel;
use crate::api::sse::Frame;
use crate::api::state::Api;
use crate::engine::{FinishReason, TokenLogprob};

const OBJECT: &str = "text_completion";

/// Answers a completion request.
pub(crate) async fn complete(
    api: &Api,
    caller: Caller,
    path_model: Option<&str>,
    body: &[u8],
) -> Result<Response<Body>, ApiError> {
    let request = CompletionRequest::parse(body, &api.config.bounds)?;
    let (model, ready) = choose_model(api, &caller.principal, path_model, request.model.as_deref())?;
    let texts: Vec<Option<String>> =
        request.prompts.iter().map(|prompt| echo_text(prompt, &ready, request.echo)).collect();
    let tokenizing_since = Instant::now();
    let prompts = tokenize_prompts(api, &ready, request.prompts).await?;
    let preamble = Preamble {
        id: format!("cmpl-{}", caller.context.id.simple()),
        created: i64::try_from(api.now().as_secs()).unwrap_or(i64::MAX),
        model: model.name.clone(),
        system_fingerprint: model.fingerprint.clone(),
    };
    let scribe = Scribe::new(texts, &prompts, &ready, request.params.choices, request.logprobs.is_some());
    let delivery = request.params.delivery;
    let plan = Plan {
        model,
        ready,
        prompts,
        params: request.params,
        logprobs: request.logprobs,
        prompt_logprobs: request.logprobs.filter(|_| request.echo),
        continues_text: true,
        tokenizing_since,
    };
    let running = start(api, caller, plan).await?;
    match delivery {
        Delivery::Stream { include_usage } => {
            answer_stream(running, TextStream { preamble, scribe, include_usage }).await
        }
        Delivery::Whole => {
            let headers = running.headers;
            let mut answers = Answers::new(scribe);
            let finished = collect(running.outputs, |output| answers.add(output)).await;
            let finished = finished.map_err(|error| error.with_headers(headers.clone()))?;
            Ok(json_answer(headers, &answers.document(&preamble, finished)))
        }
    }
}

/// The prompt as the answer repeats it.
fn echo_text(prompt: &Prompt, ready: &ReadyModel, echo: bool) -> Option<String> {
    echo.then(|| match prompt {
        Prompt::Text(text) => text.clone(),
        Prompt::Tokens(tokens) => ready.text.tokenizer.decode(tokens, false),
    })
}

/// A piece of a choice.
struct Piece {
    choice: u32,
    text: String,
    logprobs: Option<TextLogprobs>,
}

/// Turns outputs into pieces: puts the echoed prompt first and keeps the offsets of log-probabilities.
struct Scribe {
    choices: u32,
    /// What each prompt's choices begin with.
    echoes: Vec<Option<String>>,
    /// The first token of each prompt, which has no log-probability.
    first_tokens: Vec<String>,
    has_logprobs: bool,
    scores: Vec<TextScores>,
}

impl Scribe {
    fn new(
        echoes: Vec<Option<String>>,
        prompts: &[Vec<u32>],
        ready: &ReadyModel,
        choices: u32,
        has_logprobs: bool,
    ) -> Self {
        let first = |prompt: &Vec<u32>| ready.text.tokenizer.decode(&prompt[..1], false);
        let scores = (0..prompts.len() * choices as usize).map(|_| TextScores::default()).collect();
        Self { choices, echoes, first_tokens: prompts.iter().map(first).collect(), has_logprobs, scores }
    }

    fn pieces(&mut self, output: Output) -> Vec<Piece> {
        match output {
            // With log-probabilities the echo comes with them.
            Output::Started if !self.has_logprobs => {
                (0..self.scores.len() as u32).filter_map(|choice| self.echo(choice, None)).collect()
            }
            Output::PromptLogprobs { prompt, tokens } => {
                let first = prompt as u32 * self.choices;
                (first..first + self.choices).filter_map(|choice| self.echo(choice, Some(&tokens))).collect()
            }
            Output::Text { text, logprobs, .. } if text.is_empty() && logprobs.is_empty() => Vec::new(),
            Output::Text { choice, text, logprobs } => {
                let scores = &mut self.scores[choice as usize];
                let logprobs = self.has_logprobs.then(|| scores.next(logprobs.iter().map(Scored::Known)));
                vec![Piece { choice, text, logprobs }]
            }
            Output::Started | Output::Finished(_) | Output::Failed(_) => Vec::new(),
        }
    }

    fn echo(&mut self, choice: u32, tokens: Option<&[Option<TokenLogprob>]>) -> Option<Piece> {
        let prompt = (choice / self.choices) as usize;
        let text = self.echoes[prompt].clone()?;
        let scores = &mut self.scores[choice as usize];
        let logprobs = match tokens {
            None => {
                scores.skip(&text);
                None
            }
            Some(tokens) => Some(scores.next(tokens.iter().map(|token| match token {
                Some(token) => Scored::Known(token),
                None => Scored::First(self.first_tokens[prompt].clone()),
            }))),
        };
        Some(Piece { choice, text, logprobs })
    }
}

/// The choices of a whole answer, as they grow.
struct Answers {
    scribe: Scribe,
    texts: Vec<String>,
    logprobs: Vec<TextLogprobs>,
}

impl Answers {
    fn new(scribe: Scribe) -> Self {
        let count = scribe.scores.len();
        let logprobs = (0..count).map(|_| TextLogprobs::default()).collect();
        Self { scribe, texts: vec![String::new(); count], logprobs }
    }

    fn add(&mut self, output: Output) {
        for piece in self.scribe.pieces(output) {
            self.texts[piece.choice as usize].push_str(&piece.text);
            if let Some(more) = piece.logprobs {
                append(&mut self.logprobs[piece.choice as usize], more);
            }
        }
    }

    fn document(self, preamble: &Preamble, finished: Finished) -> Document<'_, TextChoice> {
        let has_logprobs = self.scribe.has_logprobs;
        let parts = self.texts.into_iter().zip(self.logprobs).zip(&finished.reasons);
        let choice = |(index, ((text, logprobs), reason)): (u32, ((String, TextLogprobs), &FinishReason))| TextChoice {
            text,
            index,
            logprobs: has_logprobs.then_some(logprobs),
            finish_reason: Some(finish_word(*reason)),
        };
        let mut document = preamble.document(OBJECT, (0..).zip(parts).map(choice).collect());
        document.usage = Some(ChunkUsage::Known(finished.tell_usage()));
        document.millgate = finished.limit.map(|detail| Extension { detail });
        document
    }
}

/// Writes completion chunks.
struct TextStream {
    preamble: Preamble,
    scribe: Scribe,
    include_usage: bool,
}

impl TextStream {
    fn write(&self, frame: &mut Frame, choice: TextChoice, extension: Option<Extension>) {
        let mut document = self.preamble.document(OBJECT, vec![choice]);
        document.usage = self.include_usage.then_some(ChunkUsage::Pending(()));
        document.millgate = extension;
        frame.event(&document);
    }
}

impl StreamWriter for TextStream {
    fn chunk(&mut self, output: Output, frame: &mut Frame) {
        for Piece { choice, text, logprobs } in self.scribe.pieces(output) {
            self.write(frame, TextChoice { text, index: choice, logprobs, finish_reason: None }, None);
        }
    }

    fn finish(&mut self, finished: Finished, frame: &mut Frame) {
        for (index, reason) in (0..).zip(&finished.reasons) {
            let finish_reason = Some(finish_word(*reason));
            let detail = finished.limit.clone().filter(|_| *reason == FinishReason::Allowance);
            let choice = TextChoice { text: String::new(), index, logprobs: None, finish_reason };
            self.write(frame, choice, detail.map(|detail| Extension { detail }));
        }
        if self.include_usage {
            let mut document = self.preamble.document(OBJECT, Vec::<TextChoice>::new());
            document.usage = Some(ChunkUsage::Known(finished.tell_usage()));
            frame.event(&document);
        }
    }
}
