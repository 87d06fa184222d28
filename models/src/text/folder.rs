//! The text files of a model folder in Hugging Face layout, or of a GGUF, gathered into one value.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::Value;

use super::gguf::{GgufTokenizer, TokenType};
use super::wrapping::Wrapping;
use super::{ChatTemplate, TextError, Tokenizer};

/// The largest tokenizer.json that is read, in bytes; Gemma's, the largest known, has 33 million.
const MAX_TOKENIZER_BYTES: u64 = 256 << 20;
/// The largest other text file that is read, in bytes.
const MAX_CONFIG_BYTES: u64 = 32 << 20;

/// Control tokens that end an answer in the families served here, by their usual names.
///
/// A GGUF often names only one end token, so a chat model would run past its turn.
const TURN_ENDS: [&str; 6] = ["<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>", "<|endoftext|>"];

/// Everything a model needs to speak text.
#[derive(Debug, Clone)]
pub struct ModelText {
    /// Text to ids and back.
    pub tokenizer: Tokenizer,
    /// Messages to a prompt; `None` for a model without one.
    pub chat_template: Option<ChatTemplate>,
    /// Token ids after which an answer is over.
    pub end_tokens: Vec<u32>,
}

impl ModelText {
    /// Reads a folder in Hugging Face layout.
    ///
    /// # Errors
    /// A [`TextError`] that names the file.
    pub fn from_folder(path: &Path) -> Result<Self, TextError> {
        let tokenizer_path = path.join("tokenizer.json");
        let Some(bytes) = read_optional(&tokenizer_path, MAX_TOKENIZER_BYTES)? else {
            return Err(TextError::NoTokenizer { folder: path.to_owned() });
        };
        let tokenizer = Tokenizer::from_json(&bytes).map_err(|error| error.about(tokenizer_path.display()))?;
        let config = read_json(path, "tokenizer_config.json")?;
        let bos_token = token_text(&config, "bos_token");
        let eos_token = token_text(&config, "eos_token");
        let tokenizer = match explicit_wrapping(&config, &tokenizer, bos_token.as_deref(), eos_token.as_deref()) {
            Some(wrapping) => tokenizer.wrapped(wrapping),
            None => tokenizer,
        };
        let end_tokens = end_tokens(path, &tokenizer, eos_token.as_deref())?;
        let chat_template = match template_source(path, &config)? {
            Some((origin, source)) => Some(
                ChatTemplate::new(&source, bos_token, eos_token)
                    .map_err(|source| TextError::Template { origin, source })?,
            ),
            None => None,
        };
        Ok(Self { tokenizer, chat_template, end_tokens })
    }

    /// Builds it from the metadata of the GGUF file of that name.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`]; [`TextError::Template`] when the template inside does not compile.
    pub fn from_gguf(file: &str, metadata: &GgufTokenizer) -> Result<Self, TextError> {
        let tokenizer = Tokenizer::from_gguf(metadata).map_err(|error| error.about(file))?;
        let token = |id: Option<u32>| metadata.token(id).map(str::to_owned);
        let chat_template = match &metadata.chat_template {
            Some(source) => Some(
                ChatTemplate::new(source, token(metadata.bos_token_id), token(metadata.eos_token_id))
                    .map_err(|source| TextError::Template { origin: format!("`{file}`"), source })?,
            ),
            None => None,
        };
        let named = [metadata.eos_token_id, metadata.eot_token_id, metadata.eom_token_id];
        let mut end_tokens: Vec<u32> = named.into_iter().flatten().collect();
        end_tokens.extend((0u32..).zip(&metadata.tokens).filter_map(|(id, token)| {
            let is_control = metadata.token_type(id as usize) == TokenType::Control;
            (is_control && TURN_ENDS.contains(&token.as_str())).then_some(id)
        }));
        end_tokens.sort_unstable();
        end_tokens.dedup();
        Ok(Self { tokenizer, chat_template, end_tokens })
    }
}

/// What `add_bos_token` and `add_eos_token` ask for. Where one of them is given, the reference implementation follows
/// them and not the post-processor of the tokenizer.json.
fn explicit_wrapping(config: &Value, tokenizer: &Tokenizer, bos: Option<&str>, eos: Option<&str>) -> Option<Wrapping> {
    let flag = |key: &str| config.get(key).and_then(Value::as_bool);
    let (add_bos, add_eos) = (flag("add_bos_token"), flag("add_eos_token"));
    if add_bos.is_none() && add_eos.is_none() {
        return None;
    }
    let id = |wanted: Option<bool>, token: Option<&str>| {
        let token = token.filter(|_| wanted == Some(true))?;
        tokenizer.token_id(token)
    };
    Some(Wrapping { before: id(add_bos, bos).into_iter().collect(), after: id(add_eos, eos).into_iter().collect() })
}

/// The chat template and where it stands; a file of its own beats the one inside the configuration.
fn template_source(folder: &Path, config: &Value) -> Result<Option<(String, String)>, TextError> {
    let path = folder.join("chat_template.jinja");
    if let Some(bytes) = read_optional(&path, MAX_CONFIG_BYTES)? {
        let source = String::from_utf8(bytes).map_err(|_| json_problem(&path, "it is not UTF-8"))?;
        return Ok(Some((format!("`{}`", path.display()), source)));
    }
    for (name, file) in
        [("tokenizer_config.json", config), ("chat_template.json", &read_json(folder, "chat_template.json")?)]
    {
        let path = folder.join(name);
        if let Some(source) = pick_template(file.get("chat_template"), &path)? {
            return Ok(Some((format!("`{}`", path.display()), source)));
        }
    }
    Ok(None)
}

/// A template is a string, or a list of named ones of which `default` is for chats.
fn pick_template(field: Option<&Value>, path: &Path) -> Result<Option<String>, TextError> {
    let named = match field {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(source)) => return Ok(Some(source.clone())),
        Some(Value::Array(named)) => named,
        Some(_) => return Err(json_problem(path, "`chat_template` is neither a string nor a list")),
    };
    let text = |entry: &Value, key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
    let default = named.iter().find(|entry| text(entry, "name").as_deref() == Some("default"));
    let chosen = match (default, named.as_slice()) {
        (Some(entry), _) => entry,
        (None, [only]) => only,
        (None, []) => return Ok(None),
        (None, several) => {
            let names: Vec<String> = several.iter().filter_map(|entry| text(entry, "name")).collect();
            let problem = format!("none of its chat templates is named `default`: {}", names.join(", "));
            return Err(json_problem(path, &problem));
        }
    };
    let missing = || json_problem(path, "an entry of `chat_template` has no `template` text");
    text(chosen, "template").ok_or_else(missing).map(Some)
}

/// generation_config.json says when to stop; older models say it in config.json or only name the token.
fn end_tokens(folder: &Path, tokenizer: &Tokenizer, eos_token: Option<&str>) -> Result<Vec<u32>, TextError> {
    for name in ["generation_config.json", "config.json"] {
        let file = read_json(folder, name)?;
        let ids = match file.get("eos_token_id") {
            None | Some(Value::Null) => continue,
            Some(Value::Array(ids)) => ids.clone(),
            Some(id) => vec![id.clone()],
        };
        let to_id = |id: &Value| {
            let wrong =
                || json_problem(&folder.join(name), &format!("`eos_token_id` holds {id}, which is no token id"));
            id.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(wrong)
        };
        let ids = ids.iter().map(to_id).collect::<Result<Vec<u32>, _>>()?;
        if !ids.is_empty() {
            return Ok(ids);
        }
    }
    Ok(eos_token.and_then(|token| tokenizer.token_id(token)).into_iter().collect())
}

/// A special token is given as a string, or as an object with its text in `content`.
fn token_text(config: &Value, key: &str) -> Option<String> {
    let token = config.get(key)?;
    token.as_str().or_else(|| token.get("content").and_then(Value::as_str)).map(str::to_owned)
}

/// Reads a JSON object; a file that is not there is an empty one.
fn read_json(folder: &Path, name: &str) -> Result<Value, TextError> {
    let path = folder.join(name);
    let Some(bytes) = read_optional(&path, MAX_CONFIG_BYTES)? else { return Ok(Value::Object(serde_json::Map::new())) };
    let value: Value = serde_json::from_slice(&bytes).map_err(|error| json_problem(&path, &error.to_string()))?;
    if value.is_object() { Ok(value) } else { Err(json_problem(&path, "it is not a JSON object")) }
}

fn read_optional(path: &Path, limit: u64) -> Result<Option<Vec<u8>>, TextError> {
    let failed = |source| TextError::Read { path: path.to_owned(), source };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    let mut bytes = Vec::new();
    // One byte more than allowed, so that a file growing while it is read is noticed too.
    file.take(limit + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(TextError::FileTooLarge { path: path.to_owned(), limit });
    }
    Ok(Some(bytes))
}

fn json_problem(path: &Path, problem: &str) -> TextError {
    TextError::Json { file: path.display().to_string(), problem: problem.to_owned() }
}
