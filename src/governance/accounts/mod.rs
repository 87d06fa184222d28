//! The services behind accounts and administration: keys, users, tiers, models. All checks are here; HTTP only maps.
//!
//! Each change reads one policy version, decides, and commits on condition that the version is still that one; otherwise it
//! decides again. So every rule that looks at other records (levels in use, number of keys) holds under concurrency.

mod audit;
mod commit;
mod keys;
mod me;
mod models;
mod notices;
mod prices;
mod replay;
mod tier_apply;
mod tiers;
mod tokens;
mod users;

pub use audit::{AuditPage, AuditVerdict};
pub use keys::{Issued, Key, KeyPage, KeyStatus, NewKey};
pub use me::Me;
pub use models::{DeclaredModel, ModelPatch, NewModel};
pub use prices::NewPrice;
pub use tier_apply::AppliedTiers;
pub use tiers::{Affected, DeletedTier, NewTier, TierPatch};
pub use tokens::{SignedToken, SigningKey};
pub use users::{NewUser, UserPatch};
