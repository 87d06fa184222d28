//! Finds and reads the configuration file, and says where in it something is wrong.

use std::io;
use std::path::{Path, PathBuf};

use super::environment::Environment;
use super::raw::RawConfig;

/// The file that is read when none is named and it exists.
pub const DEFAULT_FILE: &str = "millgate.toml";

/// Why there is no usable configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read configuration file `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The file is not TOML, has an unknown key, or a value of the wrong kind.
    #[error("configuration file `{}` is not valid", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, column and what was expected.
        #[source]
        source: Misread,
    },
    /// A value that is well-formed and still cannot work.
    #[error("`{key}`{} is not usable: {problem}", at_line(*line))]
    Value {
        /// The key with its table, such as `models[1].name`.
        key: String,
        /// The line of the file, when the value came from it.
        line: Option<usize>,
        /// What is wrong and what would be right.
        problem: String,
    },
}

/// What the parser says, in words of people.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Misread(String);

impl From<toml::de::Error> for Misread {
    fn from(error: toml::de::Error) -> Self {
        let mut text = error.to_string();
        for (theirs, ours) in [
            ("expected usize", "expected a whole number"),
            ("expected u64", "expected a whole number"),
            ("expected u32", "expected a whole number"),
            ("expected f64", "expected a number"),
        ] {
            text = text.replace(theirs, ours);
        }
        Self(text)
    }
}

fn at_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(" (line {line})"))
}

/// Which file to read: the named one, else `MILLGATE_CONFIG`, else `millgate.toml` where it exists.
#[must_use]
pub fn find_file(named: Option<&Path>, environment: &Environment) -> Option<PathBuf> {
    let default = || Some(PathBuf::from(DEFAULT_FILE)).filter(|path| path.is_file());
    named.map(Path::to_path_buf).or_else(|| environment.config_file.clone()).or_else(default)
}

/// Reads and parses a file; the second part is its text, to say where something stands.
///
/// # Errors
/// [`ConfigError::Read`] and [`ConfigError::Parse`].
pub fn read_file(path: &Path) -> Result<(RawConfig, String), ConfigError> {
    let text =
        std::fs::read_to_string(path).map_err(|source| ConfigError::Read { path: path.to_path_buf(), source })?;
    let raw = toml::from_str(&text)
        .map_err(|error: toml::de::Error| ConfigError::Parse { path: path.to_path_buf(), source: error.into() })?;
    Ok((raw, text))
}

/// The line a key stands on, counted from one. `table` is the header as written; `nth` counts repeated tables.
#[must_use]
pub(super) fn line_of(text: &str, table: &str, nth: usize, name: &str) -> Option<usize> {
    let (mut seen, mut inside) = (0, false);
    for (number, line) in text.lines().enumerate() {
        let line = line.trim();
        if line.starts_with('[') {
            let is_table = line.trim_matches(['[', ']']).trim() == table;
            inside = is_table && seen == nth;
            seen += usize::from(is_table);
        } else if inside && line.split_once('=').is_some_and(|(left, _)| left.trim() == name) {
            return Some(number + 1);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_error(text: &str) -> String {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("millgate.toml");
        std::fs::write(&path, text).unwrap();
        let error = anyhow::Error::from(read_file(&path).unwrap_err());
        format!("{error:#}")
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_the_keys_there_are() {
        let error = parse_error("[server]\nlisten = \"127.0.0.1:1\"\nlissten = 3\n");
        assert!(error.contains("line 3") && error.contains("lissten") && error.contains("`listen`"), "{error}");
    }

    #[test]
    fn a_number_that_is_none_is_told_without_words_of_the_language() {
        for (text, wanted) in [
            ("[server]\nmax_connections = \"many\"\n", "expected a whole number"),
            ("[server]\nmax_connections = -1\n", "expected a whole number"),
            ("[keys]\nmax_per_user = 1.5\n", "expected a whole number"),
            ("[traces]\nsample_ratio = \"half\"\n", "expected a number"),
        ] {
            let error = parse_error(text);
            assert!(error.contains("line 2") && error.contains(wanted), "{error}");
        }
    }

    #[test]
    fn a_wrong_unit_is_named_with_its_line_and_an_example() {
        let error = parse_error("[server]\n\ndrain_timeout = \"30 parsecs\"\n");
        assert!(error.contains("line 3") && error.contains("30 parsecs") && error.contains("250ms, 30s"), "{error}");
    }

    #[test]
    fn a_key_is_found_in_the_right_one_of_several_tables() {
        let text = "[[models]]\nname = \"a\"\n\n[[models]]\nsource = \"x\"\nname = \"a\"\n";
        assert_eq!(line_of(text, "models", 0, "name"), Some(2));
        assert_eq!(line_of(text, "models", 1, "name"), Some(6));
        assert_eq!(line_of(text, "server", 0, "name"), None);
    }
}
