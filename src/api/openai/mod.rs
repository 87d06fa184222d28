//! OpenAI's endpoints: what they accept, what they answer, and the generation between the two.
mod chat;
mod chat_request;
mod completion_request;
mod completions;
mod driver;
mod logprobs;
pub(super) mod models;
mod params;
pub(super) mod routes;
mod start;
mod unsupported;
mod wire;
mod writer;

pub(crate) use models::{get_model, list_models};
pub use params::RequestBounds;
pub(crate) use routes::{post_chat, post_completion};
