//! Tiers declared in files: our own format (YAML or TOML), and the documented ConfigMap `tier-to-group-mapping` as it is.
//!
//! A declaration is compared with what is there and becomes a plan. Ownership is per field: the ConfigMap owns name, display
//! name, description, level and groups; limits and weight stay. Our own format owns every field it mentions. A declaration
//! deletes only tiers that an earlier declaration of its kind made.

use serde::Deserialize;

use super::limits::{Limit, LimitError, LimitSpec};
use super::records::{TierOrigin, TierRecord};
use super::tiers::{self, TierError};

/// Why a file is no declaration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FileError {
    /// Not well formed, or a field is unknown; the message says where.
    #[error("cannot read the tiers: {0}")]
    Format(String),
    /// A ConfigMap without the list.
    #[error("the ConfigMap has no `data.tiers`")]
    NoTiers,
    /// Two tiers of one name.
    #[error("tier `{0}` is there twice")]
    Twice(String),
    /// A limit is wrong.
    #[error("tier `{tier}`: {source}")]
    Limit {
        /// Of which tier.
        tier: String,
        /// What is wrong.
        source: LimitError,
    },
    /// A tier breaks the rules.
    #[error("tier `{tier}`: {source}")]
    Tier {
        /// Which tier.
        tier: String,
        /// What is wrong.
        source: TierError,
    },
}

/// The tiers of one file, checked by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    origin: TierOrigin,
    tiers: Vec<Declared>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Declared {
    name: String,
    display_name: Option<String>,
    description: Option<String>,
    level: u32,
    groups: Vec<String>,
    limits: Option<Vec<Limit>>,
    weight: Option<u32>,
}

/// What applying a declaration does; tiers that stay as they are appear nowhere.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TierPlan {
    /// New tiers, complete.
    pub create: Vec<TierRecord>,
    /// Changed tiers, as they will be.
    pub update: Vec<TierRecord>,
    /// Tiers that go.
    pub delete: Vec<TierRecord>,
}

impl TierPlan {
    /// True when nothing changes.
    pub fn is_empty(&self) -> bool {
        self.create.is_empty() && self.update.is_empty() && self.delete.is_empty()
    }
}

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
    level: u32,
    groups: Vec<String>,
    limits: Option<Vec<FileLimit>>,
    weight: Option<u32>,
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
    level: u32,
    #[serde(default)]
    groups: Vec<String>,
}

impl Declaration {
    /// Reads YAML: a ConfigMap when it says `kind: ConfigMap`, our own format otherwise.
    ///
    /// # Errors
    /// [`FileError`] says where.
    pub fn from_yaml(text: &str) -> Result<Self, FileError> {
        #[derive(Deserialize)]
        struct Kind {
            #[serde(default)]
            kind: Option<String>,
        }
        let kind: Kind = yaml(text)?;
        if kind.kind.as_deref() == Some("ConfigMap") {
            return Self::from_config_map(text);
        }
        let file: File = yaml(text)?;
        Self::from_file(file)
    }

    /// Reads our own format as TOML.
    ///
    /// # Errors
    /// [`FileError`] says where.
    pub fn from_toml(text: &str) -> Result<Self, FileError> {
        Self::from_file(toml::from_str(text).map_err(|error| FileError::Format(error.to_string()))?)
    }

    fn from_config_map(text: &str) -> Result<Self, FileError> {
        let map: ConfigMap = yaml(text)?;
        let list = map.data.and_then(|data| data.tiers).ok_or(FileError::NoTiers)?;
        let mapped: Vec<MappedTier> = yaml(&list)?;
        let tiers = mapped
            .into_iter()
            .map(|tier| Declared {
                name: tier.name,
                display_name: tier.display_name,
                description: tier.description,
                level: tier.level,
                groups: tier.groups,
                limits: None,
                weight: None,
            })
            .collect();
        Self { origin: TierOrigin::ConfigMap, tiers }.checked()
    }

    fn from_file(file: File) -> Result<Self, FileError> {
        let tiers = file.tiers.into_iter().map(Declared::from_file).collect::<Result<_, _>>()?;
        Self { origin: TierOrigin::File, tiers }.checked()
    }

    fn checked(self) -> Result<Self, FileError> {
        for (i, tier) in self.tiers.iter().enumerate() {
            if self.tiers[..i].iter().any(|other| other.name == tier.name) {
                return Err(FileError::Twice(tier.name.clone()));
            }
            let record = tier.create(self.origin, 0, &[]);
            tiers::check(&record).map_err(|source| FileError::Tier { tier: tier.name.clone(), source })?;
        }
        Ok(self)
    }

    /// The names of the tiers declared, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tiers.iter().map(|tier| tier.name.as_str())
    }

    /// Compares with the tiers there are.
    ///
    /// `new_limits` are those of a tier that comes without any: never unlimited in silence.
    ///
    /// # Errors
    /// [`TierError`] when a tier would break the rules.
    pub fn plan(&self, existing: &[TierRecord], new_limits: &[Limit]) -> Result<TierPlan, TierError> {
        let mut plan = TierPlan::default();
        for (position, declared) in (0..).zip(&self.tiers) {
            match existing.iter().find(|tier| tier.name == declared.name) {
                None => plan.create.push(declared.create(self.origin, position, new_limits)),
                Some(old) => {
                    let new = declared.update(old, self.origin, position);
                    if new != *old {
                        plan.update.push(new);
                    }
                }
            }
        }
        plan.create.iter().chain(&plan.update).try_for_each(tiers::check)?;
        let is_gone = |tier: &&TierRecord| tier.origin == self.origin && !self.names().any(|name| name == tier.name);
        plan.delete = existing.iter().filter(is_gone).cloned().collect();
        Ok(plan)
    }
}

impl Declared {
    fn from_file(tier: FileTier) -> Result<Self, FileError> {
        let name = match (tier.name, &tier.display_name) {
            (Some(name), _) => name,
            (None, Some(display_name)) => tiers::name_from(display_name)
                .map_err(|source| FileError::Tier { tier: display_name.clone(), source })?,
            (None, None) => return Err(FileError::Format("a tier has neither `name` nor `display_name`".into())),
        };
        let limits = tier
            .limits
            .map(|limits| limits.into_iter().map(FileLimit::resolve).collect::<Result<Vec<_>, _>>())
            .transpose()
            .map_err(|source| FileError::Limit { tier: name.clone(), source })?;
        Ok(Self {
            name,
            display_name: tier.display_name,
            description: tier.description,
            level: tier.level,
            groups: tier.groups,
            limits,
            weight: tier.weight,
        })
    }

    fn create(&self, origin: TierOrigin, position: i64, new_limits: &[Limit]) -> TierRecord {
        TierRecord {
            name: self.name.clone(),
            display_name: self.display_name.clone().unwrap_or_else(|| self.name.clone()),
            description: self.description.clone().unwrap_or_default(),
            level: self.level,
            groups: self.groups.clone(),
            limits: self.limits.clone().unwrap_or_else(|| new_limits.to_vec()),
            weight: self.weight.unwrap_or(1),
            origin,
            position,
        }
    }

    fn update(&self, old: &TierRecord, origin: TierOrigin, position: i64) -> TierRecord {
        // A ConfigMap owns the words of a tier, also by leaving them out; our own format owns what it mentions.
        let owns_absent = origin == TierOrigin::ConfigMap;
        let word = |new: &Option<String>, old: &str, absent: &str| match new {
            Some(new) => new.clone(),
            None if owns_absent => absent.to_owned(),
            None => old.to_owned(),
        };
        TierRecord {
            name: old.name.clone(),
            display_name: word(&self.display_name, &old.display_name, &self.name),
            description: word(&self.description, &old.description, ""),
            level: self.level,
            groups: self.groups.clone(),
            limits: self.limits.clone().unwrap_or_else(|| old.limits.clone()),
            weight: self.weight.unwrap_or(old.weight),
            origin,
            position,
        }
    }
}

impl FileLimit {
    fn resolve(self) -> Result<Limit, LimitError> {
        match self {
            Self::Text(text) => text.parse(),
            Self::Table(spec) => spec.try_into(),
        }
    }
}

fn yaml<T: serde::de::DeserializeOwned>(text: &str) -> Result<T, FileError> {
    serde_saphyr::from_str(text).map_err(|error| FileError::Format(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG_MAP: &str = include_str!("../../docs/examples/tier-to-group-mapping.yaml");
    const OURS: &str = include_str!("../../docs/examples/tiers.yaml");

    fn plan(text: &str, existing: &[TierRecord]) -> TierPlan {
        let declared = Declaration::from_yaml(text).expect("declaration");
        declared.plan(existing, &tiers::free_limits()).expect("plan")
    }

    #[test]
    fn the_documented_config_map_keeps_limits_and_weight_of_known_tiers() {
        let existing = tiers::defaults();
        let plan = plan(CONFIG_MAP, &existing);
        let free =
            plan.update.iter().find(|tier| tier.name == "free").expect("free changes its display name or groups");
        assert_eq!(free.limits, existing[0].limits);
        assert_eq!(free.weight, existing[0].weight);
        assert_eq!(free.origin, TierOrigin::ConfigMap);
        assert!(plan.delete.is_empty());
    }

    #[test]
    fn a_new_tier_from_the_config_map_is_never_unlimited_in_silence() {
        let plan = plan(CONFIG_MAP, &[]);
        assert_eq!(plan.create.len(), 3);
        assert!(plan.create.iter().all(|tier| tier.limits == tiers::free_limits()));
    }

    #[test]
    fn applying_again_changes_nothing_and_leaving_out_deletes_only_what_was_declared() {
        let first = plan(CONFIG_MAP, &[]);
        assert!(plan(CONFIG_MAP, &first.create).is_empty());
        let mut existing = first.create.clone();
        existing.push(TierRecord { name: "handmade".into(), origin: TierOrigin::Local, ..first.create[0].clone() });
        let fewer = "kind: ConfigMap\ndata:\n  tiers: |\n    - name: free\n      displayName: Free Tier\n      groups: [system:authenticated]\n";
        let deleted: Vec<String> = plan(fewer, &existing).delete.into_iter().map(|tier| tier.name).collect();
        assert_eq!(deleted, ["premium", "enterprise"]);
    }

    #[test]
    fn our_own_format_sets_limits_as_text_or_as_tables_in_yaml_and_toml() {
        let plan = plan(OURS, &[]);
        assert_eq!(plan.create[0].limits[0].to_string(), "5 requests / 2m");
        let toml = r#"
            [[tiers]]
            display_name = "Data Science Team"
            level = 7
            groups = ["ds"]
            limits = ["10 tokens / 1m", { resource = "requests", amount = 3, window = "day", timezone = "Europe/Paris" }]
        "#;
        let declared = Declaration::from_toml(toml).expect("toml");
        let plan = declared.plan(&[], &[]).expect("plan");
        assert_eq!(plan.create[0].name, "data-science-team");
        assert_eq!(plan.create[0].limits[1].to_string(), "3 requests / day Europe/Paris");
    }

    #[test]
    fn a_wrong_file_is_refused_and_says_where() {
        for (text, says) in [
            ("tiers: [", "cannot read"),
            ("tiers:\n  - {name: a, groups: [g], colour: red}", "colour"),
            ("tiers:\n  - {name: a, groups: [g]}\n  - {name: a, groups: [g]}", "`a` is there twice"),
            ("tiers:\n  - {name: a, groups: []}", "at least one group"),
            ("tiers:\n  - {name: a, groups: [g], level: -1}", "cannot read"),
            ("tiers:\n  - {name: A, groups: [g]}", "lowercase"),
            ("tiers:\n  - {name: a, groups: [g], limits: [0 tokens / 1m]}", "amount `0`"),
            ("tiers:\n  - {name: a, groups: [g], limits: [5 usd / month]}", "not supported yet"),
            ("kind: ConfigMap\ndata: {}", "no `data.tiers`"),
            ("kind: ConfigMap\ndata:\n  tiers: |\n    - {name: a, displayName: ' ', groups: [g]}", "display name"),
        ] {
            let error = Declaration::from_yaml(text).expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
    }
}
