//! What the API asks of the one owner of all models: a handle with a bounded channel, as with an engine.
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{mpsc, oneshot};

/// Orders that may wait; the owner answers each at once, so that is plenty.
const WAITING_ORDERS: usize = 64;

/// Where a model comes from and how it is to be loaded.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelSpec {
    /// The name requests use.
    pub name: String,
    /// Where its files are.
    pub source: String,
    /// What it is to be computed on; whatever there is when absent.
    pub hardware: Option<String>,
    /// Its own settings.
    pub env: Map<String, Value>,
    /// When it was created, in microseconds since the Unix epoch.
    pub created_at_us: i64,
}

/// What the store keeps of a model besides name, source and tiers: the JSON of `ModelRecord::settings`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct KeptSettings {
    /// True for a model that was created through the API.
    pub is_from_api: bool,
    /// Whether it is to be loaded when the server starts.
    pub is_wanted: bool,
    /// What it is to be computed on.
    pub hardware: Option<String>,
    /// Its own settings.
    pub env: Map<String, Value>,
}

impl Default for KeptSettings {
    fn default() -> Self {
        Self { is_from_api: false, is_wanted: true, hardware: None, env: Map::new() }
    }
}

impl KeptSettings {
    /// Reads what the store kept; what cannot be read counts as nothing.
    pub fn read(settings: &str) -> Self {
        serde_json::from_str(settings).unwrap_or_default()
    }

    /// The text for the store.
    pub fn text(&self) -> String {
        serde_json::to_string(self).expect("flags, strings and JSON values always serialise")
    }
}

/// An order, with the way back for its answer.
#[derive(Debug)]
pub enum ModelOrder {
    /// Says whether a model could be loaded from there with these settings; reads no model file.
    Check(ModelSpec, Answer),
    /// Loads a model, in the background. With a specification it replaces what was known; without, the model is known.
    Load(String, Option<ModelSpec>, Answer),
    /// Another source or other settings for a model, from its next load on.
    Replace(ModelSpec, Answer),
    /// Lets what runs finish, then frees the memory; in the background.
    Unload(String, Answer),
    /// Unloads and forgets; the name does not exist from now on.
    Forget(String, Answer),
}

/// Where the answer to an order goes.
pub type Answer = oneshot::Sender<Result<(), OrderError>>;

/// Why an order was not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OrderError {
    /// A field of the specification is wrong.
    #[error("{message}")]
    Wrong {
        /// Which field.
        param: String,
        /// What is wrong and what would be right.
        message: String,
    },
    /// There is no such model.
    #[error("there is no model of that name")]
    Unknown,
    /// Nobody takes orders: the server is starting or stopping.
    #[error("models cannot be changed while the server is starting or stopping")]
    Closed,
}

/// Hands orders to the owner of the models; cheap to clone.
#[derive(Debug, Clone)]
pub struct ModelOrders(mpsc::Sender<ModelOrder>);

impl ModelOrders {
    /// A handle, and what its orders come out of. Dropping the latter closes the desk.
    pub fn channel() -> (Self, mpsc::Receiver<ModelOrder>) {
        let (sender, receiver) = mpsc::channel(WAITING_ORDERS);
        (Self(sender), receiver)
    }

    /// See [`ModelOrder::Check`].
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn check(&self, spec: ModelSpec) -> Result<(), OrderError> {
        self.send(|answer| ModelOrder::Check(spec, answer)).await
    }

    /// See [`ModelOrder::Load`].
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn load(&self, name: &str, spec: Option<ModelSpec>) -> Result<(), OrderError> {
        self.send(|answer| ModelOrder::Load(name.to_owned(), spec, answer)).await
    }

    /// See [`ModelOrder::Replace`].
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn replace(&self, spec: ModelSpec) -> Result<(), OrderError> {
        self.send(|answer| ModelOrder::Replace(spec, answer)).await
    }

    /// See [`ModelOrder::Unload`].
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn unload(&self, name: &str) -> Result<(), OrderError> {
        self.send(|answer| ModelOrder::Unload(name.to_owned(), answer)).await
    }

    /// See [`ModelOrder::Forget`].
    ///
    /// # Errors
    /// [`OrderError`].
    pub async fn forget(&self, name: &str) -> Result<(), OrderError> {
        self.send(|answer| ModelOrder::Forget(name.to_owned(), answer)).await
    }

    async fn send(&self, order: impl FnOnce(Answer) -> ModelOrder) -> Result<(), OrderError> {
        let (answer, answered) = oneshot::channel();
        self.0.send(order(answer)).await.map_err(|_| OrderError::Closed)?;
        answered.await.unwrap_or(Err(OrderError::Closed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_of_a_declared_model_and_unreadable_ones_are_the_defaults() {
        for text in ["{}", "", "[1]"] {
            assert_eq!(KeptSettings::read(text), KeptSettings::default(), "{text}");
        }
        let kept = KeptSettings { is_from_api: true, is_wanted: false, ..KeptSettings::default() };
        assert_eq!(KeptSettings::read(&kept.text()), kept);
    }

    #[tokio::test]
    async fn an_order_without_an_owner_is_refused_and_does_not_wait() {
        let (orders, desk) = ModelOrders::channel();
        drop(desk);
        assert_eq!(orders.unload("x").await, Err(OrderError::Closed));
    }
}
