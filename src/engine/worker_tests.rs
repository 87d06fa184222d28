//! The engine with its thread: concurrency, cancellation, drain, shutdown and panics, seen through the handle.

use super::*;
use crate::engine::fake::{FakeModel, FakeOptions};
use crate::engine::{
    CacheSalt, Event, EventStream, FlowId, Request, RequestId, SamplingParams, SubmitError, TokenUsage,
};

fn start(options: FakeOptions) -> EngineHandle {
    spawn("fake", Box::new(FakeModel::new(options)), FakeModel::text(), Config::default()).unwrap()
}

fn endless() -> FakeOptions {
    FakeOptions { end_logit: f32::NEG_INFINITY, step_delay: Duration::from_millis(2), ..FakeOptions::default() }
}

fn request(prompt: &str, seed: u64, max_tokens: u32) -> Request {
    Request {
        id: RequestId(Uuid::nil()),
        prompt: prompt.bytes().map(u32::from).collect(),
        sampling: SamplingParams { seed, ..SamplingParams::default() },
        choices: 1,
        max_tokens,
        min_tokens: 0,
        ignore_eos: false,
        stop: Vec::new(),
        continues_text: false,
        prompt_logprobs: None,
        allowance: 10_000,
        flow: FlowId(seed),
        weight: 1,
        priority: 0,
        cache_salt: CacheSalt([0; 16]),
    }
}

/// Reads to the end: the text, the terminal event, and how many events of that kind there were.
async fn read(mut stream: EventStream) -> (String, Event, usize) {
    let (mut whole, mut ends) = (String::new(), Vec::new());
    while let Some(event) = stream.next().await {
        match event {
            Event::Text { text, .. } => whole.push_str(&text),
            event if event.is_terminal() => ends.push(event),
            _ => {}
        }
    }
    (whole, ends.last().cloned().expect("a stream ends with a terminal event"), ends.len())
}

async fn until_text(stream: &mut EventStream) {
    while !matches!(stream.next().await, Some(Event::Text { .. })) {}
}

#[tokio::test]
async fn clients_at_the_same_time_get_what_they_get_one_by_one() {
    let engine = start(FakeOptions::default());
    let prompt = |seed: u64| format!("question number {} of several", seed % 7);
    let streams: Vec<_> = (0..64).map(|seed| engine.submit(request(&prompt(seed), seed, 60)).unwrap()).collect();
    let together = futures::future::join_all(streams.into_iter().map(read)).await;
    for (seed, (text, end, ends)) in (0..).zip(together) {
        let alone = read(engine.submit(request(&prompt(seed), seed, 60)).unwrap()).await;
        assert_eq!(alone.0, text);
        assert!(matches!(end, Event::Done(_)));
        assert_eq!(ends, 1);
    }
    engine.drained().await;
    let status = engine.status();
    assert!(status.is_healthy, "{status:?}");
    assert_eq!((status.open_requests, status.totals.requests_done), (0, 128));
    engine.shutdown().await;
}

#[tokio::test]
async fn a_reader_that_goes_away_cancels_its_request_and_frees_the_blocks() {
    let engine = start(endless());
    let mut stream = engine.submit(request("hello", 1, 1900)).unwrap();
    until_text(&mut stream).await;
    drop(stream);
    engine.drained().await;
    let status = engine.status();
    assert_eq!(status.totals.requests_failed, 1);
    assert!(status.totals.completion_tokens < 1000, "{status:?}");
    engine.shutdown().await;
    assert_eq!(engine.status().totals.blocks.owned, 0);
}

#[tokio::test]
async fn cancelling_keeps_the_stream_until_the_exact_usage_is_known() {
    let engine = start(endless());
    let mut stream = engine.submit(request("hello", 1, 1900)).unwrap();
    until_text(&mut stream).await;
    stream.cancel();
    let mut last = None;
    while let Some(event) = stream.next().await {
        last = Some(event);
    }
    let usage = stream.usage();
    assert_eq!(last, Some(Event::Failed(Failure::Cancelled, usage)));
    assert_eq!(usage.prompt_tokens, 5);
    assert!(usage.completion_tokens > 0);
    engine.shutdown().await;
}

#[tokio::test]
async fn draining_refuses_new_requests_and_finishes_the_old() {
    let engine = start(FakeOptions::default());
    let stream = engine.submit(request("hello", 1, 100)).unwrap();
    engine.drain();
    assert_eq!(engine.submit(request("late", 1, 5)).unwrap_err(), SubmitError::Draining);
    assert!(matches!(read(stream).await.1, Event::Done(_)));
    engine.drained().await;
    engine.shutdown().await;
}

#[tokio::test]
async fn shutdown_ends_every_open_request_once_and_later_ones_are_refused() {
    let engine = start(endless());
    let streams: Vec<_> = (0..5).map(|seed| engine.submit(request("hello", seed, 1900)).unwrap()).collect();
    engine.shutdown().await;
    for stream in streams {
        let (_, end, ends) = read(stream).await;
        assert!(matches!(end, Event::Failed(Failure::Shutdown, _)));
        assert_eq!(ends, 1);
    }
    assert_eq!(engine.submit(request("late", 1, 5)).unwrap_err(), SubmitError::Stopped);
    assert!(!engine.status().is_healthy);
}

#[tokio::test]
async fn a_panic_of_the_thread_fails_every_open_request_and_shows_in_the_status() {
    let engine = start(endless());
    let mut first = engine.submit(request("hello", 1, 1900)).unwrap();
    until_text(&mut first).await;
    let poison = Request { prompt: vec![FakeModel::PANIC_TOKEN], ..request("", 2, 5) };
    let second = read(engine.submit(poison).unwrap()).await;
    assert!(matches!(second.1, Event::Failed(Failure::Internal(_), usage) if usage == TokenUsage::default()));
    let paid = first.usage();
    let (_, end, ends) = read(first).await;
    assert!(matches!(end, Event::Failed(Failure::Internal(_), usage) if usage == paid && usage.completion_tokens > 0));
    assert_eq!(ends, 1);
    let status = engine.status();
    assert!(!status.is_healthy);
    assert!(status.fault.unwrap().contains("panicked"));
    assert_eq!(engine.submit(request("late", 1, 5)).unwrap_err(), SubmitError::Stopped);
    engine.shutdown().await;
}

#[tokio::test]
async fn a_grant_wakes_a_parked_request() {
    let engine = start(FakeOptions { end_logit: f32::NEG_INFINITY, ..FakeOptions::default() });
    let mut stream = engine.submit(Request { allowance: 3, ..request("hello", 1, 10) }).unwrap();
    while !matches!(stream.next().await, Some(Event::Parked)) {}
    assert_eq!(stream.usage().completion_tokens, 3);
    stream.grant(100);
    let (_, end, _) = read(stream).await;
    assert!(matches!(end, Event::Done(usage) if usage.completion_tokens == 10));
    engine.shutdown().await;
}

#[tokio::test]
async fn requests_without_meaning_are_refused_at_the_door() {
    let engine = start(FakeOptions { context_window: 64, ..FakeOptions::default() });
    let refusal = |change: fn(&mut Request)| {
        let mut request = request("hello", 1, 5);
        change(&mut request);
        engine.submit(request).unwrap_err()
    };
    let is_invalid = |change| matches!(refusal(change), SubmitError::Invalid { .. });
    assert!(is_invalid(|request| request.prompt.clear()));
    assert!(is_invalid(|request| request.prompt.push(5000)));
    assert!(is_invalid(|request| request.choices = 0));
    assert!(is_invalid(|request| request.sampling.temperature = f32::NAN));
    assert!(is_invalid(|request| request.sampling.temperature = -1.0));
    assert!(is_invalid(|request| request.sampling.top_p = 1.5));
    assert!(is_invalid(|request| request.sampling.repetition_penalty = 0.0));
    assert!(is_invalid(|request| request.sampling.logit_bias = vec![(9999, 1.0)]));
    assert_eq!(
        refusal(|request| request.prompt = vec![1; 64]),
        SubmitError::PromptTooLong { prompt_tokens: 64, limit: 63 }
    );
    engine.shutdown().await;
}

#[test]
fn dropping_the_last_handle_stops_the_thread() {
    let engine = start(FakeOptions::default());
    let inbox = engine.shared_inbox();
    drop(engine);
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(inbox.has_stopped());
}
