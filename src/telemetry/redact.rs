//! The one place where credentials are masked: log lines, messages of errors and what the audit log keeps pass through here.
//!
//! Nothing is supposed to print a credential in the first place; this is the net below. It knows shapes (our keys, JWTs,
//! `Bearer ...`, webhook secrets, passwords in addresses) and the secrets of no shape that were configured, see [`guard`].

use std::borrow::Cow;
use std::io::{self, Write};
use std::sync::{LazyLock, PoisonError, RwLock};

use tracing_subscriber::fmt::MakeWriter;

/// What stands where a credential was.
pub const MASK: &str = "[redacted]";

/// Secrets that no shape gives away; few, set at start.
static GUARDED: LazyLock<RwLock<Vec<String>>> = LazyLock::new(RwLock::default);

/// Shorter texts are words that occur by themselves; masking them would only garble.
const GUARD_MIN: usize = 8;

/// Prefixes that only credentials have: our keys, webhook secrets, tokens of the model hub.
const PREFIXES: [&str; 3] = ["sk-mg_", "whsec_", "hf_"];
/// A credential behind a prefix is at least so long.
const PREFIXED_MIN: usize = 12;
/// Words of an `Authorization` header that a credential follows.
const SCHEMES: [&str; 2] = ["bearer ", "basic "];
/// A credential behind a scheme is at least so long; `bearer token` in a sentence is none.
const SCHEMED_MIN: usize = 12;

/// From now on this very text is masked wherever it shows up, also as a JSON or debug string has it.
pub fn guard(secret: &str) {
    if secret.len() < GUARD_MIN {
        return;
    }
    let quoted = format!("{secret:?}");
    let escaped = quoted[1..quoted.len() - 1].to_owned();
    let mut guarded = GUARDED.write().unwrap_or_else(PoisonError::into_inner);
    for form in [secret.to_owned(), escaped] {
        if !guarded.contains(&form) {
            guarded.push(form);
        }
    }
}

/// The text with every credential masked.
pub fn redact(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for secret in GUARDED.read().unwrap_or_else(PoisonError::into_inner).iter() {
        if text.contains(secret.as_str()) {
            text = Cow::Owned(text.replace(secret.as_str(), MASK));
        }
    }
    match mask_shapes(&text) {
        Some(masked) => Cow::Owned(masked),
        None => text,
    }
}

/// `None`: nothing has the shape of a credential.
fn mask_shapes(text: &str) -> Option<String> {
    let mut masked = String::new();
    // Up to where the text is copied, and from where the next credential is looked for.
    let (mut copied, mut at) = (0, 0);
    while at < text.len() {
        match credential_at(text, at) {
            Some((start, end)) => {
                masked.push_str(&text[copied..start]);
                masked.push_str(MASK);
                (copied, at) = (end, end);
            }
            None => at += text[at..].chars().next().map_or(1, char::len_utf8),
        }
    }
    if copied == 0 {
        return None;
    }
    masked.push_str(&text[copied..]);
    Some(masked)
}

/// The bytes to mask if a credential, or the word before one, begins at `at`.
fn credential_at(text: &str, at: usize) -> Option<(usize, usize)> {
    let rest = &text[at..];
    let byte = *rest.as_bytes().first()?;
    // Cheap first: most bytes of a log line begin nothing.
    match byte {
        b's' | b'w' | b'h' if !continues_word(text, at) => {
            let prefix = PREFIXES.into_iter().find(|prefix| rest.starts_with(prefix))?;
            let end = at + prefix.len() + run(&rest[prefix.len()..], is_key_byte);
            (end - at >= PREFIXED_MIN).then_some((at, end))
        }
        b'e' if rest.starts_with("eyJ") && !continues_word(text, at) => {
            let end = at + run(rest, |b| is_key_byte(b) || b == b'.');
            let parts = text[at..end].split('.').filter(|part| part.len() >= 8).count();
            (parts >= 2).then_some((at, end))
        }
        b'b' | b'B' if !continues_word(text, at) => {
            let scheme = SCHEMES.into_iter().find(|scheme| {
                rest.len() > scheme.len() && rest.as_bytes()[..scheme.len()].eq_ignore_ascii_case(scheme.as_bytes())
            })?;
            let start = at + scheme.len();
            let end = start + run(&text[start..], |b| is_key_byte(b) || b"./+=~!$&*:;,@#%^?".contains(&b));
            // `Bearer authentication` in a sentence is no credential: those are hardly ever lower-case letters alone.
            let is_word = text[start..end].bytes().all(|b| b.is_ascii_lowercase());
            (end - start >= SCHEMED_MIN && !is_word).then_some((start, end))
        }
        b':' if rest.starts_with("://") => {
            // `scheme://name:password@host`: the password alone.
            let host = &rest[3..];
            let authority = &host[..run(host, |b| !b"/?#\"' \n".contains(&b))];
            let (login, _) = authority.rsplit_once('@')?;
            let (name, password) = login.split_once(':')?;
            let start = at + 3 + name.len() + 1;
            (!password.is_empty()).then_some((start, start + password.len()))
        }
        _ => None,
    }
}

fn continues_word(text: &str, at: usize) -> bool {
    at > 0 && text.as_bytes()[at - 1].is_ascii_alphanumeric()
}

fn is_key_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-'
}

/// How many of the first bytes are of that kind; ends between characters, because only ASCII bytes are asked for or split at.
fn run(text: &str, belongs: impl Fn(u8) -> bool) -> usize {
    text.bytes().position(|byte| !belongs(byte)).unwrap_or(text.len())
}

/// Masks what is written through it, a whole log line at a time.
#[derive(Debug, Clone, Copy)]
pub(super) struct Redacting<M>(pub(super) M);

impl<'a, M: MakeWriter<'a>> MakeWriter<'a> for Redacting<M> {
    type Writer = RedactingWriter<M::Writer>;

    fn make_writer(&'a self) -> Self::Writer {
        RedactingWriter { inner: self.0.make_writer(), line: Vec::new() }
    }
}

/// Gathers one line; it goes out masked when the line is over.
pub(super) struct RedactingWriter<W: Write> {
    inner: W,
    line: Vec<u8>,
}

impl<W: Write> Write for RedactingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Kept until the end: a credential may come in pieces.
        self.line.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        let line = std::mem::take(&mut self.line);
        self.inner.write_all(redact(&String::from_utf8_lossy(&line)).as_bytes())?;
        self.inner.flush()
    }
}

impl<W: Write> Drop for RedactingWriter<W> {
    fn drop(&mut self) {
        // Nothing is left to do when the log cannot be written.
        let _ = self.flush();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_shaped_like_a_credential_is_masked_and_the_rest_stays() {
        let jwt = "eyJhbGciOiJFZERTQSJ9.eyJzdWIiOiJhbm4ifQ.c2lnbmF0dXJlLW9mLWl0";
        for (text, shown) in [
            ("key sk-mg_0123456789ab_secretsecret!", "key [redacted]!".to_owned()),
            ("hook whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "hook [redacted]".to_owned()),
            ("HF_TOKEN=hf_abcdefghijklmnop", "HF_TOKEN=[redacted]".to_owned()),
            (&format!("token `{jwt}` refused"), "token `[redacted]` refused".to_owned()),
            ("Authorization: Bearer abc.def-ghi~jkl", "Authorization: Bearer [redacted]".to_owned()),
            ("authorization: \"basic YWxpY2U6c2VjcmV0\"", "authorization: \"basic [redacted]\"".to_owned()),
            ("redis://user:hunter2@host:6379/0 is down", "redis://user:[redacted]@host:6379/0 is down".to_owned()),
            (&format!("é{jwt}é and sk-mg_0123456789ab_x é"), "é[redacted]é and [redacted] é".to_owned()),
        ] {
            assert_eq!(redact(text), shown, "{text}");
        }
    }

    #[test]
    fn words_that_only_look_alike_stay_as_they_are() {
        for text in [
            "a valid bearer token is needed",
            "Bearer authentication is needed",
            "sk-mg_... is how keys begin",
            "task-mg_is_not_a_key_at_all_because_of_ta",
            "http://127.0.0.1:8080/v1?a=b@c",
            "hf:Qwen/Qwen3-0.6B",
            "eyJ is how a token begins",
            "",
        ] {
            assert!(matches!(redact(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn a_secret_without_a_shape_is_masked_once_it_is_guarded() {
        let secret = "my \"own\" pass-phrase, of no shape";
        assert_eq!(redact(secret), secret);
        guard(secret);
        assert_eq!(redact(&format!("a {secret} b")), "a [redacted] b");
        assert_eq!(redact(&format!("{secret:?}")), "\"[redacted]\"");
        guard("short");
        assert_eq!(redact("a short word"), "a short word");
    }

    #[test]
    fn a_credential_that_is_written_in_pieces_is_masked_all_the_same() {
        let mut written = Vec::new();
        {
            let mut writer = RedactingWriter { inner: &mut written, line: Vec::new() };
            for piece in ["a sk-m", "g_0123456789", "ab_secret b\n"] {
                writer.write_all(piece.as_bytes()).unwrap();
            }
        }
        assert_eq!(String::from_utf8(written).unwrap(), "a [redacted] b\n");
    }

    proptest::proptest! {
        #[test]
        fn redaction_never_panics_and_is_done_once(text in "\\PC{0,80}") {
            let once = redact(&text).into_owned();
            proptest::prop_assert_eq!(redact(&once).into_owned(), once.clone());
        }
    }
}
