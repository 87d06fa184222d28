//! What can go wrong between text and token ids, each naming the file and the thing.

use std::io;
use std::path::PathBuf;

const TOKENIZER_JSON: &str = "tokenizer.json";
const GGUF: &str = "the GGUF file";

/// A tokenizer or one of its files cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TextError {
    /// A file that must be there could not be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any real one of its kind.
    #[error("`{}` is longer than the {limit} bytes a file of this kind may have", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The limit in bytes.
        limit: u64,
    },
    /// A JSON file does not have the form it must have.
    #[error("`{file}` is not usable: {problem}")]
    Json {
        /// The file, as far as it is known.
        file: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The model folder holds no tokenizer this server can read.
    #[error("`{}` holds no `tokenizer.json`", folder.display())]
    NoTokenizer {
        /// The model folder.
        folder: PathBuf,
    },
    /// A part of the tokenizer is of a kind this server does not know.
    #[error("{part} of kind `{kind}` in `{file}` is not supported")]
    Unsupported {
        /// The file.
        file: String,
        /// Which part, for example `decoder`.
        part: &'static str,
        /// The kind's name in the file.
        kind: String,
    },
    /// Metadata arrays inside a GGUF contradict each other.
    #[error("tokenizer metadata of `{file}` is not usable: {problem}")]
    Gguf {
        /// The GGUF file.
        file: String,
        /// What is wrong.
        problem: String,
    },
    /// Text could not be turned into token ids.
    #[error("cannot tokenize: {problem}")]
    Encode {
        /// What the tokenizer reported.
        problem: String,
    },
    /// The model's chat template does not compile.
    #[error("chat template in {origin} is not usable")]
    Template {
        /// Where the template came from.
        origin: String,
        /// The compiler's complaint.
        #[source]
        source: TemplateError,
    },
}

/// A chat template cannot be compiled or rendered.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// The template refused the messages through `raise_exception`: the client's mistake.
    #[error("{message}")]
    Raised {
        /// The template's own words.
        message: String,
    },
    /// Rendering used up its budget of steps, of bytes or of nesting.
    #[error("chat template does not finish within its budget: {detail}")]
    OutOfBudget {
        /// Which budget.
        detail: String,
    },
    /// The template itself is broken.
    #[error("chat template is broken: {problem}")]
    Broken {
        /// The engine's message with the line.
        problem: String,
    },
}

impl TextError {
    /// What is wrong with a tokenizer.json whose path the caller knows.
    pub(super) fn in_json(problem: impl Into<String>) -> Self {
        Self::Json { file: TOKENIZER_JSON.to_owned(), problem: problem.into() }
    }

    /// A part of a tokenizer.json that is not supported.
    pub(super) fn unsupported_in_json(part: &'static str, kind: &str) -> Self {
        Self::Unsupported { file: TOKENIZER_JSON.to_owned(), part, kind: kind.to_owned() }
    }

    /// What is wrong with the metadata of a GGUF whose name the caller knows.
    pub(super) fn in_gguf(problem: impl Into<String>) -> Self {
        Self::Gguf { file: GGUF.to_owned(), problem: problem.into() }
    }

    /// A kind named in the metadata of a GGUF that is not supported.
    pub(super) fn unsupported_in_gguf(part: &'static str, kind: &str) -> Self {
        Self::Unsupported { file: GGUF.to_owned(), part, kind: kind.to_owned() }
    }

    /// The same error about the file that the caller names.
    pub(super) fn about(self, file: impl ToString) -> Self {
        let file = file.to_string();
        match self {
            Self::Json { problem, .. } => Self::Json { file, problem },
            Self::Unsupported { part, kind, .. } => Self::Unsupported { file, part, kind },
            Self::Gguf { problem, .. } => Self::Gguf { file, problem },
            other => other,
        }
    }
}

/// A message of the tokenizer library, which may quote a token of any length.
pub(super) fn shortened(error: &dyn std::fmt::Display) -> String {
    const MAX_CHARS: usize = 300;
    let text = error.to_string();
    match text.char_indices().nth(MAX_CHARS) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}
