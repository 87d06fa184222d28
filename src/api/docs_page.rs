//! `GET /docs`: the OpenAPI document as a page, from files inside this program; nothing is fetched from elsewhere.
use std::sync::{Arc, OnceLock};

use axum::extract::Path;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use utoipa_swagger_ui::{Config, serve};

use super::error::ApiError;

/// The page may load and ask this server only, and nobody may frame it.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; style-src 'self' 'unsafe-inline'; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'none'";

/// Sends the browser to the page; the files it is made of lie below.
#[utoipa::path(
    get,
    path = "/docs",
    tag = "Operations",
    summary = "This document as a page",
    responses(
        (status = 308, description = "The page is at `docs/`"),
        (status = 404, description = "There is an operations listener, and the page is there"),
    ),
)]
pub(crate) async fn docs() -> Response {
    // Relative, so that it holds behind a proxy that adds a prefix.
    (StatusCode::PERMANENT_REDIRECT, [(header::LOCATION, HeaderValue::from_static("docs/"))]).into_response()
}

/// The page itself, or one of its files.
pub(crate) async fn docs_file(file: Option<Path<String>>) -> Result<Response, ApiError> {
    static CONFIG: OnceLock<Arc<Config<'static>>> = OnceLock::new();
    let config = CONFIG.get_or_init(|| {
        // Without a word about it, the page would ask a validator on the internet.
        let config = Config::from("../openapi.json").validator_url("none").deep_linking(true).doc_expansion("list");
        Arc::new(config.try_it_out_enabled(true))
    });
    let name = file.map_or_else(String::new, |Path(name)| name);
    let found = serve(&name, Arc::clone(config)).map_err(|error| {
        tracing::error!(%error, "the page of the API cannot be made");
        ApiError::internal()
    })?;
    let file = found.ok_or_else(|| ApiError::not_found("File"))?;
    let mut response = file.bytes.into_owned().into_response();
    let headers = response.headers_mut();
    if let Ok(kind) = HeaderValue::try_from(file.content_type) {
        headers.insert(header::CONTENT_TYPE, kind);
    }
    headers.insert(header::CONTENT_SECURITY_POLICY, HeaderValue::from_static(POLICY));
    headers.insert(HeaderName::from_static("x-content-type-options"), HeaderValue::from_static("nosniff"));
    if file.gzpipped {
        headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    }
    Ok(response)
}
