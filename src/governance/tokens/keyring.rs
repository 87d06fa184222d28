//! The keys that sign our tokens: one signs, retired ones verify until the last token they signed has expired.

use std::sync::Arc;
use std::time::Duration;

use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::claims::{CLOCK_SKEW, LONGEST_TOKEN_LIFE};
use super::jws::{decode, encode};
use crate::governance::clock::micros;
use crate::governance::ports::Change;
use crate::governance::records::{SigningKeyRecord, SigningSeed};

/// The one algorithm of our own tokens.
pub(super) const ALGORITHM: &str = "EdDSA";

/// The signing keys of one policy version.
#[derive(Debug, Default)]
pub(in crate::governance) struct Keyring {
    /// The version it was read at.
    pub(in crate::governance) version: u64,
    keys: Vec<SigningKeyRecord>,
}

impl Keyring {
    /// The keys as they are stored.
    pub(in crate::governance) fn new(version: u64, mut keys: Vec<SigningKeyRecord>) -> Self {
        // The one that signs first, then by age: two may be of the same instant.
        let order = |key: &SigningKeyRecord| (key.retired_at_us.is_some(), -key.created_at_us, key.id.clone());
        keys.sort_by_key(order);
        Self { version, keys }
    }

    /// The key that signs; the newest, should there ever be two.
    pub(in crate::governance) fn active(&self) -> Option<&SigningKeyRecord> {
        self.keys.iter().find(|key| key.seed.is_some() && key.retired_at_us.is_none())
    }

    /// Keys that verify: the active one, and retired ones whose last token may still be alive.
    pub(in crate::governance) fn published(&self, now_us: i64) -> impl Iterator<Item = &SigningKeyRecord> {
        self.keys.iter().filter(move |key| !is_over(key, now_us))
    }

    /// True when a token signed with key `id` is still to be believed.
    pub(in crate::governance) fn knows(&self, id: &str, now_us: i64) -> bool {
        self.published(now_us).any(|key| key.id == id)
    }

    /// True when `signature` over `signed` was made with key `id`.
    pub(super) fn has_signed(&self, id: &str, signed: &str, signature: &str, now_us: i64) -> bool {
        let Some(key) = self.published(now_us).find(|key| key.id == id) else { return false };
        let signature = decode(signature).and_then(|bytes| Signature::from_slice(&bytes).ok());
        let public = VerifyingKey::from_bytes(&key.public).ok();
        // Strict: weak public keys and the other form of the same signature do not pass.
        signature.zip(public).is_some_and(|(sig, public)| public.verify_strict(signed.as_bytes(), &sig).is_ok())
    }

    /// Signs with the active key: its id and a function that signs; `None` when there is no active key.
    pub(super) fn signer(&self) -> Option<(Arc<str>, impl Fn(&str) -> String + use<>)> {
        let key = self.active()?;
        let signing = SigningKey::from_bytes(key.seed.as_ref()?.reveal());
        Some((key.id.as_str().into(), move |text: &str| encode(&signing.sign(text.as_bytes()).to_bytes())))
    }

    /// True when the key that signs is missing or older than `most`.
    pub(in crate::governance) fn is_rotation_due(&self, now_us: i64, most: Duration) -> bool {
        self.active().is_none_or(|key| now_us.saturating_sub(key.created_at_us) >= micros(most))
    }

    /// True when a key is kept that nothing needs any more.
    pub(in crate::governance) fn has_leftovers(&self, now_us: i64) -> bool {
        self.keys.iter().any(|key| is_over(key, now_us))
    }

    /// Makes `fresh` the key that signs, takes the seed from those before it, forgets those that are over.
    pub(in crate::governance) fn rotation(&self, fresh: SigningKeyRecord, now_us: i64) -> Vec<Change> {
        let mut changes = self.cleaning(now_us);
        let retired =
            self.published(now_us).filter(|key| key.retired_at_us.is_none() || key.seed.is_some()).map(|key| {
                let retired_at_us = Some(key.retired_at_us.unwrap_or(now_us));
                Change::PutSigningKey(SigningKeyRecord { seed: None, retired_at_us, ..key.clone() })
            });
        changes.extend(retired);
        changes.push(Change::PutSigningKey(fresh));
        changes
    }

    /// Forgets keys that are over.
    pub(in crate::governance) fn cleaning(&self, now_us: i64) -> Vec<Change> {
        let over = self.keys.iter().filter(|key| is_over(key, now_us));
        over.map(|key| Change::DeleteSigningKey(key.id.clone())).collect()
    }

    /// The JWKS document: public halves only.
    pub(in crate::governance) fn document(&self, now_us: i64) -> Value {
        let key = |key: &SigningKeyRecord| json!({"kty": "OKP", "crv": "Ed25519", "use": "sig", "alg": ALGORITHM, "kid": key.id, "x": encode(&key.public)});
        json!({"keys": self.published(now_us).map(key).collect::<Vec<_>>()})
    }
}

/// A new key pair.
///
/// # Errors
/// When the operating system has no randomness to give.
pub(in crate::governance) fn fresh_key(now_us: i64) -> Result<SigningKeyRecord, getrandom::Error> {
    let mut seed = [0; 32];
    getrandom::fill(&mut seed)?;
    let public = SigningKey::from_bytes(&seed).verifying_key().to_bytes();
    // The thumbprint of RFC 7638 over the members it names, in its order.
    let thumbprint = format!(r#"{{"crv":"Ed25519","kty":"OKP","x":"{}"}}"#, encode(&public));
    Ok(SigningKeyRecord {
        id: encode(&Sha256::digest(thumbprint)),
        public,
        seed: Some(SigningSeed::new(seed)),
        created_at_us: now_us,
        retired_at_us: None,
    })
}

/// A token signed in the last instant before retirement has ended, on a clock that runs behind, too.
fn is_over(key: &SigningKeyRecord, now_us: i64) -> bool {
    let kept_us = micros(LONGEST_TOKEN_LIFE + CLOCK_SKEW);
    key.retired_at_us.is_some_and(|retired_us| now_us >= retired_us.saturating_add(kept_us))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_US: i64 = 3_600_000_000;

    fn apply(ring: &Keyring, changes: Vec<Change>) -> Keyring {
        let mut keys = ring.keys.clone();
        for change in changes {
            match change {
                Change::PutSigningKey(key) => {
                    keys.retain(|old| old.id != key.id);
                    keys.push(key);
                }
                Change::DeleteSigningKey(id) => keys.retain(|key| key.id != id),
                other => panic!("{other:?}"),
            }
        }
        Keyring::new(ring.version + 1, keys)
    }

    #[test]
    fn a_retired_key_verifies_until_its_last_token_is_over_and_never_signs_again() {
        let first = apply(&Keyring::default(), Keyring::default().rotation(fresh_key(0).expect("a key"), 0));
        let (old, sign) = first.signer().expect("signs");
        let signature = sign("text");
        let second = apply(&first, first.rotation(fresh_key(HOUR_US).expect("a key"), HOUR_US));
        assert_ne!(second.signer().expect("signs").0, old);
        assert!(second.keys.iter().filter(|key| key.seed.is_some()).count() == 1, "the retired seed is gone");
        assert!(second.has_signed(&old, "text", &signature, HOUR_US));
        assert!(!second.has_signed(&old, "texts", &signature, HOUR_US));
        let kids = |ring: &Keyring, now_us| ring.document(now_us)["keys"].as_array().map_or(0, Vec::len);
        assert_eq!(kids(&second, 24 * HOUR_US), 2);
        let over = 26 * HOUR_US;
        assert_eq!(kids(&second, over), 1);
        assert!(!second.has_signed(&old, "text", &signature, over), "also before it is swept out");
        assert!(second.has_leftovers(over) && !second.has_leftovers(HOUR_US));
        assert_eq!(apply(&second, second.cleaning(over)).keys.len(), 1);
    }

    #[test]
    fn rotation_is_due_by_age_and_when_nothing_signs() {
        let day = Duration::from_secs(86_400);
        assert!(Keyring::default().is_rotation_due(0, day));
        let ring = Keyring::new(1, vec![fresh_key(0).expect("a key")]);
        assert!(!ring.is_rotation_due(24 * HOUR_US - 1, day));
        assert!(ring.is_rotation_due(24 * HOUR_US, day));
    }

    #[test]
    fn the_document_and_debug_output_hold_no_seed() {
        let key = fresh_key(0).expect("a key");
        let seed = *key.seed.as_ref().expect("a seed").reveal();
        let ring = Keyring::new(1, vec![key]);
        let shown = format!("{} {ring:?}", ring.document(0));
        assert!(!shown.contains(&encode(&seed)) && !shown.contains(&format!("{seed:?}")));
        assert!(ring.document(0)["keys"][0].get("d").is_none());
    }
}
