//! Reading a request body within its bounds: size, and time.
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::{HeaderMap, header};
use futures::StreamExt;

use super::config::Config;
use super::error::{ApiError, Kind};

/// A body that is too large or not wanted is still read for this long and this far, so that the client gets to see the answer instead of
/// a broken connection while it is sending.
const LINGER: Duration = Duration::from_secs(2);
const LINGER_BYTES: usize = 256 << 20;

/// Reads the whole body.
///
/// # Errors
/// 415 for a compressed body, 413 above `max_body_bytes`, 408 when it takes longer than `read_timeout`, 400 when it breaks off.
pub(crate) async fn read_body(headers: &HeaderMap, body: Body, config: &Config) -> Result<Bytes, ApiError> {
    let most = config.max_body_bytes;
    if let Some(encoding) = encoding(headers) {
        discard(headers, body).await;
        let message = format!("the request body is encoded as `{encoding}`: send it as it is");
        return Err(ApiError::new(Kind::UnsupportedEncoding, message));
    }
    let announced = headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse::<u64>().ok());
    if announced.is_some_and(|length| length > most as u64) {
        discard(headers, body).await;
        return Err(ApiError::body_too_large(most));
    }
    match tokio::time::timeout(config.read_timeout, collect(body, most)).await {
        Ok(result) => result,
        Err(_) => {
            let seconds = config.read_timeout.as_secs();
            Err(ApiError::new(Kind::TimedOut, format!("the request body did not arrive within {seconds} seconds")))
        }
    }
}

/// How the body is encoded, if it is.
fn encoding(headers: &HeaderMap) -> Option<String> {
    let mut encodings = headers.get_all(header::CONTENT_ENCODING).iter();
    let encoding = encodings.find(|value| !value.is_empty() && !value.as_bytes().eq_ignore_ascii_case(b"identity"))?;
    Some(String::from_utf8_lossy(encoding.as_bytes()).into_owned())
}

/// Reads away the body of a request that is refused without it: closing while the client still sends would reset the
/// connection, and the answer would be lost with it.
pub(crate) async fn discard(headers: &HeaderMap, body: Body) {
    // Who waits for leave to send has sent nothing yet, and must not be made to.
    if !headers.contains_key(header::EXPECT) {
        linger(body).await;
    }
}

async fn collect(body: Body, most: usize) -> Result<Bytes, ApiError> {
    let mut stream = body.into_data_stream();
    let mut collected = Vec::new();
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| ApiError::invalid(None, "the request body broke off"))?;
        if collected.len() + chunk.len() > most {
            linger(Body::from_stream(stream)).await;
            return Err(ApiError::body_too_large(most));
        }
        collected.extend_from_slice(&chunk);
    }
    Ok(collected.into())
}

async fn linger(body: Body) {
    let mut stream = body.into_data_stream();
    let drain = async {
        let mut taken = 0;
        while let Some(Ok(chunk)) = stream.next().await {
            taken += chunk.len();
            if taken > LINGER_BYTES {
                break;
            }
        }
    };
    // Whether it ended or the time is up, the answer is the same.
    let _ = tokio::time::timeout(LINGER, drain).await;
}
