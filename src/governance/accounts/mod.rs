//! The services behind accounts and administration: keys, users, tiers, models. All checks are here; HTTP only maps.
//!
//! What a caller does to their own things and what an administrator does to anybody's are different methods: an
//! administrator who uses the former is a caller like others.
//!
//! Each change reads one policy version, decides, and commits on condition that the version is still that one; otherwise it
//! decides again. So every rule that looks at other records (levels in use, number of keys) holds under concurrency.

mod audit;
mod bulk;
mod commit;
mod key_changes;
mod keys;
mod me;
mod models;
mod new_keys;
mod notices;
mod prices;
mod replay;
mod tier_apply;
mod tiers;
mod tokens;
mod users;

pub use audit::{AuditPage, AuditVerdict};
pub use bulk::{BulkRevoked, RevokeMany};
pub use key_changes::KeyPatch;
pub use keys::{Key, KeyPage, KeySearch};
pub use me::Me;
pub use models::{DeclaredModel, ModelPatch, NewModel};
pub use new_keys::{Issued, NewKey};
pub use prices::NewPrice;
pub use tier_apply::AppliedTiers;
pub use tiers::{Affected, DeletedTier, NewTier, TierPatch};
pub use tokens::{SignedToken, SigningKey};
pub use users::{NewUser, UserPatch};
