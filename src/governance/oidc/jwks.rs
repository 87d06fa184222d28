//! A provider's public keys: read from its JWKS document, each only for what it is meant for.

use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use crate::governance::tokens::{Jws, decode, strict_object};

/// Keys of one document that are looked at; a provider has a handful.
const KEYS_MAX: usize = 64;

/// The keys of one provider.
pub(super) struct KeySet {
    keys: Vec<PublicKey>,
    /// When they were fetched, on the steady clock.
    pub(super) fetched_at_us: i64,
}

struct PublicKey {
    id: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl KeySet {
    /// Reads a JWKS document; keys that cannot verify tokens are passed over.
    ///
    /// # Errors
    /// It is no such document, or no key in it can be used.
    pub(super) fn parse(document: &[u8], fetched_at_us: i64) -> Result<Self, String> {
        let document = strict_object(document).map_err(|problem| format!("the JWKS document is {problem}"))?;
        let listed = document.get("keys").and_then(Value::as_array).ok_or("the JWKS document has no list `keys`")?;
        let keys: Vec<PublicKey> =
            listed.iter().filter_map(Value::as_object).filter_map(public_key).take(KEYS_MAX).collect();
        if keys.is_empty() {
            return Err("the JWKS document has no key that can verify tokens".into());
        }
        Ok(Self { keys, fetched_at_us })
    }

    /// True when a key could have signed this token; otherwise the set may be out of date.
    pub(super) fn fits(&self, jws: &Jws<'_>, algorithm: Algorithm) -> bool {
        self.candidates(jws, algorithm).next().is_some()
    }

    /// True when one of the keys has signed this token.
    pub(super) fn has_signed(&self, jws: &Jws<'_>, algorithm: Algorithm) -> bool {
        let signed = jws.signed.as_bytes();
        self.candidates(jws, algorithm)
            .any(|key| matches!(jsonwebtoken::crypto::verify(jws.signature, signed, &key.key, algorithm), Ok(true)))
    }

    /// The keys the header may mean: the one it names, or all of the right kind when it names none.
    fn candidates<'a>(&'a self, jws: &'a Jws<'_>, algorithm: Algorithm) -> impl Iterator<Item = &'a PublicKey> {
        self.keys
            .iter()
            .filter(move |key| key.algorithms.contains(&algorithm) && (jws.key_id.is_none() || jws.key_id == key.id))
    }
}

fn public_key(jwk: &Map<String, Value>) -> Option<PublicKey> {
    let text = |name: &str| jwk.get(name).and_then(Value::as_str);
    if text("use").is_some_and(|purpose| purpose != "sig") {
        return None;
    }
    let operations = jwk.get("key_ops").and_then(Value::as_array);
    if operations.is_some_and(|list| !list.iter().any(|operation| operation == "verify")) {
        return None;
    }
    // The key decides what it verifies, never the token: a public RSA key is no secret for HMAC.
    let (mut algorithms, key) = match (text("kty")?, text("crv")) {
        ("RSA", _) => (rsa_algorithms().to_vec(), rsa(text("n")?, text("e")?)?),
        ("EC", Some("P-256")) => (vec![Algorithm::ES256], point(text("x")?, text("y")?, 32)?),
        ("EC", Some("P-384")) => (vec![Algorithm::ES384], point(text("x")?, text("y")?, 48)?),
        ("OKP", Some("Ed25519")) if decode(text("x")?)?.len() == 32 => {
            (vec![Algorithm::EdDSA], DecodingKey::from_ed_components(text("x")?).ok()?)
        }
        _ => return None,
    };
    if let Some(named) = text("alg") {
        algorithms.retain(|algorithm| format!("{algorithm:?}") == named);
    }
    (!algorithms.is_empty()).then(|| PublicKey { id: text("kid").map(str::to_owned), algorithms, key })
}

fn rsa_algorithms() -> [Algorithm; 6] {
    use Algorithm::{PS256, PS384, PS512, RS256, RS384, RS512};
    [RS256, RS384, RS512, PS256, PS384, PS512]
}

/// An RSA key of 2048 to 4096 bits: a shorter one can be broken, a longer one costs too much to check.
fn rsa(modulus: &str, exponent: &str) -> Option<DecodingKey> {
    let bytes = decode(modulus)?;
    let significant = bytes.iter().skip_while(|byte| **byte == 0).count();
    if !(256..=512).contains(&significant) || decode(exponent)?.len() > 4 {
        return None;
    }
    DecodingKey::from_rsa_components(modulus, exponent).ok()
}

fn point(x: &str, y: &str, length: usize) -> Option<DecodingKey> {
    let fits = decode(x)?.len() == length && decode(y)?.len() == length;
    if fits { DecodingKey::from_ec_components(x, y).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governance::tokens::encode;
    use serde_json::json;

    fn set(keys: Value) -> Result<KeySet, String> {
        KeySet::parse(json!({"keys": keys}).to_string().as_bytes(), 0)
    }

    fn fits(set: &KeySet, kid: Option<&str>, algorithm: Algorithm) -> bool {
        let mut header = json!({"alg": "x"});
        if let Some(kid) = kid {
            header["kid"] = kid.into();
        }
        let text = format!("{}.{}.", encode(header.to_string().as_bytes()), encode(b"{}"));
        set.fits(&Jws::parse(&text).expect("a token"), algorithm)
    }

    #[test]
    fn each_key_verifies_only_what_it_is_meant_for() {
        let modulus = encode(&[0xc1; 256]);
        let set = set(json!([
            {"kty": "RSA", "kid": "any", "n": modulus, "e": "AQAB"},
            {"kty": "RSA", "kid": "one", "alg": "PS256", "use": "sig", "n": modulus, "e": "AQAB"},
            {"kty": "EC", "crv": "P-256", "kid": "ec", "x": encode(&[1; 32]), "y": encode(&[2; 32])},
            {"kty": "OKP", "crv": "Ed25519", "kid": "ed", "x": encode(&[3; 32])},
        ]))
        .expect("keys");
        assert!(fits(&set, Some("any"), Algorithm::RS256) && fits(&set, Some("any"), Algorithm::PS512));
        assert!(fits(&set, Some("one"), Algorithm::PS256) && !fits(&set, Some("one"), Algorithm::RS256));
        assert!(fits(&set, Some("ec"), Algorithm::ES256) && !fits(&set, Some("ec"), Algorithm::ES384));
        assert!(fits(&set, Some("ed"), Algorithm::EdDSA) && !fits(&set, Some("ed"), Algorithm::RS256));
        assert!(!fits(&set, Some("other"), Algorithm::RS256) && fits(&set, None, Algorithm::RS256));
        assert!(!fits(&set, Some("any"), Algorithm::HS256), "a public key is no secret");
    }

    #[test]
    fn keys_that_are_weak_odd_or_for_something_else_are_passed_over() {
        let modulus = encode(&[0xc1; 256]);
        for jwk in [
            json!({"kty": "RSA", "n": encode(&[0xc1; 128]), "e": "AQAB"}),
            json!({"kty": "RSA", "n": encode(&[0xc1; 1024]), "e": "AQAB"}),
            json!({"kty": "RSA", "n": modulus, "e": encode(&[1; 40])}),
            json!({"kty": "RSA", "n": modulus}),
            json!({"kty": "RSA", "use": "enc", "n": modulus, "e": "AQAB"}),
            json!({"kty": "RSA", "key_ops": ["sign"], "n": modulus, "e": "AQAB"}),
            json!({"kty": "RSA", "alg": "RSA-OAEP", "n": modulus, "e": "AQAB"}),
            json!({"kty": "oct", "k": encode(&[1; 32]), "alg": "HS256"}),
            json!({"kty": "OKP", "crv": "Ed25519", "x": encode(&[1; 31])}),
            json!({"kty": "OKP", "crv": "X25519", "x": encode(&[1; 32])}),
            json!({"kty": "EC", "crv": "P-256", "x": encode(&[1; 32]), "y": encode(&[1; 31])}),
            json!({"kty": "EC", "crv": "secp256k1", "x": encode(&[1; 32]), "y": encode(&[1; 32])}),
            json!("key"),
            json!({}),
        ] {
            assert!(set(json!([jwk])).is_err(), "{jwk}");
        }
        for document in ["", "[]", "{}", r#"{"keys": {}}"#, r#"{"keys": []}"#, r#"{"keys":[],"keys":[]}"#] {
            assert!(KeySet::parse(document.as_bytes(), 0).is_err(), "{document}");
        }
    }
}
