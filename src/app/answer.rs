//! Reads answers of other servers within bounds, and says in plain words why there is none.

use futures::StreamExt as _;

/// The body of an answer.
///
/// # Errors
/// In words: it breaks off, or is larger than `bytes_max`.
pub(super) async fn body(answer: reqwest::Response, bytes_max: usize) -> Result<Vec<u8>, String> {
    let mut body = Vec::new();
    let mut pieces = answer.bytes_stream();
    while let Some(piece) = pieces.next().await {
        body.extend_from_slice(&piece.map_err(cause)?);
        if body.len() > bytes_max {
            return Err(format!("it is larger than {bytes_max} bytes"));
        }
    }
    Ok(body)
}

/// The system's own words; the layers between say nothing that helps.
pub(super) fn cause(error: reqwest::Error) -> String {
    if error.is_timeout() {
        return "no answer in time".into();
    }
    anyhow::Error::new(error.without_url()).root_cause().to_string()
}
