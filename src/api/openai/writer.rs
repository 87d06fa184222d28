//! From a generation's outputs to an answer: events of a stream, or one document.
use axum::body::Body;
use axum::http::{HeaderMap, HeaderValue, Response, header};
use futures::StreamExt;
use futures::stream;
use serde::Serialize;
use tokio::sync::mpsc::Receiver;

use super::driver::{Finished, Output};
use super::start::Running;
use crate::api::error::ApiError;
use crate::api::sse::{Frame, event_stream};
use crate::engine::FinishReason;

/// How one endpoint shows outputs.
pub(crate) trait StreamWriter: Send + 'static {
    /// Writes the chunks for one output that is neither the end nor an error.
    fn chunk(&mut self, output: Output, frame: &mut Frame);
    /// Writes the last chunks before `[DONE]`.
    fn finish(&mut self, finished: Finished, frame: &mut Frame);
}

/// The word for the reason a choice ended.
pub(crate) fn finish_word(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length | FinishReason::Allowance => "length",
    }
}

/// Streams a generation. The head of the answer leaves when the first token is near, so that what fails before has a
/// status of its own.
pub(crate) async fn answer_stream(running: Running, writer: impl StreamWriter) -> Result<Response<Body>, ApiError> {
    let Running { mut outputs, headers } = running;
    let first = match outputs.recv().await {
        Some(Output::Failed(error)) => return Err(error.with_headers(headers)),
        Some(first) => first,
        None => return Err(ApiError::internal().with_headers(headers)),
    };
    let state = Some((Some(first), outputs, writer));
    let frames = stream::unfold(state, |state| async {
        let (first, mut outputs, mut writer) = state?;
        let output = match first {
            Some(first) => Some(first),
            None => outputs.recv().await,
        };
        let mut frame = Frame::default();
        let mut is_last = write(output, &mut writer, &mut frame);
        // What is there already leaves together.
        while !is_last && let Ok(output) = outputs.try_recv() {
            is_last = write(Some(output), &mut writer, &mut frame);
        }
        Some((frame, (!is_last).then_some((None, outputs, writer))))
    });
    Ok(event_stream(headers, frames.boxed()))
}

/// Writes one output; true for the last one.
fn write(output: Option<Output>, writer: &mut impl StreamWriter, frame: &mut Frame) -> bool {
    match output {
        Some(Output::Finished(finished)) => writer.finish(*finished, frame),
        Some(Output::Failed(error)) => frame.raw_event(&error.to_json()),
        Some(output) => {
            writer.chunk(output, frame);
            return false;
        }
        // The generation's task has died without a word.
        None => frame.raw_event(&ApiError::internal().to_json()),
    }
    frame.done();
    true
}

/// Collects a generation: every output before the end goes to `add`.
///
/// # Cancel
/// Dropping the future drops the receiver, which cancels the generation.
pub(crate) async fn collect(mut outputs: Receiver<Output>, mut add: impl FnMut(Output)) -> Result<Finished, ApiError> {
    loop {
        match outputs.recv().await {
            Some(Output::Finished(finished)) => return Ok(*finished),
            Some(Output::Failed(error)) => return Err(*error),
            Some(output) => add(output),
            None => return Err(ApiError::internal()),
        }
    }
}

/// One JSON document as an answer.
pub(crate) fn json_answer(headers: HeaderMap, document: &impl Serialize) -> Response<Body> {
    let body = serde_json::to_vec(document).expect("documents of strings and numbers always serialise");
    let mut response = Response::new(Body::from(body));
    *response.headers_mut() = headers;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
