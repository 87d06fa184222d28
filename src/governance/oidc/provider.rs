//! One identity provider at run time: its keys, fetched by one task, however many tokens ask for them.
//!
//! The task owns fetching. Requests ask it and wait; it fetches at most once in [`FETCH_PAUSE`], so a flood of made-up
//! key ids costs the provider one request now and then, and nobody else anything.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;

use super::claims;
use super::config::{OidcIssuer, TokenAlgorithm, is_safe_address};
use super::documents::Documents;
use super::jwks::KeySet;
use crate::governance::clock::{Clock, micros};
use crate::governance::login::Verdict;
use crate::governance::ports::StoreError;
use crate::governance::tokens::{Jws, Refused, strict_object};

/// The shortest time between two fetches, whatever anybody asks.
const FETCH_PAUSE: Duration = Duration::from_secs(10);
/// Requests that may wait for a fetch; more are told to come back.
const WAITING_MAX: usize = 256;

type Done = oneshot::Sender<()>;

/// A provider whose tokens are believed.
pub(in crate::governance) struct Provider {
    /// What the operator says about it.
    pub(in crate::governance) issuer: OidcIssuer,
    keys: ArcSwapOption<KeySet>,
    ask: mpsc::Sender<Done>,
    clock: Arc<dyn Clock>,
}

/// The part of a provider that fetches; run it once.
pub(in crate::governance) struct ProviderTask {
    provider: Arc<Provider>,
    asked: mpsc::Receiver<Done>,
    documents: Arc<dyn Documents>,
}

impl Provider {
    /// A provider nobody has asked anything yet.
    pub(in crate::governance) fn new(
        issuer: OidcIssuer,
        clock: Arc<dyn Clock>,
        documents: Arc<dyn Documents>,
    ) -> (Arc<Self>, ProviderTask) {
        let (ask, asked) = mpsc::channel(WAITING_MAX);
        let provider = Arc::new(Self { issuer, keys: ArcSwapOption::empty(), ask, clock });
        let task = ProviderTask { provider: provider.clone(), asked, documents };
        (provider, task)
    }

    /// Checks a token that names this provider.
    ///
    /// # Errors
    /// [`StoreError::Unavailable`] when there are no keys to check it with.
    pub(in crate::governance) async fn check(&self, jws: &Jws<'_>, now_us: i64) -> Result<Verdict, StoreError> {
        let named = self.issuer.algorithms.iter().find(|allowed| allowed.name() == jws.algorithm);
        let Some(TokenAlgorithm(algorithm)) = named.copied() else {
            return Ok(Verdict::Refused(Refused::Header("its algorithm is not allowed for this issuer".into())));
        };
        // Before the costly part: a token that says the wrong things needs no signature.
        let login = match claims::read(jws, &self.issuer, now_us) {
            Ok(login) => login,
            Err(refused) => return Ok(Verdict::Refused(refused)),
        };
        let mut keys = self.usable_keys();
        if keys.as_ref().is_none_or(|keys| !keys.fits(jws, algorithm)) {
            self.refresh().await;
            keys = self.usable_keys();
        }
        let Some(keys) = keys else {
            return Err(StoreError::Unavailable {
                operation: "check a token",
                message: format!("the keys of issuer `{}` cannot be fetched", self.issuer.name).into(),
            });
        };
        if self.age_us(&keys) >= micros(self.issuer.keys_refresh) {
            // Nobody waits for it: the keys at hand are good for longer.
            let (done, _) = oneshot::channel();
            let _ = self.ask.try_send(done);
        }
        Ok(if keys.has_signed(jws, algorithm) { Verdict::Proven(login) } else { Verdict::Refused(Refused::Signature) })
    }

    fn usable_keys(&self) -> Option<Arc<KeySet>> {
        self.keys.load_full().filter(|keys| self.age_us(keys) < micros(self.issuer.keys_max_age))
    }

    fn age_us(&self, keys: &KeySet) -> i64 {
        self.clock.steady_us().saturating_sub(keys.fetched_at_us)
    }

    /// Asks for a fetch and waits until it is done, or until it is clear that none is made now.
    async fn refresh(&self) {
        let (done, wait) = oneshot::channel();
        if self.ask.try_send(done).is_ok() {
            // A task that has ended drops the sender; then there is nothing to wait for.
            let _ = wait.await;
        }
    }
}

impl ProviderTask {
    /// Fetches when asked, until `stop`.
    pub(in crate::governance) async fn run(mut self, stop: CancellationToken) {
        let mut next_us = i64::MIN;
        loop {
            let first = tokio::select! {
                () = stop.cancelled() => return,
                asked = self.asked.recv() => asked,
            };
            let Some(first) = first else { return };
            let mut waiting = vec![first];
            while let Ok(another) = self.asked.try_recv() {
                waiting.push(another);
            }
            let now_us = self.provider.clock.steady_us();
            if now_us >= next_us {
                next_us = now_us.saturating_add(micros(FETCH_PAUSE));
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = self.fetch(now_us) => {}
                }
            }
            for done in waiting {
                let _ = done.send(());
            }
        }
    }

    async fn fetch(&self, now_us: i64) {
        let issuer = &self.provider.issuer;
        match self.fetch_keys(now_us).await {
            Ok(keys) => self.provider.keys.store(Some(Arc::new(keys))),
            Err(problem) => {
                tracing::warn!(
                    issuer = issuer.name,
                    "cannot fetch the keys of identity provider `{}`: {problem}",
                    issuer.name
                );
            }
        }
    }

    async fn fetch_keys(&self, now_us: i64) -> Result<KeySet, String> {
        let issuer = &self.provider.issuer;
        let get = async |url: &str| self.documents.get(url).await.map_err(|error| error.to_string());
        let discovery = get(&issuer.discovery()).await?;
        let address = keys_address(&discovery, issuer)?;
        KeySet::parse(&get(&address).await?, now_us)
    }
}

/// Where the keys are, by a discovery document that is the issuer's own.
fn keys_address(discovery: &[u8], issuer: &OidcIssuer) -> Result<String, String> {
    let document = strict_object(discovery).map_err(|problem| format!("the discovery document is {problem}"))?;
    let text = |name: &str| document.get(name).and_then(serde_json::Value::as_str);
    if text("issuer") != Some(&issuer.issuer) {
        return Err("the discovery document is of another issuer than the configured one, letter by letter".into());
    }
    let address = text("jwks_uri").ok_or("the discovery document names no `jwks_uri`")?;
    if !is_safe_address(address) {
        return Err("the discovery document's `jwks_uri` is not an https address".into());
    }
    Ok(address.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_discovery_document_is_believed_only_when_it_is_the_issuers_own() {
        let issuer = OidcIssuer::new("corp", "https://id.example.com/realm", vec!["millgate".into()]);
        assert_eq!(issuer.discovery(), "https://id.example.com/realm/.well-known/openid-configuration");
        let address = |issuer_named: &str, keys: &str| {
            keys_address(json!({"issuer": issuer_named, "jwks_uri": keys}).to_string().as_bytes(), &issuer)
        };
        assert_eq!(
            address("https://id.example.com/realm", "https://keys.example/k"),
            Ok("https://keys.example/k".into())
        );
        for (named, keys) in [
            ("https://id.example.com/realm/", "https://keys.example/k"),
            ("https://evil.example", "https://keys.example/k"),
            ("https://id.example.com/realm", "http://keys.example/k"),
            ("https://id.example.com/realm", "file:///etc/passwd"),
            ("https://id.example.com/realm", ""),
        ] {
            assert!(address(named, keys).is_err(), "{named} {keys}");
        }
        assert!(keys_address(b"<html>", &issuer).is_err());
    }
}
