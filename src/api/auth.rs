//! Who is calling: from headers to a principal, before a byte of the body is read.
use std::net::IpAddr;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Response, header};
use axum::middleware::Next;
use axum::response::IntoResponse;

use super::body::discard;
use super::error::ApiError;
use super::limits::auth_error;
use super::source::{Peer, source_address};
use super::state::Api;
use crate::governance::{AuthFailure, Credential, Principal};

/// When a client should come back to a server that is stopping: by then another one has its address.
const DRAINING_PAUSE: std::time::Duration = std::time::Duration::from_secs(5);

/// Lets anybody with a valid credential pass and leaves the [`Principal`] in the request.
pub(crate) async fn require_caller(State(api): State<Api>, mut request: Request, next: Next) -> Response<Body> {
    match authenticate(&api, presented(&api, &request)).await {
        Ok(principal) => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Err(error) => refuse(request, error).await,
    }
}

/// Lets anybody pass whose credential opens inference.
pub(crate) async fn require_inference(State(api): State<Api>, mut request: Request, next: Next) -> Response<Body> {
    match authenticate(&api, presented(&api, &request)).await {
        Ok(principal) if principal.may_infer() => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Ok(_) => {
            let what = "Tokens of this identity provider open the account only: make an API key with one, or a token.";
            refuse(request, ApiError::forbidden(what)).await
        }
        Err(error) => refuse(request, error).await,
    }
}

/// Lets administrators pass.
pub(crate) async fn require_admin(State(api): State<Api>, mut request: Request, next: Next) -> Response<Body> {
    match authenticate(&api, presented(&api, &request)).await {
        Ok(principal) if principal.is_admin => {
            request.extensions_mut().insert(principal);
            next.run(request).await
        }
        Ok(_) => refuse(request, ApiError::forbidden("Only administrators may do this.")).await,
        Err(error) => refuse(request, error).await,
    }
}

async fn refuse(request: Request, error: ApiError) -> Response<Body> {
    let (parts, body) = request.into_parts();
    discard(&parts.headers, body).await;
    error.into_response()
}

/// What a request says about who sent it.
struct Presented {
    credential: Credential,
    source: IpAddr,
}

fn presented(api: &Api, request: &Request) -> Result<Presented, ApiError> {
    if api.lifecycle.is_draining() {
        return Err(ApiError::unavailable("The server is stopping. Please retry.", DRAINING_PAUSE));
    }
    let credential = Credential::parse(credential(request.headers())?);
    let peer = request.extensions().get::<Peer>().expect("the server puts the peer into every request");
    Ok(Presented { credential, source: source_address(peer.0.ip(), request.headers(), &api.config) })
}

async fn authenticate(api: &Api, presented: Result<Presented, ApiError>) -> Result<Principal, ApiError> {
    let Presented { credential, source } = presented?;
    api.governor.authenticate(&credential, source).await.map_err(|failure| {
        if !matches!(failure, AuthFailure::Unavailable) {
            api.metrics.credential_failed();
        }
        auth_error(&failure)
    })
}

/// The credential as the client sent it; no other header says who somebody is.
fn credential(headers: &HeaderMap) -> Result<&str, ApiError> {
    let is_repeated = |name: &str| headers.get_all(name).iter().nth(1).is_some();
    if is_repeated("authorization") || is_repeated("x-api-key") {
        // Proxies differ in which of them they pass on; guessing would let two readers see two callers.
        return Err(ApiError::unauthenticated("there is more than one credential header of a kind"));
    }
    if let Some(value) = headers.get(header::AUTHORIZATION) {
        let text =
            value.to_str().map_err(|_| ApiError::unauthenticated("the Authorization header is not plain text"))?;
        return match text.split_once(' ') {
            Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer") && !token.trim().is_empty() => {
                Ok(token.trim())
            }
            _ => Err(ApiError::unauthenticated("the Authorization header must be `Bearer <key>`")),
        };
    }
    match headers.get("x-api-key").map(|value| value.to_str()) {
        Some(Ok(key)) if !key.trim().is_empty() => Ok(key.trim()),
        Some(_) => Err(ApiError::unauthenticated("the x-api-key header is not a key")),
        None => Err(ApiError::unauthenticated("no credential was given")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
    }

    #[test]
    fn a_credential_is_a_bearer_token_or_an_api_key_header() {
        assert_eq!(credential(&headers(&[("authorization", "Bearer k")])).unwrap(), "k");
        assert_eq!(credential(&headers(&[("authorization", "bearer  k ")])).unwrap(), "k");
        assert_eq!(credential(&headers(&[("x-api-key", "k")])).unwrap(), "k");
        assert_eq!(credential(&headers(&[("x-api-key", "a"), ("authorization", "Bearer b")])).unwrap(), "b");
    }

    #[test]
    fn anything_else_is_refused() {
        for pairs in [&[][..], &[("authorization", "Basic k")], &[("authorization", "Bearer ")], &[("x-api-key", " ")]]
        {
            assert_eq!(credential(&headers(pairs)).unwrap_err().status(), 401);
        }
        let mut twice = headers(&[("authorization", "Bearer a")]);
        twice.append("authorization", "Bearer b".parse().unwrap());
        assert_eq!(credential(&twice).unwrap_err().status(), 401);
    }
}
