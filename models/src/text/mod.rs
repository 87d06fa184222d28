//! Text in, token ids out, and back: tokenizers, chat templates, stream decoding and stop strings.

mod byte_level;
mod error;
mod folder;
mod gguf;
mod gguf_pre;
mod json_check;
mod pieces;
mod spelling;
mod stop;
mod stream;
mod template;
mod template_clock;
mod template_json;
mod tokenizer;
mod wrapping;

pub use error::{TemplateError, TextError};
pub use folder::ModelText;
pub use gguf::GgufTokenizer;
pub use stop::{Emit, StopMatcher};
pub use stream::StreamDecoder;
pub use template::{ChatMessage, ChatTemplate};
pub use tokenizer::Tokenizer;
