//! Who may use which model, and how much: identity, tiers, limits, permits. No HTTP, no SQL, no tensors.
//!
//! [`Governor`] is the one handle: it authenticates, admits, tells standings, and holds the services for keys, users, tiers and
//! models (the folder `accounts`). Storage is behind the two traits of [`ports`]. The arithmetic (`window`, `calendar`,
//! `limits`, `tiers`, `reservation`) is pure and takes the time as an argument.

mod accounts;
pub mod attribution;
pub mod audit;
mod believed;
mod bootstrap;
pub mod calendar;
pub mod clock;
mod commit;
mod config;
mod edge;
mod error;
mod foreign_groups;
mod governor;
mod identity;
mod key_search;
pub mod keys;
mod known;
mod kubernetes;
pub mod limits;
mod login;
pub mod notices;
mod oidc;
mod permit;
#[cfg(test)]
mod permit_tests;
mod policy;
pub mod ports;
pub mod pricing;
mod rebuild;
pub mod reconcile;
pub mod records;
mod refusals;
pub mod replay;
mod reservation;
mod settler;
pub mod strict_json;
pub mod tier_files;
pub mod tiers;
mod tokens;
pub mod usage;
mod vigil;
pub mod window;

pub use accounts::{
    Affected, AppliedTiers, AuditPage, AuditVerdict, BulkRevoked, DeclaredModel, DeletedTier, Issued, Key, KeyPage,
    KeyPatch, KeySearch, Me, ModelPatch, NewKey, NewModel, NewPrice, NewTier, NewUser, RevokeMany, SignedToken,
    SigningKey, TierPatch, UserPatch,
};
pub use audit::Author;
pub use bootstrap::{ADMIN, FirstStart};
pub use clock::{Clock, ManualClock, SystemClock};
pub use config::{Config, Secret};
pub use error::{AuthFailure, Denied, LimitStanding, Refusal, ServiceError, StandingError, StartError};
pub use governor::Governor;
pub use key_search::{KeyCursor, KeyFilter, KeySort};
pub use keys::Credential;
pub use kubernetes::{KubernetesCluster, NoReviews, ReviewError, TokenReviews};
pub use limits::{Limit, LimitSpec, Mode, Resource, Scope};
pub use oidc::{DocumentError, Documents, NoDocuments, OidcIssuer, TokenAlgorithm};
pub use permit::{Ask, Permit, Scheduling};
pub use policy::{ADMINS, AUTHENTICATED, Means, Person, Policy, Principal};
pub use records::{KeyId, KeyStatus, SetBy, Status, Usage, UserId};
pub use reservation::CompletionCap;
pub use tokens::{LONGEST_TOKEN_LIFE, SHORTEST_TOKEN_LIFE};
pub use vigil::{Vigil, Withdrawn};
