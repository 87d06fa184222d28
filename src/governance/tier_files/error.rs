//! Why a file is no declaration, and where in it.

use std::fmt;

use crate::governance::limits::LimitError;
use crate::governance::tiers::TierError;

/// What is wrong with a file of tiers.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Not well formed, or a field is unknown.
    #[error("cannot read the tiers: {0}")]
    Format(String),
    /// A ConfigMap without the list.
    #[error("the ConfigMap has no `data.tiers`")]
    NoTiers,
    /// Two tiers of one name.
    #[error("tier `{0}` is there twice")]
    Twice(String),
    /// A limit is wrong.
    #[error("tier `{tier}`: {source}")]
    Limit {
        /// Of which tier.
        tier: String,
        /// What is wrong.
        source: LimitError,
    },
    /// A tier breaks the rules.
    #[error("tier `{tier}`: {source}")]
    Tier {
        /// Which tier.
        tier: String,
        /// What is wrong.
        source: TierError,
    },
}

/// A problem with its place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileError {
    /// The file, where several are read together.
    pub file: Option<String>,
    /// Counted from 1, where it is known.
    pub line: Option<u64>,
    /// What is wrong.
    pub problem: Problem,
}

impl FileError {
    pub(super) fn new(line: Option<u64>, problem: Problem) -> Self {
        Self { file: None, line, problem }
    }

    /// The same, in that file.
    pub(super) fn in_file(self, file: &str) -> Self {
        Self { file: Some(file.to_owned()), ..self }
    }
}

impl fmt::Display for FileError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.file, self.line) {
            (Some(file), Some(line)) => write!(f, "`{file}` line {line}: {}", self.problem),
            (Some(file), None) => write!(f, "`{file}`: {}", self.problem),
            (None, Some(line)) => write!(f, "line {line}: {}", self.problem),
            (None, None) => self.problem.fmt(f),
        }
    }
}

impl std::error::Error for FileError {}
