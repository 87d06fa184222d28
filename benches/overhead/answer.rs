//! Whether the bytes that came in are a whole HTTP/1.1 answer, and which: as little reading as a load generator can do with.

/// An answer of which nothing is missing.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Whole {
    pub(crate) status: u16,
    /// Whether its body, without the framing of chunks, ends with the words that end a stream of events.
    pub(crate) is_done: bool,
}

/// How the end of a body is told.
enum Ending {
    Chunked,
    After(usize),
}

const DONE: &[u8] = b"data: [DONE]\n\n";

/// Reads an answer from its first byte on; `None` while it is not complete. `body` is room to work in.
///
/// # Errors
/// Panics over bytes that are no answer or go on behind its end: a benchmark must not count them.
pub(crate) fn read(bytes: &[u8], body: &mut Vec<u8>) -> Option<Whole> {
    let (status, ending, rest) = head(bytes)?;
    body.clear();
    match ending {
        Ending::After(length) if rest.len() < length => return None,
        Ending::After(length) => {
            assert_eq!(rest.len(), length, "bytes behind the end of an answer");
            body.extend_from_slice(rest);
        }
        Ending::Chunked => chunks(rest, body)?,
    }
    Some(Whole { status, is_done: body.ends_with(DONE) })
}

/// The status, how the body ends, and what has come of it; `None` until the head is complete.
fn head(bytes: &[u8]) -> Option<(u16, Ending, &[u8])> {
    let (first, mut rest) = line(bytes)?;
    let status = first.strip_prefix(b"HTTP/1.1 ").and_then(|text| text.get(..3)).and_then(number);
    let mut ending = None;
    loop {
        let header;
        (header, rest) = line(rest)?;
        if header.is_empty() {
            let status = status.expect("the first line of an HTTP/1.1 answer");
            return Some((status, ending.expect("a body whose end is told"), rest));
        }
        if let Some(value) = value_of(header, b"content-length:") {
            ending = Some(Ending::After(number(value).expect("a length in digits")));
        } else if let Some(value) = value_of(header, b"transfer-encoding:") {
            assert!(value.eq_ignore_ascii_case(b"chunked"), "an unknown transfer encoding");
            ending = Some(Ending::Chunked);
        }
    }
}

/// Joins chunks into `body`; `None` until the last one, the empty one, is complete.
fn chunks(mut rest: &[u8], body: &mut Vec<u8>) -> Option<()> {
    loop {
        let (size, data) = line(rest)?;
        let size = std::str::from_utf8(size).ok().and_then(|text| usize::from_str_radix(text, 16).ok());
        let size = size.expect("the size of a chunk");
        let (chunk, after) = data.split_at_checked(size)?;
        let behind = after.get(..2)?;
        assert_eq!(behind, b"\r\n", "a chunk ends with its line");
        body.extend_from_slice(chunk);
        rest = &after[2..];
        if size == 0 {
            assert!(rest.is_empty(), "bytes behind the end of an answer");
            return Some(());
        }
    }
}

/// The first line without its end, and what follows.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    Some((bytes[..end].trim_ascii_end(), &bytes[end + 1..]))
}

fn value_of<'a>(header: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = header.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then(|| value.trim_ascii())
}

fn number<T: std::str::FromStr>(digits: &[u8]) -> Option<T> {
    std::str::from_utf8(digits).ok()?.parse().ok()
}

/// Shows before anything is timed that no part of an answer passes for the whole.
pub(crate) fn check() {
    let plain = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello";
    let streamed =
        b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nda\n\r\nE\r\ndata: [DONE]\n\n\r\n0\r\n\r\n";
    let broken = b"HTTP/1.1 503 x\r\ntransfer-encoding: chunked\r\n\r\n3\r\nda\n\r\n0\r\n\r\n";
    let mut body = Vec::new();
    for (bytes, status, is_done) in [(&plain[..], 200, false), (streamed, 200, true), (broken, 503, false)] {
        for end in 0..bytes.len() {
            assert_eq!(read(&bytes[..end], &mut body), None, "the first {end} bytes pass for a whole answer");
        }
        assert_eq!(read(bytes, &mut body), Some(Whole { status, is_done }));
    }
}
