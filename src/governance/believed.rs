//! Whose tokens are believed beside our own, and the tasks that ask them.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::clock::Clock;
use super::config::Config;
use super::kubernetes::{Cluster, ReviewTask, TokenReviews};
use super::oidc::{Documents, OidcIssuer, Provider, ProviderTask};

/// Everybody whose tokens are believed beside our own.
#[derive(Default)]
pub(super) struct Believed {
    /// Identity providers.
    pub(super) providers: Vec<Arc<Provider>>,
    /// The cluster whose API server is asked about every other token.
    pub(super) cluster: Option<Cluster>,
}

/// The part that asks them.
pub(super) struct Asking {
    fetching: Vec<ProviderTask>,
    reviewing: Option<ReviewTask>,
}

impl Believed {
    /// Those of the configuration; nobody has been asked anything yet.
    pub(super) fn new(
        config: &Config,
        clock: &Arc<dyn Clock>,
        documents: &Arc<dyn Documents>,
        reviews: Arc<dyn TokenReviews>,
    ) -> (Self, Asking) {
        let provider = |issuer: &OidcIssuer| Provider::new(issuer.clone(), clock.clone(), documents.clone());
        let (providers, fetching) = config.oidc.iter().map(provider).unzip();
        let cluster = config.kubernetes.clone().map(|rules| Cluster::new(rules, clock.clone(), reviews));
        let (cluster, reviewing) = cluster.unzip();
        (Self { providers, cluster }, Asking { fetching, reviewing })
    }
}

impl Asking {
    /// Asks when there is something to ask, until `stop`.
    pub(super) fn spawn(self, tasks: &TaskTracker, stop: &CancellationToken) {
        for task in self.fetching {
            tasks.spawn(task.run(stop.clone()));
        }
        if let Some(task) = self.reviewing {
            tasks.spawn(task.run(stop.clone()));
        }
    }
}
