//! The three ways to write tiers down, and finding the lines of what is wrong in them.

use std::collections::HashMap;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::declaration::Declared;
use super::error::{FileError, Problem};
use super::whole::Whole;
use super::words::plain;
use crate::governance::limits::{Limit, LimitError, LimitSpec};
use crate::governance::records::TierOrigin;
use crate::governance::tiers::{self, LEVEL_MAX, TierError, WEIGHT_MAX};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    tiers: Vec<FileTier>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct FileTier {
    name: Option<String>,
    #[serde(alias = "displayName")]
    display_name: Option<String>,
    description: Option<String>,
    #[serde(default)]
    level: Whole,
    groups: Vec<String>,
    limits: Option<Vec<FileLimit>>,
    weight: Option<Whole>,
}

/// `100000 tokens / 1m`, or the same as a table.
#[derive(Deserialize)]
#[serde(untagged)]
enum FileLimit {
    Text(String),
    Table(LimitSpec),
}

/// The parts of a Kubernetes ConfigMap that matter; the rest (labels, annotations) is not ours to judge.
#[derive(Deserialize)]
struct ConfigMap {
    #[serde(default)]
    data: Option<ConfigMapData>,
}

#[derive(Deserialize)]
struct ConfigMapData {
    tiers: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct MappedTier {
    name: String,
    display_name: Option<String>,
    description: Option<String>,
    #[serde(default)]
    level: Whole,
    #[serde(default)]
    groups: Vec<String>,
}

/// Reads YAML: a bare list is what a mounted ConfigMap has in its file `tiers`; `kind: ConfigMap` is the whole of one; anything
/// else is our own format.
pub(super) fn read_yaml(text: &str) -> Result<(TierOrigin, Vec<Declared>), FileError> {
    let document: Value = yaml(text, 0)?;
    if document.is_array() {
        return Ok((TierOrigin::ConfigMap, mapped(text, 0)?));
    }
    if document["kind"] == "ConfigMap" {
        let map: ConfigMap = yaml(text, 0)?;
        let list = map.data.and_then(|data| data.tiers).ok_or(FileError::new(None, Problem::NoTiers))?;
        // The reader would take nothing for an empty list, and that is an order to delete every tier.
        if yaml::<Value>(&list, lines_before(text, &list))?.is_null() {
            let problem = "`data.tiers` is empty: write `[]` if there are to be no tiers".to_owned();
            return Err(FileError::new(None, Problem::Format(problem)));
        }
        return Ok((TierOrigin::ConfigMap, mapped(&list, lines_before(text, &list))?));
    }
    own(yaml(text, 0)?, text)
}

/// Reads our own format as TOML.
pub(super) fn read_toml(text: &str) -> Result<(TierOrigin, Vec<Declared>), FileError> {
    let file = toml::from_str(text).map_err(|error| {
        let before = error.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() as u64);
        FileError::new(before.map(|lines| lines + 1), Problem::Format(plain(error.message())))
    })?;
    own(file, text)
}

fn mapped(list: &str, lines_before: u64) -> Result<Vec<Declared>, FileError> {
    let tiers: Vec<MappedTier> = yaml(list, lines_before)?;
    let names = Names::of(list);
    let declared = |tier: MappedTier| {
        let line = names.line(&tier.name).map(|line| line + lines_before);
        Ok(Declared {
            line,
            file: None,
            origin: TierOrigin::ConfigMap,
            level: level(tier.level, &tier.name, line)?,
            name: tier.name,
            display_name: tier.display_name,
            description: tier.description,
            groups: tier.groups,
            limits: None,
            weight: None,
        })
    };
    tiers.into_iter().map(declared).collect()
}

fn own(file: File, text: &str) -> Result<(TierOrigin, Vec<Declared>), FileError> {
    let names = Names::of(text);
    let tiers = file.tiers.into_iter().map(|tier| own_tier(tier, &names)).collect::<Result<_, _>>()?;
    Ok((TierOrigin::File, tiers))
}

fn own_tier(tier: FileTier, names: &Names<'_>) -> Result<Declared, FileError> {
    let written = tier.name.as_deref().or(tier.display_name.as_deref());
    let line = written.and_then(|name| names.line(name));
    let wrong = |problem| FileError::new(line, problem);
    let name = match (tier.name, &tier.display_name) {
        (Some(name), _) => name,
        (None, Some(display_name)) => tiers::name_from(display_name)
            .map_err(|source| wrong(Problem::Tier { tier: display_name.clone(), source }))?,
        (None, None) => return Err(wrong(Problem::Format("a tier has neither `name` nor `display_name`".into()))),
    };
    let limits = tier.limits.map(|limits| limits.into_iter().map(FileLimit::resolve).collect::<Result<Vec<_>, _>>());
    let limits = limits.transpose().map_err(|source| wrong(Problem::Limit { tier: name.clone(), source }))?;
    let weight = tier.weight.map(|weight| {
        weight.up_to(WEIGHT_MAX).map_err(|found| out_of_bounds("weight", found, 1, WEIGHT_MAX, &name, line))
    });
    Ok(Declared {
        line,
        file: None,
        origin: TierOrigin::File,
        level: level(tier.level, &name, line)?,
        name,
        display_name: tier.display_name,
        description: tier.description,
        groups: tier.groups,
        limits,
        weight: weight.transpose()?,
    })
}

fn level(level: Whole, tier: &str, line: Option<u64>) -> Result<u32, FileError> {
    level.up_to(LEVEL_MAX).map_err(|found| out_of_bounds("level", found, 0, LEVEL_MAX, tier, line))
}

fn out_of_bounds(param: &'static str, found: i64, least: u32, most: u32, tier: &str, line: Option<u64>) -> FileError {
    let source = TierError { param, message: format!("{param} {found} must be {least} to {most}") };
    FileError::new(line, Problem::Tier { tier: tier.to_owned(), source })
}

impl FileLimit {
    fn resolve(self) -> Result<Limit, LimitError> {
        match self {
            Self::Text(text) => text.parse(),
            Self::Table(spec) => spec.try_into(),
        }
    }
}

fn yaml<T: DeserializeOwned>(text: &str, lines_before: u64) -> Result<T, FileError> {
    serde_saphyr::from_str(text).map_err(|error| {
        let line = error.location().map(|place| place.line()).filter(|line| *line > 0);
        let message = error.without_snippet().to_string();
        // The line is told apart from the message, and in the outer file.
        if message.starts_with("budget breached") {
            return FileError::new(None, Problem::Format("it is too large, or its anchors make it so".into()));
        }
        let message = message.split(" at line ").next().unwrap_or_default().trim_end_matches(':');
        FileError::new(line.map(|line| line + lines_before), Problem::Format(plain(message)))
    })
}

/// How many lines of the file come before the text that stands in it as a block.
fn lines_before(file: &str, block: &str) -> u64 {
    let Some((skipped, first)) = block.lines().enumerate().find(|(_, line)| !line.trim().is_empty()) else { return 0 };
    let at = file.lines().position(|line| line.trim() == first.trim());
    at.map_or(0, |at| at.saturating_sub(skipped) as u64)
}

/// The lines of a text that give something a name, found in one pass however many tiers there are.
struct Names<'a>(HashMap<&'a str, u64>);

impl<'a> Names<'a> {
    fn of(text: &'a str) -> Self {
        let mut lines = HashMap::new();
        for (number, line) in (1..).zip(text.lines()) {
            let fields = line.trim().trim_start_matches(['-', '{', ' ']).split(',');
            for (key, value) in fields.filter_map(|field| field.split_once([':', '='])) {
                if key.trim_matches(['"', '\'', ' ', '{']).to_ascii_lowercase().ends_with("name") {
                    let value = value.split(" #").next().unwrap_or_default();
                    lines.insert(value.trim_matches(['"', '\'', ' ', '}', '\r']), number);
                }
            }
        }
        Self(lines)
    }

    /// The last line that gives a tier this name: of two, the second is the one too many.
    fn line(&self, name: &str) -> Option<u64> {
        self.0.get(name).copied()
    }
}
