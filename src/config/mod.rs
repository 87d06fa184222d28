//! Configuration: a raw mirror of `millgate.toml`, the environment and the command line, resolved into checked types.
//!
//! Read twice, guessed never. [`RawConfig`] accepts exactly the documented keys and already parses units, so that a
//! wrong value is reported with its line. [`resolve`] checks what spans several keys and hands each module its own
//! `Config`. Nothing else in the program reads the environment.

mod environment;
mod file;
mod kubernetes;
mod notices;
mod oidc;
mod raw;
mod reference;
mod resolve;
mod show;
mod tokens;
mod units;

pub use environment::Environment;
pub use file::{ConfigError, DEFAULT_FILE, find_file, read_file};
pub use notices::{NoticeSettings, SecretSource, WebhookSettings};
pub use raw::{RawConfig, RawKvDtype, RawModel, RawQuantize};
pub use reference::{KEYS, Key, example_file, reference_page};
pub use resolve::{HubSettings, ModelOrigin, ModelSettings, Overrides, Settings, WrongModel, resolve, resolve_model};
pub use show::{effective_document, environment_secrets, show};
pub use units::{ByteSize, MemoryBound, Span, UnitError};
