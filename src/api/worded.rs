//! The answers that the HTTP parser gives by itself, to bytes that are no request it takes, brought into the one shape.
//!
//! They never reach the router, and the parser has no hook for them: they are recognised on their way out, replaced and
//! counted. HTTP/2, which the parser meets with silence, is recognised on its way in.
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::http::StatusCode;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use uuid::Uuid;

use super::error::{ApiError, Kind};
use crate::telemetry::Metrics;

/// How a client begins that speaks HTTP/2 without having asked; the parser would close the connection without a word.
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n";
/// The route that answers to no request at all are counted under.
const ROUTE: &str = "unparsed";

/// A connection whose bare errors get a body.
pub(crate) struct Worded<S> {
    stream: S,
    /// What goes out in place of a bare answer, and how much of it has.
    substitute: Option<(Vec<u8>, usize)>,
    max_headers: usize,
    max_header_bytes: usize,
    metrics: Arc<Metrics>,
    reading: Reading,
}

/// What has come in so far.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reading {
    Nothing,
    Requests,
    /// HTTP/2: it is told so, and the rest of what it sends is thrown away.
    Http2,
}

impl<S> Worded<S> {
    /// Wraps a stream; the bounds are told to who crosses them.
    pub(crate) fn new(stream: S, max_headers: usize, max_header_bytes: usize, metrics: Arc<Metrics>) -> Self {
        Self { stream, substitute: None, max_headers, max_header_bytes, metrics, reading: Reading::Nothing }
    }

    fn worded(&self, status: StatusCode) -> Vec<u8> {
        let (kind, message) = match status {
            StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE => (
                Kind::TooManyHeaders,
                format!(
                    "the request has more than {} headers, or {} bytes of them",
                    self.max_headers, self.max_header_bytes
                ),
            ),
            StatusCode::URI_TOO_LONG => (Kind::AddressTooLong, "the address of the request is too long".to_owned()),
            StatusCode::HTTP_VERSION_NOT_SUPPORTED => {
                (Kind::HttpVersion, "this server speaks HTTP/1.1: HTTP/2 needs a proxy in front".to_owned())
            }
            _ => (Kind::Invalid, "the request is not well-formed HTTP/1.1".to_owned()),
        };
        let error = ApiError::new(kind, message);
        let (body, id, status) = (error.to_json(), Uuid::now_v7(), error.status());
        self.metrics.answered(ROUTE, status.as_u16());
        format!(
            "HTTP/1.1 {} {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\nx-request-id: {id}\r\n\
             x-millgate-request-id: {id}\r\nconnection: close\r\n\r\n{body}",
            status.as_u16(),
            status.canonical_reason().unwrap_or_default(),
            body.len(),
        )
        .into_bytes()
    }
}

impl<S: AsyncWrite + Unpin> Worded<S> {
    /// Writes the substitute to its end.
    fn poll_substitute(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some((bytes, done)) = &mut self.substitute {
            if *done == bytes.len() {
                break;
            }
            match ready!(Pin::new(&mut self.stream).poll_write(context, &bytes[*done..]))? {
                0 => return Poll::Ready(Err(io::ErrorKind::WriteZero.into())),
                count => *done += count,
            }
        }
        self.substitute = None;
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> Worded<S> {
    /// Writes the refusal and reads on until the client closes, so that what it has sent does not reset the connection
    /// under the answer; the parser sees a stream without a byte. Its time limit on headers bounds the wait.
    fn poll_refuse(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if self.substitute.is_some() {
            ready!(self.poll_substitute(context))?;
            ready!(Pin::new(&mut self.stream).poll_shutdown(context))?;
        }
        let mut scratch = [0; 1024];
        loop {
            let mut unread = ReadBuf::new(&mut scratch);
            ready!(Pin::new(&mut self.stream).poll_read(context, &mut unread))?;
            if unread.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

/// The status of an answer that the parser made: an error without a body, and without the id that every answer of ours has.
fn bare_status(bytes: &[u8]) -> Option<StatusCode> {
    let code = bytes.strip_prefix(b"HTTP/1.1 ")?.get(..3).filter(|code| code[0] == b'4')?;
    let head = std::str::from_utf8(bytes.strip_suffix(b"\r\n\r\n")?).ok()?.to_ascii_lowercase();
    let is_bare = head.contains("\r\ncontent-length: 0") && !head.contains("\r\nx-millgate-request-id:");
    StatusCode::from_bytes(code).ok().filter(|_| is_bare)
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Worded<S> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.reading == Reading::Http2 {
            return this.poll_refuse(context);
        }
        let before = into.filled().len();
        ready!(Pin::new(&mut this.stream).poll_read(context, into))?;
        if this.reading == Reading::Requests {
            return Poll::Ready(Ok(()));
        }
        if !into.filled()[before..].starts_with(HTTP2_PREFACE) {
            this.reading = Reading::Requests;
            return Poll::Ready(Ok(()));
        }
        into.set_filled(before);
        this.reading = Reading::Http2;
        this.substitute = Some((this.worded(StatusCode::HTTP_VERSION_NOT_SUPPORTED), 0));
        this.poll_refuse(context)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Worded<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if this.substitute.is_none()
            && let Some(status) = bare_status(bytes)
        {
            this.substitute = Some((this.worded(status), 0));
        }
        match this.substitute {
            Some(_) => this.poll_substitute(context).map_ok(|()| bytes.len()),
            None => Pin::new(&mut this.stream).poll_write(context, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // A bare answer stands alone: there is no body to send beside it.
        match slices {
            [one] => self.poll_write(context, one),
            several => Pin::new(&mut self.get_mut().stream).poll_write_vectored(context, several),
        }
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    const BARE: &[u8] =
        b"HTTP/1.1 431 Request Header Fields Too Large\r\nconnection: close\r\ncontent-length: 0\r\ndate: x\r\n\r\n";

    /// What arrives at the other end of a pipe of a few bytes, written in one go.
    async fn sent(bytes: &[u8]) -> String {
        let (near, mut far) = tokio::io::duplex(16);
        let reading = async {
            let mut text = String::new();
            tokio::io::AsyncReadExt::read_to_string(&mut far, &mut text).await.map(|_| text)
        };
        let mut stream = Worded::new(near, 100, 65_536, Arc::new(Metrics::new()));
        let writing = async move { stream.write_all(bytes).await };
        let (written, read) = tokio::join!(writing, reading);
        written.unwrap();
        read.unwrap()
    }

    #[tokio::test]
    async fn a_bare_answer_of_the_parser_gets_a_body_and_an_id() {
        let answer = sent(BARE).await;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        assert!(head.starts_with("HTTP/1.1 431 ") && head.contains("x-millgate-request-id: "), "{head}");
        assert!(head.contains(&format!("content-length: {}", body.len())), "{head}");
        let error: serde_json::Value = serde_json::from_str(body).unwrap();
        assert_eq!(error["error"]["message"], "the request has more than 100 headers, or 65536 bytes of them");
    }

    #[tokio::test]
    async fn everything_else_goes_out_as_it_is() {
        let ours = b"HTTP/1.1 404 Not Found\r\nx-millgate-request-id: 1\r\ncontent-length: 0\r\n\r\n";
        let fine = b"HTTP/1.1 204 No Content\r\ncontent-length: 0\r\n\r\n";
        for bytes in [&ours[..], fine, b"data: HTTP/1.1 431 x\r\ncontent-length: 0\r\n\r\n", b"HTTP/1.1 4", b""] {
            assert_eq!(sent(bytes).await.as_bytes(), bytes);
        }
    }
}
