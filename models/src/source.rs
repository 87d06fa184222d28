//! Where a model comes from, as users write it: `builtin:demo`, `hf:org/name`, a folder, a `.gguf` file.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// Where a model's files come from.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Source {
    /// The demonstration model inside the program.
    Builtin(Demo),
    /// A repository on the Hugging Face hub.
    Hub {
        /// `organisation/name`.
        repo: String,
        /// Branch, tag or commit; the hub's default branch when absent.
        revision: Option<String>,
    },
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
}

/// The demonstration model bundled with the program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Demo;

/// Why a text names no source.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Nothing was given.
    #[error("model source is empty; write `builtin:demo`, `hf:org/name[@revision]`, a folder or a .gguf file")]
    Empty,
    /// A bundled model that does not exist.
    #[error("no bundled model `{name}`; there is `builtin:demo`")]
    Builtin {
        /// The name asked for.
        name: String,
    },
    /// A hub name that is not `org/name[@revision]`.
    #[error("`hf:{text}` is not of the form `hf:org/name[@revision]`")]
    Hub {
        /// The text after `hf:`.
        text: String,
    },
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        if text.trim().is_empty() {
            return Err(SourceError::Empty);
        }
        if let Some(name) = text.strip_prefix("builtin:") {
            return match name {
                "demo" => Ok(Self::Builtin(Demo)),
                _ => Err(SourceError::Builtin { name: name.into() }),
            };
        }
        if let Some(rest) = text.strip_prefix("hf:") {
            return parse_hub(rest).ok_or_else(|| SourceError::Hub { text: rest.into() });
        }
        let path = PathBuf::from(text);
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        Ok(if is_gguf { Self::Gguf(path) } else { Self::Folder(path) })
    }
}

fn parse_hub(text: &str) -> Option<Source> {
    let (repo, revision) = match text.split_once('@') {
        Some((repo, revision)) => (repo, Some(revision)),
        None => (text, None),
    };
    let (organisation, name) = repo.split_once('/')?;
    if !is_hub_name(organisation) || !is_hub_name(name) || revision.is_some_and(|revision| !is_revision(revision)) {
        return None;
    }
    Some(Source::Hub { repo: repo.into(), revision: revision.map(Into::into) })
}

fn is_hub_name(name: &str) -> bool {
    // Dots alone would be a path of their own in the download cache.
    name.bytes().any(|byte| byte.is_ascii_alphanumeric())
        && !name.contains("..")
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn is_revision(revision: &str) -> bool {
    !revision.starts_with('/') && revision.split('/').all(is_hub_name)
}

impl fmt::Display for Source {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Builtin(Demo) => formatter.write_str("builtin:demo"),
            Self::Hub { repo, revision: None } => write!(formatter, "hf:{repo}"),
            Self::Hub { repo, revision: Some(revision) } => write!(formatter, "hf:{repo}@{revision}"),
            Self::Folder(path) | Self::Gguf(path) => write!(formatter, "{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_source_reads_back_as_it_was_written() {
        for text in
            ["builtin:demo", "hf:Qwen/Qwen3-0.6B", "hf:a/b@refs/pr/1", "models/tiny", "/srv/m.gguf", "/srv/M.GGUF"]
        {
            assert_eq!(text.parse::<Source>().unwrap().to_string(), text);
        }
        assert_eq!("x.gguf".parse(), Ok(Source::Gguf("x.gguf".into())));
        assert_eq!(
            "hf:Qwen/Qwen3@main".parse(),
            Ok(Source::Hub { repo: "Qwen/Qwen3".into(), revision: Some("main".into()) })
        );
    }

    #[test]
    fn what_could_leave_the_download_cache_is_refused() {
        for text in
            ["", "builtin:other", "hf:gpt2", "hf:../x", "hf:a/..", "hf:a/b/c", "hf:a/b@", "hf:a/b@../x", "hf:a b/c"]
        {
            assert!(text.parse::<Source>().is_err(), "{text}");
        }
    }
}
