//! Tokens of a Kubernetes cluster: its API server is asked who somebody is (TokenReview), and what it says is kept for a minute.

mod config;
mod desk;
mod review;
mod reviews;

pub use config::KubernetesCluster;
pub(super) use desk::{Cluster, ReviewTask};
pub(super) use review::VOUCHER;
pub use reviews::{NoReviews, ReviewError, TokenReviews};
