//! Why a download from the hub failed, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

use hf_hub::api::sync::ApiError;

/// A download from the hub failed.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// Nobody wants the model any more; what arrived is kept for the next attempt.
    #[error("the download was cancelled")]
    Cancelled,
    /// There is no folder to keep downloads in.
    #[error("there is no folder for downloads: set HF_HOME, or `hub.home` in the configuration")]
    NoHome,
    /// The hub wants to know who asks, or does not let this one in.
    #[error(
        "the hub refuses `{repo}` (status {status}): it is private, gated or does not exist; \
         accept its terms on the hub and set HF_TOKEN to a token that may read it"
    )]
    NotAllowed {
        /// The repository.
        repo: String,
        /// 401 or 403.
        status: u16,
    },
    /// No such repository, revision or file.
    #[error("the hub has no {what}")]
    NotFound {
        /// What was asked for.
        what: String,
    },
    /// The hub answered with an error of its own.
    #[error("the hub answers {what} with status {status}")]
    Status {
        /// What was asked for.
        what: String,
        /// The HTTP status.
        status: u16,
    },
    /// No answer: no network, a wrong address, or the line broke too often.
    #[error("cannot reach the hub at `{endpoint}` for {what}: {problem}")]
    Unreachable {
        /// The hub's address.
        endpoint: String,
        /// What was asked for.
        what: String,
        /// The transport's words.
        problem: String,
    },
    /// The disk that holds the cache is full.
    #[error("the disk with `{}` is full; what was downloaded is kept for the next attempt", path.display())]
    DiskFull {
        /// A file or folder on it.
        path: PathBuf,
    },
    /// The cache cannot be read or written.
    #[error("cannot use the download cache at `{}`", path.display())]
    Cache {
        /// The file or folder.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Another process is downloading the same file and does not finish.
    #[error("another process is downloading {what}; its lock is `{}`", lock.display())]
    Busy {
        /// What was asked for.
        what: String,
        /// The lock file.
        lock: PathBuf,
    },
    /// A file arrived with another length than announced.
    #[error("`{file}` arrived with {found} bytes instead of {expected}")]
    WrongLength {
        /// The file.
        file: String,
        /// Bytes that arrived.
        found: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// The hub's answer makes no sense.
    #[error("the answer of the hub about `{repo}` is not usable: {problem}")]
    BadAnswer {
        /// The repository.
        repo: String,
        /// What is wrong.
        problem: String,
    },
    /// The repository lacks a file that every model needs.
    #[error("`{repo}` on the hub holds no `{file}`")]
    MissingFile {
        /// The repository.
        repo: String,
        /// The file.
        file: String,
    },
    /// The repository has no weights in a format that this server reads.
    #[error("`{repo}` on the hub holds neither safetensors nor a .gguf file")]
    NoWeights {
        /// The repository.
        repo: String,
    },
    /// The repository holds several GGUF files and nothing says which one is meant.
    #[error("`{repo}` on the hub holds several .gguf files ({}); download one and give its path", files.join(", "))]
    SeveralGguf {
        /// The repository.
        repo: String,
        /// Their names.
        files: Vec<String>,
    },
}

/// What a request was about, for messages.
#[derive(Clone, Copy)]
pub(super) struct Subject<'a> {
    pub(super) repo: &'a str,
    pub(super) revision: &'a str,
    pub(super) endpoint: &'a str,
    pub(super) file: Option<&'a str>,
    /// The folder of the cache.
    pub(super) cache: &'a Path,
}

impl Subject<'_> {
    fn describe(&self) -> String {
        match self.file {
            Some(file) => format!("`{file}` of `{}`", self.repo),
            None => format!("`{}` at revision `{}`", self.repo, self.revision),
        }
    }

    fn unreachable(&self, problem: String) -> HubError {
        HubError::Unreachable { endpoint: self.endpoint.to_owned(), what: self.describe(), problem }
    }
}

impl HubError {
    /// Whether the same request may well succeed a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Busy { .. } | Self::WrongLength { .. } => true,
            Self::Status { status, .. } => *status == 429 || *status >= 500,
            _ => false,
        }
    }

    pub(super) fn from_api(error: ApiError, subject: &Subject<'_>) -> Self {
        match error {
            ApiError::RequestError(error) => Self::from_request(*error, subject),
            ApiError::IoError(error) => Self::from_transfer(error, subject),
            ApiError::TooManyRetries(error) => Self::from_api(*error, subject),
            ApiError::LockAcquisition(lock) => Self::Busy { what: subject.describe(), lock },
            other => Self::BadAnswer { repo: subject.repo.to_owned(), problem: other.to_string() },
        }
    }

    fn from_request(error: ureq::Error, subject: &Subject<'_>) -> Self {
        match error {
            ureq::Error::StatusCode(status @ (401 | 403)) => Self::NotAllowed { repo: subject.repo.to_owned(), status },
            ureq::Error::StatusCode(404) => Self::NotFound { what: subject.describe() },
            ureq::Error::StatusCode(status) => Self::Status { what: subject.describe(), status },
            ureq::Error::Io(error) => Self::from_transfer(error, subject),
            ureq::Error::Json(error) => Self::BadAnswer { repo: subject.repo.to_owned(), problem: error.to_string() },
            other => subject.unreachable(other.to_string()),
        }
    }

    /// The library reports a broken line and a failed write as the same kind of error; the system's code tells.
    fn from_transfer(error: io::Error, subject: &Subject<'_>) -> Self {
        let path = || subject.cache.to_owned();
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::DiskFull { path: path() }
            }
            io::ErrorKind::PermissionDenied
            | io::ErrorKind::ReadOnlyFilesystem
            | io::ErrorKind::NotADirectory
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::AlreadyExists
            | io::ErrorKind::NotFound => Self::Cache { path: path(), source: error },
            _ => subject.unreachable(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_line() {
        let cache = Path::new("/cache");
        let subject = Subject { repo: "o/n", revision: "main", endpoint: "http://hub", file: None, cache };
        let full = HubError::from_api(ApiError::IoError(io::ErrorKind::StorageFull.into()), &subject);
        assert!(matches!(full, HubError::DiskFull { .. }) && !full.is_passing(), "{full}");
        let broken = HubError::from_api(ApiError::IoError(io::ErrorKind::UnexpectedEof.into()), &subject);
        assert!(matches!(broken, HubError::Unreachable { .. }) && broken.is_passing(), "{broken}");
    }
}
