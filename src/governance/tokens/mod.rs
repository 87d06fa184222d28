//! Signed tokens: taking them apart strictly, the keys that sign ours, what ours say, and which were verified before.

mod check;
mod claims;
mod jws;
mod keyring;
mod seen;

pub(super) use check::{Tokens, verify};
pub(super) use claims::{Claims, MadeWith};
pub use claims::{LONGEST_TOKEN_LIFE, SHORTEST_TOKEN_LIFE};
pub(super) use jws::{Jws, Refused, decode, encode, looks_like_jws, strict_object};
pub(super) use keyring::{Keyring, fresh_key};
pub(super) use seen::Seen;
