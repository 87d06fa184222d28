//! What our own tokens say: who, made with which key, at which epoch, until when; never groups, tier or limits.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};
use uuid::Uuid;

use super::jws::{Jws, Refused, signing_text};
use super::keyring::{ALGORITHM, Keyring};
use crate::governance::clock::micros;
use crate::governance::keys::SecretMark;
use crate::governance::records::{KeyId, UserId};

/// The shortest life that may be asked for.
pub const SHORTEST_TOKEN_LIFE: Duration = Duration::from_secs(600);
/// No token of ours is ever valid longer than this.
pub const LONGEST_TOKEN_LIFE: Duration = Duration::from_secs(86_400);
/// How far the clocks of two replicas may be apart.
pub(super) const CLOCK_SKEW: Duration = Duration::from_secs(60);

/// Issuer and audience of our own tokens.
pub(super) const ISSUER: &str = "millgate";
/// The kind of token, so that none made for another purpose is ever taken for one (RFC 9068).
const KIND: &str = "at+jwt";

/// The key that a token was made with, and which of its secrets: the token ends with either.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::governance) struct MadeWith {
    /// The key.
    pub(in crate::governance) key: KeyId,
    /// The secret.
    pub(in crate::governance) mark: SecretMark,
}

/// A token of ours that is proven or to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::governance) struct Claims {
    /// Its own id.
    pub(in crate::governance) id: Uuid,
    /// Whose it is.
    pub(in crate::governance) user: UserId,
    /// What it was made with; `None`: a login at an identity provider.
    pub(in crate::governance) key: Option<MadeWith>,
    /// The user's epoch when it was made.
    pub(in crate::governance) epoch: u64,
    /// When it was made; whole seconds.
    pub(in crate::governance) issued_at_us: i64,
    /// First instant at which it no longer works; whole seconds.
    pub(in crate::governance) expires_at_us: i64,
}

impl Claims {
    /// A signed token with these claims and the id of the key that signed it; `None` when no key signs.
    pub(in crate::governance) fn sign(&self, keyring: &Keyring) -> Option<String> {
        let (key_id, sign) = keyring.signer()?;
        let header = json!({"alg": ALGORITHM, "typ": KIND, "kid": &*key_id});
        let mut claims = json!({
            "iss": ISSUER,
            "aud": ISSUER,
            "sub": self.user.to_string(),
            "jti": self.id.to_string(),
            "iat": self.issued_at_us.div_euclid(1_000_000),
            "exp": self.expires_at_us.div_euclid(1_000_000),
            "epoch": self.epoch,
        });
        if let Some(made_with) = &self.key {
            claims["key"] = made_with.key.as_str().into();
            claims["mark"] = made_with.mark.to_text().into();
        }
        let text = signing_text(&header, &claims);
        let signature = sign(&text);
        Some(format!("{text}.{signature}"))
    }

    /// Checks header, signature and claims; whether user and key still stand is asked on every use.
    ///
    /// # Errors
    /// [`Refused`], with the first thing that is wrong.
    pub(super) fn check(jws: &Jws<'_>, keyring: &Keyring, now_us: i64) -> Result<(Self, Arc<str>), Refused> {
        if jws.algorithm != ALGORITHM || jws.kind.as_deref() != Some(KIND) {
            return Err(Refused::Header(format!("ours are `{ALGORITHM}` and `{KIND}`")));
        }
        let key_id = jws.key_id.as_deref().ok_or_else(|| Refused::Header("it names no key".into()))?;
        if !keyring.has_signed(key_id, jws.signed, jws.signature, now_us) {
            return Err(Refused::Signature);
        }
        if jws.text("iss")? != ISSUER {
            return Err(Refused::claim("iss", "is another issuer"));
        }
        if jws.text("aud")? != ISSUER {
            return Err(Refused::claim("aud", "is another audience"));
        }
        let whole = |claim: &str| match jws.claims.get(claim).and_then(Value::as_u64) {
            Some(number) => Ok(number),
            None => Err(Refused::claim(claim, "is not a whole number")),
        };
        let moment = |claim: &str| {
            let us = whole(claim)?.checked_mul(1_000_000).and_then(|us| i64::try_from(us).ok());
            us.ok_or_else(|| Refused::claim(claim, "is no time"))
        };
        let uuid = |claim: &str| jws.text(claim)?.parse().map_err(|_| Refused::claim(claim, "is not an id"));
        let claims = Self {
            id: uuid("jti")?,
            user: UserId(uuid("sub")?),
            key: jws.claims.contains_key("key").then(|| made_with(jws)).transpose()?,
            epoch: whole("epoch")?,
            issued_at_us: moment("iat")?,
            expires_at_us: moment("exp")?,
        };
        if claims.expires_at_us - claims.issued_at_us > micros(LONGEST_TOKEN_LIFE) {
            return Err(Refused::claim("exp", "is further away than any token of ours lives"));
        }
        if claims.issued_at_us > now_us.saturating_add(micros(CLOCK_SKEW)) {
            return Err(Refused::claim("iat", "lies in the future"));
        }
        if now_us >= claims.expires_at_us {
            return Err(Refused::claim("exp", "is over"));
        }
        Ok((claims, key_id.into()))
    }
}

fn made_with(jws: &Jws<'_>) -> Result<MadeWith, Refused> {
    let mark = SecretMark::parse(jws.text("mark")?).ok_or_else(|| Refused::claim("mark", "is no mark of a secret"))?;
    Ok(MadeWith { key: jws.text("key")?.into(), mark })
}

#[cfg(test)]
mod tests {
    use super::super::keyring::fresh_key;
    use super::*;

    const NOW_US: i64 = 1_700_000_000_000_000;

    fn ring() -> Keyring {
        Keyring::new(1, vec![fresh_key(NOW_US).expect("a key")])
    }

    fn claims(life_s: i64) -> Claims {
        Claims {
            id: Uuid::now_v7(),
            user: UserId(Uuid::now_v7()),
            key: Some(MadeWith { key: "abc".into(), mark: SecretMark::of(&[7; 32]) }),
            epoch: 3,
            issued_at_us: NOW_US,
            expires_at_us: NOW_US + life_s * 1_000_000,
        }
    }

    fn check(text: &str, ring: &Keyring, now_us: i64) -> Result<Claims, Refused> {
        Claims::check(&Jws::parse(text)?, ring, now_us).map(|(claims, _)| claims)
    }

    /// Signs any header and claims with the ring's key.
    fn forge(ring: &Keyring, header: Value, claims: Value) -> String {
        let text = signing_text(&header, &claims);
        let signature = ring.signer().expect("signs").1(&text);
        format!("{text}.{signature}")
    }

    #[test]
    fn a_token_says_what_it_was_made_with_and_nothing_about_rights() {
        let (ring, made) = (ring(), claims(3600));
        let text = made.sign(&ring).expect("signed");
        assert_eq!(check(&text, &ring, NOW_US), Ok(made));
        let jws = Jws::parse(&text).expect("a token");
        let mut names: Vec<&String> = jws.claims.keys().collect();
        names.sort();
        assert_eq!(names, ["aud", "epoch", "exp", "iat", "iss", "jti", "key", "mark", "sub"]);
    }

    #[test]
    fn it_ends_to_the_microsecond_and_one_from_the_future_or_too_long_is_refused() {
        let ring = ring();
        let text = claims(600).sign(&ring).expect("signed");
        assert!(check(&text, &ring, NOW_US + 599_999_999).is_ok());
        assert_eq!(check(&text, &ring, NOW_US + 600_000_000), Err(Refused::claim("exp", "is over")));
        assert!(check(&text, &ring, NOW_US - 60_000_000).is_ok(), "a replica's clock may be behind");
        assert!(check(&text, &ring, NOW_US - 60_000_001).is_err());
        assert!(check(&claims(86_400).sign(&ring).expect("signed"), &ring, NOW_US).is_ok());
        assert!(check(&claims(86_401).sign(&ring).expect("signed"), &ring, NOW_US).is_err());
    }

    #[test]
    fn a_changed_letter_another_key_and_another_kind_are_refused() {
        let (ring, other) = (ring(), ring_of_somebody_else());
        let text = claims(3600).sign(&ring).expect("signed");
        assert_eq!(check(&text, &other, NOW_US), Err(Refused::Signature));
        for at in [40, text.len() / 2, text.len() - 5] {
            let mut bytes = text.clone().into_bytes();
            bytes[at] = if bytes[at] == b'A' { b'B' } else { b'A' };
            assert!(check(&String::from_utf8(bytes).expect("ASCII"), &ring, NOW_US).is_err(), "{at}");
        }
        let jws = Jws::parse(&text).expect("a token");
        let kid = jws.key_id.clone().expect("a key");
        let claims = Value::Object(jws.claims.clone());
        for header in [
            json!({"alg": "none", "typ": KIND, "kid": kid}),
            json!({"alg": "HS256", "typ": KIND, "kid": kid}),
            json!({"alg": "EdDSA", "typ": "JWT", "kid": kid}),
            json!({"alg": "EdDSA", "kid": kid}),
            json!({"alg": "EdDSA", "typ": KIND}),
            json!({"alg": "EdDSA", "typ": KIND, "kid": "another"}),
        ] {
            assert!(check(&forge(&ring, header.clone(), claims.clone()), &ring, NOW_US).is_err(), "{header}");
        }
        for (name, value) in [
            ("iss", json!("https://idp.example")),
            ("aud", json!(["millgate"])),
            ("sub", json!("admin")),
            ("exp", json!("1700003600")),
            ("exp", json!(u64::MAX)),
            ("exp", json!(1_700_003_600.5)),
            ("epoch", json!(-1)),
            ("key", json!(7)),
            ("key", json!(null)),
            ("mark", json!(null)),
            ("mark", json!("AAAA")),
        ] {
            let mut claims = claims.clone();
            claims[name] = value.clone();
            let header = json!({"alg": "EdDSA", "typ": KIND, "kid": kid});
            assert!(check(&forge(&ring, header, claims), &ring, NOW_US).is_err(), "{name}: {value}");
        }
    }

    fn ring_of_somebody_else() -> Keyring {
        ring()
    }
}
