//! Watches over a request that runs: whether its credential still holds and its model is still the caller's.
//!
//! It sleeps until the policy changes; a request under a policy that does not change costs nothing here.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use super::governor::{Core, Governor};
use super::policy::Principal;
use super::ports::StoreError;

/// When to ask again after a store that could not be read.
const AGAIN: Duration = Duration::from_millis(250);

/// Why a running request must end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawn {
    /// The credential was revoked, what signed it was withdrawn, or its user was deactivated or deleted.
    Credential,
    /// The caller may not use the model any more.
    Model,
}

/// The watch over one request.
pub struct Vigil {
    core: Arc<Core>,
    who: Principal,
    model: String,
    versions: watch::Receiver<u64>,
    again_at: Option<Instant>,
}

impl std::fmt::Debug for Vigil {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vigil").field("model", &self.model).finish_non_exhaustive()
    }
}

impl Governor {
    /// Begins to watch over a request of `who` for `model`.
    pub fn watch_over(&self, who: Principal, model: &str) -> Vigil {
        let mut versions = self.0.identities.versions();
        if *versions.borrow() > who.policy.version {
            // It changed after the caller was let in and before anybody listened.
            versions.mark_changed();
        }
        Vigil { core: self.0.clone(), who, model: model.to_owned(), versions, again_at: None }
    }
}

impl Vigil {
    /// Returns when the policy may have changed since the last verdict.
    ///
    /// # Cancel
    /// Safe: a change that was announced is announced again.
    pub async fn policy_changed(&mut self) {
        let again_at = self.again_at;
        let again = async move {
            match again_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            changed = self.versions.changed() => {
                if changed.is_err() {
                    // Governance has ended; what runs is settled by the shutdown.
                    std::future::pending::<()>().await;
                }
            }
            () = again => {}
        }
    }

    /// Whether the request may go on.
    ///
    /// A store that cannot be read gives no verdict: the request goes on and [`Vigil::policy_changed`] returns soon again.
    pub async fn verdict(&mut self) -> Result<(), Withdrawn> {
        self.again_at = None;
        match self.look().await {
            Ok(verdict) => verdict,
            Err(error) => {
                tracing::warn!(%error, "cannot check whether a running request may go on");
                self.again_at = Some(Instant::now() + AGAIN);
                Ok(())
            }
        }
    }

    async fn look(&self) -> Result<Result<(), Withdrawn>, StoreError> {
        let (identities, records, now_us) =
            (&self.core.identities, self.core.records.as_ref(), self.core.clock.now_us());
        if let Some(signed_with) = &self.who.signed_with
            && !self.core.tokens.keyring(records, identities).await?.knows(signed_with, now_us)
        {
            return Ok(Err(Withdrawn::Credential));
        }
        let Some(who) = identities.again(records, &self.who, now_us).await? else {
            return Ok(Err(Withdrawn::Credential));
        };
        if who.policy.allows(&self.model) {
            return Ok(Ok(()));
        }
        // A model that is deleted is taken from nobody: what runs on it ends as its engine does.
        let is_known = identities.tables(records).await?.models.iter().any(|model| model.name == self.model);
        Ok(if is_known { Err(Withdrawn::Model) } else { Ok(()) })
    }
}
