//! Asks the API server of a Kubernetes cluster about tokens.
//!
//! A TokenReview is one POST, and this program has an HTTP client already: a client library for all of Kubernetes would be many
//! crates for one call.

use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context as _, anyhow};
use async_trait::async_trait;
use reqwest::header::{ACCEPT, CONTENT_TYPE};

use super::answer;
use crate::governance::{KubernetesCluster, ReviewError, Secret, TokenReviews};
use crate::telemetry::guard;

/// An answer repeats the token and lists groups.
const BYTES_MAX: usize = 256 << 10;
/// So much of what the API server says about an error goes into the log, in characters.
const SAID_MAX: usize = 300;

/// The API server, as a pod reaches it: known by the cluster's own certificates, and told who asks by a token of a file.
///
/// Both files are read for every review, because both are replaced while the server runs.
pub struct ApiServer {
    url: String,
    token_file: PathBuf,
    /// `None`: it is on this machine and speaks plain HTTP.
    ca_file: Option<PathBuf>,
    trusted: Mutex<Trusted>,
}

/// A client, and the certificates it was made for.
struct Trusted {
    certificates: Option<Vec<u8>>,
    client: reqwest::Client,
}

impl ApiServer {
    /// Reads both files once, so that a wrong path is told at the start; nothing is asked yet.
    ///
    /// # Errors
    /// A file cannot be read, or holds nothing of use.
    pub fn new(cluster: &KubernetesCluster) -> anyhow::Result<Self> {
        // Fails only when a provider is installed already, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let is_plain = cluster.server.starts_with("http://");
        let ca_file = Some(&cluster.ca_file).filter(|_| !is_plain);
        let certificates = ca_file.map(|file| std::fs::read(file).with_context(|| cannot_read(file))).transpose()?;
        let trusted = Trusted::new(certificates).map_err(|problem| anyhow!(problem)).context("kubernetes.ca_file")?;
        let token = std::fs::read_to_string(&cluster.token_file).with_context(|| cannot_read(&cluster.token_file))?;
        // Later ones are JWTs, which are masked by their shape; this one may be made by hand.
        guard(token.trim());
        Ok(Self {
            url: format!("{}/apis/authentication.k8s.io/v1/tokenreviews", cluster.server.trim_end_matches('/')),
            token_file: cluster.token_file.clone(),
            ca_file: ca_file.cloned(),
            trusted: Mutex::new(trusted),
        })
    }

    /// A client that trusts the certificates as they are now. It is made anew only when they have changed: it keeps connections.
    async fn client(&self) -> Result<reqwest::Client, String> {
        let certificates = match &self.ca_file {
            None => None,
            Some(file) => Some(tokio::fs::read(file).await.map_err(|error| format!("{}: {error}", cannot_read(file)))?),
        };
        let mut trusted = self.trusted.lock().unwrap_or_else(PoisonError::into_inner);
        if trusted.certificates != certificates {
            *trusted = Trusted::new(certificates)?;
        }
        Ok(trusted.client.clone())
    }

    async fn post(&self, review: &Secret) -> Result<Vec<u8>, String> {
        let client = self.client().await?;
        let token = tokio::fs::read_to_string(&self.token_file).await;
        let token = token.map_err(|error| format!("{}: {error}", cannot_read(&self.token_file)))?;
        let request = client.post(&self.url).bearer_auth(token.trim()).header(ACCEPT, "application/json");
        let request = request.header(CONTENT_TYPE, "application/json").body(review.reveal().to_owned());
        let answer = request.send().await.map_err(answer::cause)?;
        let status = answer.status();
        let body = answer::body(answer, BYTES_MAX).await?;
        if status.is_success() {
            return Ok(body);
        }
        Err(format!("it answers {status}{}", said(&body)))
    }
}

#[async_trait]
impl TokenReviews for ApiServer {
    async fn review(&self, request: &Secret) -> Result<Vec<u8>, ReviewError> {
        self.post(request).await.map_err(|problem| ReviewError { problem })
    }
}

impl Trusted {
    fn new(certificates: Option<Vec<u8>>) -> Result<Self, String> {
        // The token goes to this very server: no redirect, no proxy, and no authority but the cluster's own.
        let client = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .user_agent(concat!("millgate/", env!("CARGO_PKG_VERSION")));
        let client = match &certificates {
            None => client,
            Some(bundle) => {
                let roots = reqwest::Certificate::from_pem_bundle(bundle).unwrap_or_default();
                if roots.is_empty() {
                    return Err("the file holds no certificate in PEM form".into());
                }
                client.tls_certs_only(roots)
            }
        };
        let client = client.build().map_err(answer::cause)?;
        Ok(Self { certificates, client })
    }
}

/// What a `Status` object says in words, on one line; it names who may not do what.
fn said(body: &[u8]) -> String {
    let status: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let Some(message) = status["message"].as_str() else { return String::new() };
    let message: String = message.chars().map(|c| if c.is_control() { ' ' } else { c }).take(SAID_MAX).collect();
    format!(": {message}")
}

fn cannot_read(file: &Path) -> String {
    format!("cannot read `{}`", file.display())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_missing_or_holds_no_certificate_is_told_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let (token_file, ca_file) = (folder.path().join("token"), folder.path().join("ca.crt"));
        let cluster = KubernetesCluster { token_file, ca_file, ..KubernetesCluster::new(vec!["millgate".into()]) };
        let problem = || format!("{:#}", ApiServer::new(&cluster).err().unwrap());
        assert!(problem().starts_with(&format!("cannot read `{}`", cluster.ca_file.display())), "{}", problem());
        std::fs::write(&cluster.ca_file, "no certificate").unwrap();
        assert_eq!(problem(), "kubernetes.ca_file: the file holds no certificate in PEM form");
        let plain = KubernetesCluster { server: "http://127.0.0.1:1".into(), ..cluster.clone() };
        let problem = format!("{:#}", ApiServer::new(&plain).err().unwrap());
        assert!(problem.starts_with(&format!("cannot read `{}`", cluster.token_file.display())), "{problem}");
    }

    #[test]
    fn what_the_api_server_says_about_an_error_is_one_short_line() {
        assert_eq!(
            said(br#"{"kind": "Status", "message": "User \"app\" cannot\ncreate"}"#),
            ": User \"app\" cannot create"
        );
        assert_eq!(said(br#"{"message": 7}"#), "");
        assert_eq!(said(b"<html>"), "");
        assert_eq!(said(format!("{{\"message\": \"{}\"}}", "a".repeat(1000)).as_bytes()).len(), SAID_MAX + 2);
    }
}
