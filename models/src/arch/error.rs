//! What can be wrong with a model's config; every message names the key.

/// Why a config describes no model that we can compute.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// The file is not a JSON object.
    #[error("it is not a JSON object: {reason}")]
    NotJson {
        /// The parser's message.
        reason: String,
    },
    /// A key that the family needs is absent.
    #[error("`{key}` is missing")]
    Missing {
        /// The key as the file spells it.
        key: String,
    },
    /// A key has a value of another kind.
    #[error("`{key}` is {found}, it must be {wanted}")]
    Kind {
        /// The key as the file spells it.
        key: String,
        /// Its value, shortened.
        found: String,
        /// What it must be.
        wanted: String,
    },
    /// The config asks for something that is not implemented. It is never ignored.
    #[error("{what} `{found}` is not supported; supported: {supported}")]
    Unsupported {
        /// What kind of thing.
        what: String,
        /// The value asked for.
        found: String,
        /// What there is instead.
        supported: String,
    },
}

impl ConfigError {
    pub(crate) fn unsupported(what: &str, found: impl ToString, supported: &str) -> Self {
        Self::Unsupported { what: what.to_owned(), found: found.to_string(), supported: supported.to_owned() }
    }
}
