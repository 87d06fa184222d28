//! How a vocabulary writes bytes into its tokens, read from the tokenizer's decoder.

use serde_json::Value;

use super::TextError;
use super::byte_level;

/// What happens to a space at the very beginning of a decoded text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LeadingSpace {
    /// It stays.
    Keep,
    /// One is dropped: the tokenizer itself added it.
    StripOne,
    /// The first token loses all of them.
    StripFirstToken,
}

/// The rules that turn the tokens of one vocabulary back into bytes.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spelling {
    byte_level: bool,
    byte_fallback: bool,
    replacements: Vec<(String, String)>,
    pub(super) leading_space: LeadingSpace,
}

impl Spelling {
    /// Byte-level BPE: one character stands for one byte.
    pub(super) fn byte_level() -> Self {
        Self { byte_level: true, byte_fallback: false, replacements: Vec::new(), leading_space: LeadingSpace::Keep }
    }

    /// SentencePiece: `▁` stands for a space, `<0x0A>` for a byte.
    pub(super) fn sentence_piece(leading_space: LeadingSpace) -> Self {
        let replacements = vec![("▁".to_owned(), " ".to_owned())];
        Self { byte_level: false, byte_fallback: true, replacements, leading_space }
    }

    /// Reads the rules from the `decoder` of a tokenizer.json.
    ///
    /// # Errors
    /// [`TextError::Unsupported`] names a decoder whose tokens do not stand for fixed bytes.
    pub(super) fn from_decoder(decoder: &Value) -> Result<Self, TextError> {
        let mut spelling = Self {
            byte_level: false,
            byte_fallback: false,
            replacements: Vec::new(),
            leading_space: LeadingSpace::Keep,
        };
        spelling.read(decoder)?;
        Ok(spelling)
    }

    fn read(&mut self, decoder: &Value) -> Result<(), TextError> {
        let kind = decoder.get("type").and_then(Value::as_str).unwrap_or("none");
        match kind {
            "Sequence" => {
                for step in decoder.get("decoders").and_then(Value::as_array).into_iter().flatten() {
                    self.read(step)?;
                }
            }
            "ByteLevel" => self.byte_level = true,
            "ByteFallback" => self.byte_fallback = true,
            "Fuse" => {}
            "Replace" => {
                let from = decoder.pointer("/pattern/String").and_then(Value::as_str);
                let to = decoder.get("content").and_then(Value::as_str);
                let (Some(from), Some(to)) = (from, to) else { return Err(unsupported("Replace with a pattern")) };
                self.replacements.push((from.to_owned(), to.to_owned()));
            }
            "Strip" => self.read_strip(decoder)?,
            "Metaspace" => {
                let marker = decoder.get("replacement").and_then(Value::as_str).unwrap_or("▁");
                self.replacements.push((marker.to_owned(), " ".to_owned()));
                // Older files carry `add_prefix_space` instead of a scheme.
                let scheme = decoder.get("prepend_scheme").and_then(Value::as_str).unwrap_or("always");
                let prefixed = decoder.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true);
                if scheme != "never" && prefixed {
                    self.leading_space = LeadingSpace::StripFirstToken;
                }
            }
            other => return Err(unsupported(other)),
        }
        Ok(())
    }

    fn read_strip(&mut self, decoder: &Value) -> Result<(), TextError> {
        let count = |side: &str| decoder.get(side).and_then(Value::as_u64).unwrap_or(0);
        let content = decoder.get("content").and_then(Value::as_str).unwrap_or(" ");
        match (content, count("start"), count("stop")) {
            (_, 0, 0) => Ok(()),
            (" ", 1, 0) => {
                self.leading_space = LeadingSpace::StripOne;
                Ok(())
            }
            _ => Err(unsupported("Strip of more than one leading space")),
        }
    }

    /// Appends the bytes of an ordinary token.
    pub(super) fn append_token(&self, token: &str, out: &mut Vec<u8>) {
        if self.byte_fallback
            && let Some(byte) = fallback_byte(token)
        {
            out.push(byte);
            return;
        }
        if self.byte_level && byte_level::append_bytes(token, out) {
            return;
        }
        self.append_replaced(token, out);
    }

    /// Appends the bytes of an added token, which stands for its own text.
    pub(super) fn append_added(&self, token: &str, out: &mut Vec<u8>) {
        self.append_replaced(token, out);
    }

    fn append_replaced(&self, token: &str, out: &mut Vec<u8>) {
        match self.replacements.as_slice() {
            [] => out.extend_from_slice(token.as_bytes()),
            rules => {
                let mut text = token.to_owned();
                for (from, to) in rules {
                    text = text.replace(from, to);
                }
                out.extend_from_slice(text.as_bytes());
            }
        }
    }
}

fn unsupported(kind: &str) -> TextError {
    TextError::unsupported_in_json("decoder", kind)
}

/// SentencePiece's name of the token for one byte.
pub(super) fn fallback_name(byte: u8) -> String {
    format!("<0x{byte:02X}>")
}

/// The byte a SentencePiece byte token such as `<0x0A>` stands for.
fn fallback_byte(token: &str) -> Option<u8> {
    let hex = token.strip_prefix("<0x")?.strip_suffix('>')?;
    let is_two_digits = hex.len() == 2 && hex.bytes().all(|b| b.is_ascii_hexdigit());
    if is_two_digits { u8::from_str_radix(hex, 16).ok() } else { None }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_llama_decoder_turns_markers_into_spaces_and_byte_tokens_into_bytes() {
        let decoder = json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]});
        let spelling = Spelling::from_decoder(&decoder).unwrap();
        assert_eq!(spelling, Spelling::sentence_piece(LeadingSpace::StripOne));
        let mut out = Vec::new();
        for token in ["▁Hi", "<0xE2>", "<0x8>", "<0x+1>"] {
            spelling.append_token(token, &mut out);
        }
        assert_eq!(out, b" Hi\xE2<0x8><0x+1>");
    }

    #[test]
    fn a_decoder_without_fixed_bytes_is_refused_by_name() {
        for (decoder, name) in [(json!(null), "none"), (json!({"type": "WordPiece", "prefix": "##"}), "WordPiece")] {
            let error = Spelling::from_decoder(&decoder).unwrap_err().to_string();
            assert!(error.contains(name), "{error}");
        }
    }
}
