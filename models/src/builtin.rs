//! The demo model inside the program, so that the first start needs no download and works from anywhere.

use serde::Deserialize;

use crate::error::LoadError;
use crate::text::{ChatTemplate, ModelText, TextError, Tokenizer};
use crate::weights::{FileBytes, SafetensorsWeights};

/// The files of a bundled model.
#[derive(Debug)]
pub(crate) struct BundledFiles {
    pub(crate) config: &'static [u8],
    tokenizer: &'static [u8],
    tokenizer_config: &'static [u8],
    generation_config: &'static [u8],
    weights: &'static [u8],
}

/// The demo model's files.
pub(crate) static DEMO: BundledFiles = BundledFiles {
    config: include_bytes!("../demo/config.json"),
    tokenizer: include_bytes!("../demo/tokenizer.json"),
    tokenizer_config: include_bytes!("../demo/tokenizer_config.json"),
    generation_config: include_bytes!("../demo/generation_config.json"),
    weights: include_bytes!("../demo/model.safetensors"),
};

#[derive(Deserialize)]
struct TokenizerConfig {
    bos_token: Option<String>,
    eos_token: Option<String>,
    chat_template: Option<String>,
}

#[derive(Deserialize)]
struct GenerationConfig {
    eos_token_id: Vec<u32>,
}

impl BundledFiles {
    /// The name that messages call a file by.
    pub(crate) fn name(file: &str) -> String {
        format!("{file} of the bundled model")
    }

    /// The weights, read where they lie in the program.
    pub(crate) fn weights(&self) -> Result<SafetensorsWeights, LoadError> {
        let name = Self::name("model.safetensors");
        let file = FileBytes::from_memory(name.clone(), self.weights);
        Ok(SafetensorsWeights::from_files(name, vec![file])?)
    }

    /// Tokenizer, chat template and end tokens.
    pub(crate) fn text(&self) -> Result<ModelText, LoadError> {
        let tokenizer = Tokenizer::from_json(self.tokenizer)?;
        let config: TokenizerConfig = parse("tokenizer_config.json", self.tokenizer_config)?;
        let generation: GenerationConfig = parse("generation_config.json", self.generation_config)?;
        let chat_template = match config.chat_template {
            None => None,
            Some(template) => Some(
                ChatTemplate::new(&template, config.bos_token, config.eos_token)
                    .map_err(|source| TextError::Template { origin: Self::name("tokenizer_config.json"), source })?,
            ),
        };
        Ok(ModelText { tokenizer, chat_template, end_tokens: generation.eos_token_id })
    }
}

fn parse<T: serde::de::DeserializeOwned>(file: &str, text: &[u8]) -> Result<T, TextError> {
    let problem =
        |error: serde_json::Error| TextError::Json { file: BundledFiles::name(file), problem: error.to_string() };
    serde_json::from_slice(text).map_err(problem)
}
