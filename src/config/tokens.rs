//! `[tokens]`: how long short-lived tokens and the keys that sign them live.

use std::time::Duration;

use crate::governance::{Config as GovernanceConfig, LONGEST_TOKEN_LIFE, SHORTEST_TOKEN_LIFE};

use super::file::ConfigError;
use super::raw::RawTokens;
use super::resolve::Place;

/// Default and longest life of a token, and how long one key signs.
pub(super) fn token_lives(raw: &RawTokens, at: &Place<'_>) -> Result<(Duration, Duration, Duration), ConfigError> {
    let usual = GovernanceConfig::default();
    let default_life = raw.default_life.map_or(usual.token_default_life, |span| span.0);
    let longest_life = raw.longest_life.map_or(usual.token_longest_life, |span| span.0);
    let signing_key_life = raw.rotate_every.map_or(usual.signing_key_life, |span| span.0);
    if !(SHORTEST_TOKEN_LIFE..=LONGEST_TOKEN_LIFE).contains(&longest_life) {
        return Err(at.wrong("tokens", 0, "longest_life", "it is outside 10m to 24h"));
    }
    if !(SHORTEST_TOKEN_LIFE..=longest_life).contains(&default_life) {
        return Err(at.wrong("tokens", 0, "default_life", "it is outside 10m to `tokens.longest_life`"));
    }
    if signing_key_life < Duration::from_secs(3600) {
        return Err(at.wrong("tokens", 0, "rotate_every", "it is shorter than 1h"));
    }
    Ok((default_life, longest_life, signing_key_life))
}
