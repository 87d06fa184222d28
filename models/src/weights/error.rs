//! What can be wrong with a weight file; every message names the file, and the tensor where there is one.

use std::io;
use std::path::PathBuf;

use millgate_kernels::KernelError;

/// Why weights cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// Nobody wants the model any more.
    #[error("the load was cancelled")]
    Cancelled,
    /// The file cannot be opened or mapped.
    #[error("cannot open weight file `{}`", path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        #[source]
        source: io::Error,
    },
    /// The file's structure is broken.
    #[error("weight file `{file}` is damaged: {reason}")]
    Damaged {
        /// The file.
        file: String,
        /// What is wrong, and where.
        reason: String,
    },
    /// The file is sound but of a kind that is not supported.
    #[error("weight file `{file}` is not supported: {reason}")]
    Unsupported {
        /// The file.
        file: String,
        /// What is not supported, and what is.
        reason: String,
    },
    /// The model needs a tensor that is not there.
    #[error("tensor `{name}` is missing from `{file}`")]
    Missing {
        /// The tensor's name, as in the file.
        name: String,
        /// The file, or the folder of several.
        file: String,
    },
    /// A tensor has another shape than the model's config says.
    #[error("tensor `{name}` in `{file}` is {found:?}, the model config needs {wanted:?}")]
    Shape {
        /// The tensor's name, as in the file.
        name: String,
        /// The file.
        file: String,
        /// Shape in the file, rows first.
        found: Vec<usize>,
        /// Shape that the config asks for.
        wanted: Vec<usize>,
    },
    /// A tensor has an element type that cannot be computed with.
    #[error("tensor `{name}` in `{file}` has type {found}; supported are {supported}")]
    Format {
        /// The tensor's name, as in the file.
        name: String,
        /// The file.
        file: String,
        /// Its type.
        found: String,
        /// The types that are.
        supported: &'static str,
    },
    /// A tensor that the architecture has no use for: computing without it would be silently wrong.
    #[error("tensor `{name}` in `{file}` is not part of architecture `{architecture}`")]
    Unexpected {
        /// The tensor's name, as in the file.
        name: String,
        /// The file.
        file: String,
        /// The architecture of the config.
        architecture: String,
    },
    /// The kernels refuse the tensor's values, or there is no memory for it.
    #[error("cannot take tensor `{name}` of `{file}`")]
    Pack {
        /// The tensor's name, as in the file.
        name: String,
        /// The file.
        file: String,
        /// The kernel's own message.
        #[source]
        source: KernelError,
    },
}

impl WeightsError {
    pub(crate) fn damaged(file: &str, reason: impl Into<String>) -> Self {
        Self::Damaged { file: file.to_owned(), reason: reason.into() }
    }

    pub(crate) fn unsupported(file: &str, reason: impl Into<String>) -> Self {
        Self::Unsupported { file: file.to_owned(), reason: reason.into() }
    }
}
