//! A signed token in compact form, taken apart without trusting anything in it.
//!
//! Strict on purpose: no field twice, no `crit`, no encoding but the one base64url without padding.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value};

use crate::governance::strict_json::Strict;

/// The longest token that is looked at; a provider's with a few hundred groups fits.
const MAX_BYTES: usize = 16 << 10;
/// The last second that is believed to be one: the year 9999.
const LAST_SECOND: f64 = 253_402_300_799.0;

/// Why a token is not accepted. For the log: clients only learn that it is not valid.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::governance) enum Refused {
    /// It is not three parts of base64url with JSON inside.
    #[error("it is not a well-formed signed token: {0}")]
    Form(String),
    /// The header asks for something that is not done here.
    #[error("its header is not accepted: {0}")]
    Header(String),
    /// No known key has signed it.
    #[error("no known key has signed it")]
    Signature,
    /// The API server of the cluster does not vouch for it.
    #[error("the Kubernetes API server does not vouch for it: {0}")]
    Review(String),
    /// A claim is missing, malformed or not what it must be.
    #[error("claim `{claim}` {problem}")]
    Claim {
        /// Which.
        claim: String,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl Refused {
    /// Claim `claim` is wrong.
    pub(in crate::governance) fn claim(claim: impl Into<String>, problem: &'static str) -> Self {
        Self::Claim { claim: claim.into(), problem }
    }
}

/// A token whose signature nobody has checked yet.
#[derive(Debug)]
pub(in crate::governance) struct Jws<'a> {
    /// The algorithm the header names.
    pub(in crate::governance) algorithm: String,
    /// The key the header names.
    pub(in crate::governance) key_id: Option<String>,
    /// The kind of token the header says it is, in lower case and without `application/`.
    pub(in crate::governance) kind: Option<String>,
    /// What it claims.
    pub(in crate::governance) claims: Map<String, Value>,
    /// The signed text: header and claims as they were sent.
    pub(in crate::governance) signed: &'a str,
    /// The signature, still encoded.
    pub(in crate::governance) signature: &'a str,
}

/// True for what can only be meant as a token: three parts, the first the beginning of a JSON object.
pub(in crate::governance) fn looks_like_jws(text: &str) -> bool {
    text.starts_with("eyJ") && text.bytes().filter(|b| *b == b'.').count() == 2
}

impl<'a> Jws<'a> {
    /// Takes a token apart.
    ///
    /// # Errors
    /// [`Refused::Form`] and [`Refused::Header`].
    pub(in crate::governance) fn parse(text: &'a str) -> Result<Self, Refused> {
        if text.len() > MAX_BYTES {
            return Err(Refused::Form(format!("longer than {MAX_BYTES} bytes")));
        }
        let form = |problem: &str| Refused::Form(problem.to_owned());
        let (signed, signature) = text.rsplit_once('.').ok_or_else(|| form("no signature"))?;
        let (header, payload) = signed.split_once('.').ok_or_else(|| form("no claims"))?;
        let mut header = object(header, "header")?;
        // A token that lists extensions demands that they are understood, and none is.
        if header.contains_key("crit") {
            return Err(Refused::Header("it has critical extensions".into()));
        }
        // Keys come from configuration and from the store, never from the token itself.
        if let Some(own) = ["jwk", "jku", "x5c", "x5u"].into_iter().find(|name| header.contains_key(*name)) {
            return Err(Refused::Header(format!("it brings its own key in `{own}`")));
        }
        let mut text_of = |name: &str| match header.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) if text.len() <= 512 => Ok(Some(text)),
            Some(_) => Err(Refused::Header(format!("`{name}` is no text of at most 512 bytes"))),
        };
        let algorithm = text_of("alg")?.ok_or_else(|| Refused::Header("it names no algorithm".into()))?;
        let kind = text_of("typ")?.map(|kind| kind.to_ascii_lowercase());
        let kind = kind.map(|kind| kind.strip_prefix("application/").map(str::to_owned).unwrap_or(kind));
        let key_id = text_of("kid")?;
        Ok(Self { algorithm, key_id, kind, claims: object(payload, "claims")?, signed, signature })
    }

    /// A claim that is text.
    ///
    /// # Errors
    /// It is missing or something else.
    pub(in crate::governance) fn text(&self, claim: &str) -> Result<&str, Refused> {
        match self.claims.get(claim) {
            Some(Value::String(text)) => Ok(text),
            Some(_) => Err(Refused::claim(claim, "is not text")),
            None => Err(Refused::claim(claim, "is missing")),
        }
    }

    /// A claim that is a time in seconds since the Unix epoch, which may have a fraction; in microseconds.
    ///
    /// # Errors
    /// It is something else.
    pub(in crate::governance) fn moment(&self, claim: &str) -> Result<Option<i64>, Refused> {
        let Some(value) = self.claims.get(claim) else { return Ok(None) };
        match value.as_f64().filter(|seconds| (0.0..=LAST_SECOND).contains(seconds)) {
            // Fits by far: at most 2.6e17 microseconds.
            Some(seconds) => Ok(Some((seconds * 1e6) as i64)),
            None => Err(Refused::claim(claim, "is no time")),
        }
    }
}

/// Writes header and claims as the text to sign.
pub(super) fn signing_text(header: &Value, claims: &Value) -> String {
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}", part(header), part(claims))
}

/// base64url without padding.
pub(in crate::governance) fn encode(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

/// The bytes of base64url without padding.
pub(in crate::governance) fn decode(text: &str) -> Option<Vec<u8>> {
    URL_SAFE_NO_PAD.decode(text).ok()
}

fn object(part: &str, what: &str) -> Result<Map<String, Value>, Refused> {
    let bytes = decode(part).ok_or_else(|| Refused::Form(format!("the {what} are not base64url")))?;
    strict_object(&bytes).map_err(|problem| Refused::Form(format!("the {what} are {problem}")))
}

/// A JSON object in which no name stands twice, at any depth: two readers could otherwise see different ones.
pub(in crate::governance) fn strict_object(bytes: &[u8]) -> Result<Map<String, Value>, String> {
    match serde_json::from_slice::<Strict>(bytes) {
        Ok(Strict(Value::Object(map))) => Ok(map),
        Ok(_) => Err("no JSON object".into()),
        // The parser's own words may quote the token.
        Err(error) if error.is_data() => Err("JSON with a name twice".into()),
        Err(_) => Err("not JSON".into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(header: &str, claims: &str) -> String {
        format!("{}.{}.c2ln", encode(header.as_bytes()), encode(claims.as_bytes()))
    }

    #[test]
    fn a_token_is_taken_apart_and_its_kind_is_read_without_its_prefix() {
        let text = token(r#"{"alg":"ES256","kid":"k","typ":"application/AT+JWT"}"#, r#"{"iss":"x","n":1}"#);
        let jws = Jws::parse(&text).expect("a token");
        assert_eq!((jws.algorithm.as_str(), jws.key_id.as_deref()), ("ES256", Some("k")));
        assert_eq!((jws.kind.as_deref(), jws.text("iss")), (Some("at+jwt"), Ok("x")));
        assert_eq!(jws.text("n"), Err(Refused::claim("n", "is not text")));
        assert_eq!(format!("{}.{}", jws.signed, jws.signature), text);
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let plain = r#"{"alg":"EdDSA"}"#;
        for (header, claims) in [
            (r#"{"alg":"EdDSA","alg":"none"}"#, "{}"),
            (plain, r#"{"sub":"ann","sub":"admin"}"#),
            (plain, r#"{"a":[{"b":{"sub":1,"sub":2}}]}"#),
            (plain, r#"{"a":1} {"b":2}"#),
            (plain, r#"[]"#),
            (r#"{"alg":"EdDSA","crit":["exp"]}"#, "{}"),
            (r#"{"alg":"EdDSA","crit":[]}"#, "{}"),
            (r#"{"alg":"EdDSA","jwk":{}}"#, "{}"),
            (r#"{"alg":"EdDSA","jku":"https://evil.example"}"#, "{}"),
            (r#"{"alg":["EdDSA"]}"#, "{}"),
            (r#"{"kid":"k"}"#, "{}"),
        ] {
            assert!(Jws::parse(&token(header, claims)).is_err(), "{header} {claims}");
        }
        let good = token(plain, "{}");
        assert!(Jws::parse(&good).is_ok());
        for text in [format!("{good}."), good.replace("c2ln", "c2ln="), "a.b".into(), "...".into(), "x".repeat(20_000)]
        {
            let parsed = Jws::parse(&text);
            assert!(parsed.is_err() || parsed.is_ok_and(|jws| decode(jws.signature).is_none()), "{text}");
        }
    }

    #[test]
    fn a_refusal_never_repeats_the_token() {
        let text = token(r#"{"alg":"EdDSA"}"#, r#"{"secret-name": tru"#);
        let shown = Jws::parse(&text).expect_err("no JSON").to_string();
        assert!(!shown.contains("secret-name") && !shown.contains("tru\""), "{shown}");
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "(eyJ)?[a-zA-Z0-9._-]{0,80}") {
            let _ = Jws::parse(&text);
        }
    }
}
