//! Which files of a hub repository make up a model.

use std::collections::BTreeSet;
use std::path::{Component, Path, PathBuf};

use serde_json::Value;

use super::hub_error::HubError;

const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
/// Small files that a model folder must or may have.
const NEEDED: [&str; 2] = ["config.json", "tokenizer.json"];
const OPTIONAL: [&str; 4] =
    ["generation_config.json", "tokenizer_config.json", "chat_template.jinja", "chat_template.json"];

/// A downloaded model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HubFiles {
    /// A folder in Hugging Face layout.
    Folder(PathBuf),
    /// One GGUF file.
    Gguf(PathBuf),
}

impl HubFiles {
    /// The model in a snapshot of the cache; `None` unless all its files are there.
    pub(super) fn of_snapshot(snapshot: &Path) -> Option<Self> {
        let entries = std::fs::read_dir(snapshot).ok()?.flatten();
        // A link whose blob is gone does not exist.
        let names = entries.filter(|entry| entry.path().exists());
        let names: Vec<String> = names.filter_map(|entry| entry.file_name().into_string().ok()).collect();
        let selection = Selection::of(&names, "").ok()?;
        if let Some(index) = &selection.index {
            let bytes = std::fs::read(snapshot.join(index)).ok()?;
            Selection::shards(index, &bytes, &names, "").ok()?;
        }
        Some(selection.located(snapshot))
    }
}

/// The files to download, without the shards that an index names.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Selection {
    pub(super) files: Vec<String>,
    pub(super) index: Option<String>,
    gguf: Option<String>,
}

impl Selection {
    /// Chooses among the files of a repository: safetensors before GGUF, one file before shards.
    pub(super) fn of(names: &[String], repo: &str) -> Result<Self, HubError> {
        let has = |name: &str| names.iter().any(|other| other == name);
        let chosen = |names: &[&str]| -> Vec<String> {
            names.iter().filter(|name| has(name)).map(|&name| name.to_owned()).collect()
        };
        if !has(SINGLE) && !has(INDEX) {
            return Self::gguf(names, repo);
        }
        if let Some(missing) = NEEDED.into_iter().find(|name| !has(name)) {
            return Err(HubError::MissingFile { repo: repo.to_owned(), file: missing.to_owned() });
        }
        let mut files = chosen(&NEEDED);
        files.extend(chosen(&OPTIONAL));
        let index = if has(SINGLE) { None } else { Some(INDEX.to_owned()) };
        if index.is_none() {
            files.push(SINGLE.to_owned());
        }
        Ok(Self { files, index, gguf: None })
    }

    fn gguf(names: &[String], repo: &str) -> Result<Self, HubError> {
        let is_gguf = |name: &&String| Path::new(name).extension().is_some_and(|e| e.eq_ignore_ascii_case("gguf"));
        let found: Vec<String> = names.iter().filter(is_gguf).cloned().collect();
        match found.as_slice() {
            [] => Err(HubError::NoWeights { repo: repo.to_owned() }),
            [only] => {
                check_name(only, repo)?;
                Ok(Self { files: vec![only.clone()], index: None, gguf: Some(only.clone()) })
            }
            _ => Err(HubError::SeveralGguf { repo: repo.to_owned(), files: found }),
        }
    }

    /// The shards that an index names, each once.
    pub(super) fn shards(
        index: &str,
        bytes: &[u8],
        names: &[String],
        repo: &str,
    ) -> Result<BTreeSet<String>, HubError> {
        let wrong = |problem: String| HubError::BadAnswer { repo: repo.to_owned(), problem };
        let parsed: Value = serde_json::from_slice(bytes).map_err(|error| wrong(format!("`{index}`: {error}")))?;
        let map = parsed.get("weight_map").and_then(Value::as_object);
        let map = map.ok_or_else(|| wrong(format!("`{index}` has no `weight_map`")))?;
        let mut shards = BTreeSet::new();
        for shard in map.values() {
            let shard = shard.as_str().ok_or_else(|| wrong(format!("`{index}` names a shard that is no text")))?;
            check_name(shard, repo)?;
            if !names.iter().any(|name| name == shard) {
                return Err(HubError::MissingFile { repo: repo.to_owned(), file: shard.to_owned() });
            }
            shards.insert(shard.to_owned());
        }
        if shards.is_empty() {
            return Err(wrong(format!("`{index}` names no shards")));
        }
        Ok(shards)
    }

    /// Where the chosen files are once they are in `snapshot`.
    pub(super) fn located(&self, snapshot: &Path) -> HubFiles {
        match &self.gguf {
            Some(name) => HubFiles::Gguf(snapshot.join(name)),
            None => HubFiles::Folder(snapshot.to_owned()),
        }
    }
}

/// A name that could leave the cache folder is not followed.
fn check_name(name: &str, repo: &str) -> Result<(), HubError> {
    let is_plain = Path::new(name).components().all(|part| matches!(part, Component::Normal(_)));
    if is_plain && !name.contains('\\') && !name.is_empty() {
        return Ok(());
    }
    Err(HubError::BadAnswer { repo: repo.to_owned(), problem: format!("`{name}` is no file of a model") })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    #[test]
    fn safetensors_win_over_gguf_and_one_file_over_shards() {
        let all = names(&["a.gguf", "README.md", "config.json", SINGLE, INDEX, "tokenizer.json", "x.bin"]);
        let selection = Selection::of(&all, "o/n").unwrap();
        assert_eq!(selection.files, names(&["config.json", "tokenizer.json", SINGLE]));
        assert_eq!(selection.index, None);
    }

    #[test]
    fn what_no_model_can_be_made_of_is_named_before_anything_large_is_fetched() {
        let error = |list: &[&str]| Selection::of(&names(list), "o/n").unwrap_err().to_string();
        assert!(error(&["config.json", SINGLE]).contains("tokenizer.json"));
        assert!(error(&["config.json", "pytorch_model.bin"]).contains("neither"));
        assert!(error(&["a-Q4.gguf", "a-Q8.gguf"]).contains("a-Q4.gguf, a-Q8.gguf"));
        assert!(error(&["../../up.gguf"]).contains("up.gguf"));
    }

    #[test]
    fn an_index_that_leads_out_of_the_folder_or_names_nothing_is_refused() {
        let shards = |json: &str| Selection::shards(INDEX, json.as_bytes(), &names(&["a.safetensors"]), "o/n");
        assert_eq!(shards(r#"{"weight_map": {"x": "a.safetensors", "y": "a.safetensors"}}"#).unwrap().len(), 1);
        for broken in
            ["{", "{}", r#"{"weight_map": {}}"#, r#"{"weight_map": {"x": 1}}"#, r#"{"weight_map": {"x": "../a"}}"#]
        {
            assert!(matches!(shards(broken), Err(HubError::BadAnswer { .. })), "{broken}");
        }
        assert!(matches!(shards(r#"{"weight_map": {"x": "b"}}"#), Err(HubError::MissingFile { .. })));
    }
}
