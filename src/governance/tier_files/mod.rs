//! Tiers declared in files: our own format (YAML or TOML), and the documented ConfigMap `tier-to-group-mapping` as it is.
//!
//! A declaration is compared with what is there and becomes a plan. Ownership is per field: the ConfigMap owns name, display
//! name, description, level and groups; limits and weight stay. Our own format owns every field it mentions. A declaration
//! deletes only tiers that an earlier declaration of its kind made. [`Watched`] remembers what a watched folder owns.

mod declaration;
mod error;
mod format;
mod watched;
mod whole;
mod words;

pub use declaration::{Declaration, TierPlan};
pub use error::{FileError, Problem};
pub use watched::{TierFilesState, Watched};
