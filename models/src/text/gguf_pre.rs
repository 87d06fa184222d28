//! How text is cut before byte-level merging, by the names GGUF files use.

use tokenizers::SplitDelimiterBehavior::Isolated;
use tokenizers::normalizers::NFC;
use tokenizers::pre_tokenizers::PreTokenizerWrapper;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::pre_tokenizers::digits::Digits;
use tokenizers::pre_tokenizers::sequence::Sequence;
use tokenizers::pre_tokenizers::split::{Split, SplitPattern};

use super::TextError;

/// A value of `tokenizer.ggml.pre` that this server knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Pre {
    Default,
    Gpt2,
    LlamaBpe,
    Qwen2,
    Tekken,
    SmolLm,
}

const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+";
const LLAMA_BPE: &str = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const QWEN2: &str =
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+";
const TEKKEN: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+";

impl Pre {
    /// The one a GGUF names.
    ///
    /// # Errors
    /// [`TextError::Unsupported`] with the name, when it is not known: ids would silently be wrong.
    pub(super) fn from_name(name: &str) -> Result<Self, TextError> {
        Ok(match name {
            "default" => Self::Default,
            "gpt-2" => Self::Gpt2,
            "llama-bpe" | "llama3" | "llama-v3" => Self::LlamaBpe,
            "qwen2" => Self::Qwen2,
            "tekken" => Self::Tekken,
            "smollm" => Self::SmolLm,
            other => {
                return Err(TextError::unsupported_in_gguf("pre-tokenizer (`tokenizer.ggml.pre`)", other));
            }
        })
    }

    /// Whether a piece that is a token as a whole is taken without merging.
    pub(super) fn ignores_merges(self) -> bool {
        matches!(self, Self::LlamaBpe | Self::Tekken)
    }

    /// Whether the begin token is put in front where the file does not say.
    pub(super) fn adds_bos(self) -> bool {
        matches!(self, Self::LlamaBpe | Self::Tekken)
    }

    /// What happens to the text before it is cut.
    pub(super) fn normalizer(self) -> Option<NFC> {
        (self == Self::Qwen2).then_some(NFC)
    }

    /// The cutting, followed by the spelling of bytes.
    ///
    /// # Errors
    /// [`TextError::Gguf`] when a pattern does not compile, which would be our own mistake.
    pub(super) fn pre_tokenizer(self) -> Result<Sequence, TextError> {
        let mut steps: Vec<PreTokenizerWrapper> = Vec::new();
        let patterns: &[&str] = match self {
            Self::Default => &[r"[\p{P}\$\+<=>\^~\|]+", GPT2, r"\p{N}+", "[0-9][0-9][0-9]"],
            Self::Gpt2 => &[GPT2],
            Self::LlamaBpe => &[LLAMA_BPE],
            Self::Qwen2 => &[QWEN2],
            Self::Tekken => &[TEKKEN],
            Self::SmolLm => {
                steps.push(Digits::new(true).into());
                &[GPT2]
            }
        };
        for &pattern in patterns {
            let split = Split::new(SplitPattern::Regex(pattern.to_owned()), Isolated, false);
            let split = split.map_err(|error| TextError::in_gguf(error.to_string()))?;
            steps.push(split.into());
        }
        steps.push(ByteLevel::new(false, true, false).into());
        Ok(Sequence::new(steps))
    }
}
