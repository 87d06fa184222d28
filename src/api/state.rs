//! What every handler can reach.
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use super::config::Config;
use super::lifecycle::Lifecycle;
use super::live_settings::LiveSettings;
use super::model_orders::ModelOrders;
use super::models::Models;
use crate::governance::{Clock, Governor};
use crate::telemetry::{Metrics, Tracer};

/// The parts the HTTP side is made of; built by the composition root.
pub struct ApiParts {
    /// Who may do what, and what it costs.
    pub governor: Governor,
    /// What is served.
    pub models: Models,
    /// Where loads and unloads are asked for.
    pub orders: ModelOrders,
    /// Settings.
    pub config: Config,
    /// All settings of the server as administrators see them.
    pub settings: LiveSettings,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
    /// Where figures go.
    pub metrics: Arc<Metrics>,
    /// Where traces go, if anywhere.
    pub tracer: Tracer,
    /// Starting, ready or draining.
    pub lifecycle: Arc<Lifecycle>,
}

/// The state of the router; cheap to clone.
#[derive(Clone)]
pub struct Api {
    parts: Arc<ApiParts>,
    pub(crate) tokenizing: Arc<Semaphore>,
}

impl Api {
    /// Ties the parts together.
    pub fn new(parts: ApiParts) -> Self {
        let tokenizing = Arc::new(Semaphore::new(parts.config.tokenizer_threads.max(1)));
        Self { parts: Arc::new(parts), tokenizing }
    }

    /// Time since the Unix epoch.
    pub(crate) fn now(&self) -> Duration {
        Duration::from_micros(u64::try_from(self.clock.now_us()).unwrap_or(0))
    }
}

impl Deref for Api {
    type Target = ApiParts;

    fn deref(&self) -> &ApiParts {
        &self.parts
    }
}
