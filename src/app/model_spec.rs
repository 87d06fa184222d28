//! What an administrator may ask to be loaded: checked fields, and folders that the operator has opened for it.

use std::path::{Component, Path, PathBuf};

use millgate_models::{KvDtypeChoice, Source};
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};

use crate::api::{ModelSpec, OrderError};
use crate::config::{ModelOrigin, ModelSettings, RawKvDtype, RawModel, RawQuantize, resolve_model};

/// The settings a model may have of its own.
const ENV: &str = "context_window, kv_memory, kv_dtype, quantize";

/// Turns a specification into settings; touches no file.
///
/// # Errors
/// [`OrderError::Wrong`] with the first field that cannot be.
pub(super) fn settings_of(spec: &ModelSpec) -> Result<ModelSettings, OrderError> {
    let (name, source, device) = (spec.name.clone(), spec.source.clone(), spec.hardware.clone());
    let mut raw = RawModel { name, source, device, ..RawModel::default() };
    for (key, value) in &spec.env {
        match key.as_str() {
            "context_window" => raw.context_window = Some(read(key, value)?),
            "kv_memory" => raw.kv_memory = Some(read(key, value)?),
            "kv_dtype" => raw.kv_dtype = Some(read::<RawKvDtype>(key, value)?),
            "quantize" => raw.quantize = Some(read::<RawQuantize>(key, value)?),
            _ => return Err(wrong(&format!("env.{key}"), format!("unknown setting `env.{key}`; there are {ENV}"))),
        }
    }
    resolve_model(raw, ModelOrigin::Api).map_err(|error| {
        let param = match error.field {
            "context_window" => "env.context_window",
            "device" => "hardware",
            field => field,
        };
        wrong(param, format!("`{param}`: {}", error.problem))
    })
}

/// A model's own settings as the API shows them.
pub(super) fn env_of(settings: &ModelSettings) -> Map<String, Value> {
    let mut env = Map::new();
    if let Some(tokens) = settings.context_window {
        env.insert("context_window".into(), tokens.into());
    }
    if let Some(size) = settings.kv_memory {
        env.insert("kv_memory".into(), json!(size.to_string()));
    }
    match settings.kv_dtype {
        KvDtypeChoice::Auto => {}
        KvDtypeChoice::F32 => drop(env.insert("kv_dtype".into(), "f32".into())),
        KvDtypeChoice::Bf16 => drop(env.insert("kv_dtype".into(), "bf16".into())),
        KvDtypeChoice::Fp8 => drop(env.insert("kv_dtype".into(), "fp8".into())),
    }
    if let Some(to) = settings.quantize {
        env.insert("quantize".into(), to.name().into());
    }
    env
}

/// Refuses a path that no configured folder holds, symbolic links followed. Other kinds of sources pass.
///
/// # Errors
/// [`OrderError::Wrong`]; it does not tell whether there is anything at the path.
pub(super) fn check_place(source: &Source, folders: &[PathBuf]) -> Result<(), OrderError> {
    let (Source::Folder(path) | Source::Gguf(path)) = source else { return Ok(()) };
    let is_plain = path.is_absolute() && path.components().all(|part| part != Component::ParentDir);
    let is_named_below = is_plain && folders.iter().any(|folder| path.starts_with(folder));
    if is_named_below && is_really_below(path, folders) {
        return Ok(());
    }
    let message = if folders.is_empty() {
        "a path on the server can be loaded through the API only below `server.model_folders`, and none is configured; \
         use hf:org/name[@revision], or name the model in the configuration file"
            .to_owned()
    } else {
        let folders: Vec<_> = folders.iter().map(|folder| format!("`{}`", folder.display())).collect();
        format!("a path must be absolute, without `..`, and below {} (`server.model_folders`)", folders.join(" or "))
    };
    Err(wrong("source", message))
}

/// What is not there leads nowhere, so it passes: the load says that it is missing.
fn is_really_below(path: &Path, folders: &[PathBuf]) -> bool {
    let Some(existing) = path.ancestors().find_map(|part| part.canonicalize().ok()) else { return false };
    folders.iter().filter_map(|folder| folder.canonicalize().ok()).any(|folder| existing.starts_with(folder))
}

fn read<T: DeserializeOwned>(key: &str, value: &Value) -> Result<T, OrderError> {
    T::deserialize(value).map_err(|error| wrong(&format!("env.{key}"), format!("`env.{key}` is wrong: {error}")))
}

fn wrong(param: &str, message: String) -> OrderError {
    OrderError::Wrong { param: param.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(source: &str, env: &Value) -> ModelSpec {
        let env = env.as_object().unwrap().clone();
        ModelSpec { name: "m".into(), source: source.into(), hardware: None, env, created_at_us: 0 }
    }

    fn param(result: Result<ModelSettings, OrderError>) -> String {
        match result {
            Err(OrderError::Wrong { param, .. }) => param,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn settings_are_read_with_their_units_and_wrong_ones_are_named() {
        let env = json!({"context_window": 256, "kv_memory": "64MiB", "kv_dtype": "bf16"});
        let settings = settings_of(&spec("builtin:demo", &env)).unwrap();
        assert_eq!((settings.context_window, settings.kv_memory.unwrap().0), (Some(256), 64 << 20));
        for (env, named) in [
            (json!({"context_window": 0}), "env.context_window"),
            (json!({"context_window": -1}), "env.context_window"),
            (json!({"kv_memory": "much"}), "env.kv_memory"),
            (json!({"kv_dtype": "int4"}), "env.kv_dtype"),
            (json!({"quantize": "q3_k"}), "env.quantize"),
            (json!({"LD_PRELOAD": "x"}), "env.LD_PRELOAD"),
        ] {
            assert_eq!(param(settings_of(&spec("builtin:demo", &env))), named);
        }
        assert_eq!(param(settings_of(&spec("hf:gpt2", &json!({})))), "source");
        let gpu = ModelSpec { hardware: Some("tpu".into()), ..spec("builtin:demo", &json!({})) };
        assert_eq!(param(settings_of(&gpu)), "hardware");
        let slash = ModelSpec { name: "a/b".into(), ..spec("builtin:demo", &json!({})) };
        assert_eq!(param(settings_of(&slash)), "name");
    }

    #[test]
    fn only_what_really_lies_below_an_open_folder_may_be_loaded() {
        let root = tempfile::tempdir().unwrap();
        let (open, closed) = (root.path().join("open"), root.path().join("closed"));
        for folder in [&open, &closed] {
            std::fs::create_dir_all(folder.join("model")).unwrap();
        }
        std::os::unix::fs::symlink(closed.join("model"), open.join("link")).unwrap();
        std::os::unix::fs::symlink(&open, root.path().join("alias")).unwrap();
        let allowed = |path: PathBuf, folders: &[PathBuf]| check_place(&Source::Folder(path), folders).is_ok();
        let folders = [open.clone()];
        assert!(allowed(open.join("model"), &folders) && allowed(open.clone(), &folders));
        assert!(allowed(open.join("missing/deep"), &folders), "the load will say that it is missing");
        for outside in [
            closed.join("model"),
            open.join("link"),
            open.join("link/deeper"),
            open.join("../closed/model"),
            PathBuf::from("open/model"),
            root.path().join("open-too"),
            PathBuf::from("/"),
        ] {
            assert!(!allowed(outside.clone(), &folders), "{}", outside.display());
        }
        assert!(!allowed(open.join("model"), &[]), "no folder is open unless configured");
        let alias = [root.path().join("alias")];
        assert!(allowed(root.path().join("alias/model"), &alias), "a configured folder may itself be a link");
        assert!(check_place(&"hf:a/b".parse().unwrap(), &[]).is_ok());
    }
}
