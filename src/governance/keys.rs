//! API keys: `sk-mg_<id>_<secret><crc>`, made from the system's randomness, stored as a digest, compared in constant time.
//!
//! The id (12 characters) finds the record, the secret (33 characters, 196 bits) proves it, the checksum (6 characters)
//! lets a typing error be refused without a look-up. All of it is base 62.

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

use super::config::Secret;
use super::records::KeyId;
use super::tokens::{decode, encode, looks_like_jws};

/// What every key begins with.
pub const PREFIX: &str = "sk-mg_";
/// The id under which an opaque bootstrap secret is stored.
pub const BOOTSTRAP_ID: &str = "bootstrap";
/// The fewest characters of an opaque bootstrap secret.
pub const BOOTSTRAP_MIN: usize = 24;

const ID_LEN: usize = 12;
const SECRET_LEN: usize = 33;
const CRC_LEN: usize = 6;
const ALPHABET: &[u8; 62] = b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/// A credential as a client sent it, reduced to what checking it needs; the secret itself is not kept.
#[derive(Debug, Clone)]
pub struct Credential(pub(super) Presented);

#[derive(Debug, Clone)]
pub(super) enum Presented {
    /// A well-formed key.
    Key { id: KeyId, digest: [u8; 32] },
    /// A signed token. Its text is kept until it is checked, and shows itself nowhere.
    Token { text: Secret, digest: [u8; 32] },
    /// Something else that may be the bootstrap secret.
    Opaque { digest: [u8; 32] },
    /// Cannot be anything: a mistyped key.
    Hopeless,
}

impl Credential {
    /// Reads what followed `Bearer` or stood in `x-api-key`. Never fails: what cannot be valid is refused when checked.
    pub fn parse(text: &str) -> Self {
        let text = text.trim();
        if text.starts_with(PREFIX) {
            return Self(parse_key(text).map_or(Presented::Hopeless, |id| Presented::Key { id, digest: digest(text) }));
        }
        if looks_like_jws(text) {
            return Self(Presented::Token { text: Secret::new(text), digest: digest(text) });
        }
        if text.len() < BOOTSTRAP_MIN {
            return Self(Presented::Hopeless);
        }
        Self(Presented::Opaque { digest: digest(text) })
    }
}

/// A key that was just made; its text is shown once and not kept.
#[derive(Debug)]
pub struct FreshKey {
    /// The look-up part.
    pub id: KeyId,
    /// The whole key.
    pub text: Secret,
    /// What is stored.
    pub digest: [u8; 32],
}

/// Makes a key.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn mint() -> Result<FreshKey, getrandom::Error> {
    renew(&KeyId::from(random_text(ID_LEN)?.as_str()))
}

/// Makes a new secret for a key that keeps its id.
///
/// # Errors
/// When the operating system has no randomness to give.
pub fn renew(id: &KeyId) -> Result<FreshKey, getrandom::Error> {
    let body = format!("{PREFIX}{id}_{}", random_text(SECRET_LEN)?);
    let text = format!("{body}{}", checksum(&body));
    Ok(FreshKey { id: id.clone(), digest: digest(&text), text: Secret::new(text) })
}

/// The id of a well-formed key; `None` when the form or the checksum is wrong.
pub fn parse_key(text: &str) -> Option<KeyId> {
    let (id, rest) = text.strip_prefix(PREFIX)?.split_once('_')?;
    let well_formed = id.len() == ID_LEN && rest.len() == SECRET_LEN + CRC_LEN && is_base62(id) && is_base62(rest);
    if !well_formed {
        return None;
    }
    let (body, crc) = text.split_at(text.len() - CRC_LEN);
    (checksum(body) == crc).then(|| KeyId::from(id))
}

/// What of a key may be shown to tell keys apart: `sk-mg_<id>`.
pub fn visible_prefix(id: &KeyId) -> String {
    format!("{PREFIX}{id}")
}

/// SHA-256 of the whole key. The secret has 196 random bits, so nothing slower is needed.
pub fn digest(text: &str) -> [u8; 32] {
    Sha256::digest(text.as_bytes()).into()
}

/// Tells the secrets of one key apart, before and after it was rotated, and says nothing about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct SecretMark([u8; 8]);

impl SecretMark {
    /// The mark of the secret with this digest.
    pub(super) fn of(digest: &[u8; 32]) -> Self {
        let hash: [u8; 32] = Sha256::new().chain_update("millgate secret mark").chain_update(digest).finalize().into();
        let mut mark = [0; 8];
        mark.copy_from_slice(&hash[..8]);
        Self(mark)
    }

    /// Its text form.
    pub(super) fn to_text(self) -> String {
        encode(&self.0)
    }

    /// Reads the text form.
    pub(super) fn parse(text: &str) -> Option<Self> {
        decode(text)?.try_into().ok().map(Self)
    }
}

/// Compares in constant time.
pub fn digests_match(a: &[u8; 32], b: &[u8; 32]) -> bool {
    a.ct_eq(b).into()
}

fn checksum(body: &str) -> String {
    let mut value = crc32fast::hash(body.as_bytes());
    let mut text = [b'0'; CRC_LEN];
    for digit in text.iter_mut().rev() {
        *digit = ALPHABET[(value % 62) as usize];
        value /= 62;
    }
    text.iter().map(|b| char::from(*b)).collect()
}

fn random_text(len: usize) -> Result<String, getrandom::Error> {
    let mut text = String::with_capacity(len);
    let mut bytes = [0u8; 64];
    while text.len() < len {
        getrandom::fill(&mut bytes)?;
        // 248 = 4 * 62: values above it would make some characters likelier than others.
        let fair = bytes.iter().filter(|b| **b < 248).map(|b| char::from(ALPHABET[usize::from(*b % 62)]));
        text.extend(fair.take(len - text.len()));
    }
    Ok(text)
}

fn is_base62(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_alphanumeric())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_fresh_key_is_read_back_and_its_digest_matches() {
        let key = mint().expect("randomness");
        let text = key.text.reveal();
        assert_eq!(parse_key(text), Some(key.id.clone()));
        assert!(digests_match(&key.digest, &digest(text)));
        assert!(62f64.powi(SECRET_LEN as i32).log2() >= 192.0);
        assert_ne!(mint().expect("randomness").text, key.text);
        let renewed = renew(&key.id).expect("randomness");
        assert_eq!(parse_key(renewed.text.reveal()), Some(key.id));
        assert_ne!(renewed.text, key.text);
    }

    #[test]
    fn every_single_typing_error_is_noticed_without_a_look_up() {
        let key = mint().expect("randomness");
        let text = key.text.reveal();
        for at in PREFIX.len()..text.len() {
            for wrong in ['a', 'Z', '0', '_', '-'] {
                let mut chars: Vec<char> = text.chars().collect();
                if chars[at] == wrong {
                    continue;
                }
                chars[at] = wrong;
                let typo: String = chars.into_iter().collect();
                assert_eq!(parse_key(&typo), None, "{typo}");
            }
        }
    }

    #[test]
    fn only_what_is_neither_key_nor_token_is_tried_as_the_bootstrap_secret() {
        let opaque = |text: &str| matches!(Credential::parse(text).0, Presented::Opaque { .. });
        assert!(opaque("a-long-enough-admin-secret"));
        assert!(!opaque("short"));
        assert!(!opaque("sk-mg_mistyped_mistyped_mistyped"));
        assert!(!opaque("eyJhbGciOiJub25lIn0.eyJzdWIiOiJhZG1pbiJ9."));
    }

    #[test]
    fn a_credential_never_shows_its_secret() {
        let key = mint().expect("randomness");
        let shown = format!("{:?} {:?}", Credential::parse(key.text.reveal()), key);
        assert!(!shown.contains(key.text.reveal()));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(sk-mg_)?\\PC{0,80}") {
            let _ = Credential::parse(&text);
        }
    }
}
