//! Server-sent events: how a stream of documents looks on the wire.
use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, HeaderValue, Response, header};
use futures::stream::{self, Stream};
use serde::Serialize;

/// The end of every stream.
const DONE: &[u8] = b"data: [DONE]\n\n";

/// About what an event takes.
const EVENT_BYTES: usize = 320;

/// The events of one piece of a body, written one after the other.
#[derive(Debug, Default)]
pub(crate) struct Frame(Vec<u8>);

impl Frame {
    /// Adds an event whose data is `document` as JSON on one line.
    pub(crate) fn event(&mut self, document: &impl Serialize) {
        self.0.reserve(EVENT_BYTES);
        self.0.extend_from_slice(b"data: ");
        serde_json::to_writer(&mut self.0, document).expect("documents of strings and numbers always serialise");
        self.0.extend_from_slice(b"\n\n");
    }

    /// Adds an event whose data is JSON already.
    pub(crate) fn raw_event(&mut self, json: &str) {
        self.0.extend_from_slice(b"data: ");
        self.0.extend_from_slice(json.as_bytes());
        self.0.extend_from_slice(b"\n\n");
    }

    /// Adds the end.
    pub(crate) fn done(&mut self) {
        self.0.extend_from_slice(DONE);
    }

    /// Whether there is nothing to write.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// An answer whose body is these frames.
pub(crate) fn event_stream(headers: HeaderMap, frames: impl Stream<Item = Frame> + Send + 'static) -> Response<Body> {
    use stream::StreamExt;
    let bytes = frames.filter(|frame| std::future::ready(!frame.is_empty()));
    let bytes = bytes.map(|frame| Ok::<_, std::convert::Infallible>(Bytes::from(frame.0)));
    let mut response = Response::new(Body::from_stream(bytes));
    *response.headers_mut() = headers;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream; charset=utf-8"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies of the nginx family hold streams back otherwise.
    headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}
