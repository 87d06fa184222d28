//! What files declare, and what has to change for it to be so.

use std::collections::HashMap;

use super::error::{FileError, Problem};
use super::format;
use crate::governance::limits::Limit;
use crate::governance::records::{TierOrigin, TierRecord};
use crate::governance::tiers::{self, TierError};

/// The tiers of one or several files, checked by themselves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declaration {
    /// The kinds it speaks for: of these, tiers that it does not name go.
    origins: Vec<TierOrigin>,
    tiers: Vec<Declared>,
}

/// One tier as it is written down.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Declared {
    pub(super) line: Option<u64>,
    pub(super) file: Option<String>,
    pub(super) origin: TierOrigin,
    pub(super) name: String,
    pub(super) display_name: Option<String>,
    pub(super) description: Option<String>,
    pub(super) level: u32,
    pub(super) groups: Vec<String>,
    pub(super) limits: Option<Vec<Limit>>,
    pub(super) weight: Option<u32>,
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

impl Declaration {
    /// Reads YAML: a ConfigMap when it says `kind: ConfigMap` or is a bare list as a mounted one holds, our own format
    /// otherwise.
    ///
    /// # Errors
    /// [`FileError`] says where.
    pub fn from_yaml(text: &str) -> Result<Self, FileError> {
        Self::of(format::read_yaml(text)?)
    }

    /// Reads our own format as TOML.
    ///
    /// # Errors
    /// [`FileError`] says where.
    pub fn from_toml(text: &str) -> Result<Self, FileError> {
        Self::of(format::read_toml(text)?)
    }

    /// Reads several files as one declaration, in the order of their names: TOML by its extension, YAML otherwise.
    ///
    /// # Errors
    /// [`FileError`] names the file, also of a tier that another file declares already.
    pub fn from_files(files: &[(String, String)]) -> Result<Self, FileError> {
        let mut all = Self { origins: Vec::new(), tiers: Vec::new() };
        for (name, text) in files {
            let is_toml = name.to_ascii_lowercase().ends_with(".toml");
            let read = if is_toml { Self::from_toml(text) } else { Self::from_yaml(text) };
            let read = read.map_err(|error| error.in_file(name))?;
            for origin in read.origins {
                if !all.origins.contains(&origin) {
                    all.origins.push(origin);
                }
            }
            all.tiers.extend(read.tiers.into_iter().map(|tier| Declared { file: Some(name.clone()), ..tier }));
        }
        all.checked()
    }

    fn of((origin, tiers): (TierOrigin, Vec<Declared>)) -> Result<Self, FileError> {
        Self { origins: vec![origin], tiers }.checked()
    }

    fn checked(self) -> Result<Self, FileError> {
        let mut seen = HashMap::new();
        for tier in &self.tiers {
            let wrong = |problem| {
                let error = FileError::new(tier.line, problem);
                Err(FileError { file: tier.file.clone(), ..error })
            };
            if seen.insert(tier.name.as_str(), ()).is_some() {
                return wrong(Problem::Twice(tier.name.clone()));
            }
            if let Err(source) = tiers::check(&tier.create(0, &[])) {
                return wrong(Problem::Tier { tier: tier.name.clone(), source });
            }
        }
        Ok(self)
    }

    /// The names of the tiers declared, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tiers.iter().map(|tier| tier.name.as_str())
    }

    /// Each tier with the file it is declared in and the fields that the file owns.
    pub(super) fn ownership(&self) -> impl Iterator<Item = (&str, Option<&str>, Vec<&'static str>)> {
        self.tiers.iter().map(|tier| (tier.name.as_str(), tier.file.as_deref(), tier.owned()))
    }

    /// Compares with the tiers there are.
    ///
    /// `new_limits` are those of a tier that comes without any: never unlimited in silence.
    ///
    /// # Errors
    /// [`TierError`] when a tier would break the rules.
    pub fn plan(&self, existing: &[TierRecord], new_limits: &[Limit]) -> Result<TierPlan, TierError> {
        let mut plan = TierPlan::default();
        let mut known: HashMap<&str, &TierRecord> = existing.iter().map(|tier| (tier.name.as_str(), tier)).collect();
        for (position, declared) in (0..).zip(&self.tiers) {
            match known.remove(declared.name.as_str()) {
                None => plan.create.push(declared.create(position, new_limits)),
                Some(old) => {
                    let new = declared.update(old, position);
                    if new != *old {
                        plan.update.push(new);
                    }
                }
            }
        }
        plan.create.iter().chain(&plan.update).try_for_each(tiers::check)?;
        let is_gone =
            |tier: &&TierRecord| known.contains_key(tier.name.as_str()) && self.origins.contains(&tier.origin);
        plan.delete = existing.iter().filter(is_gone).cloned().collect();
        Ok(plan)
    }
}

impl Declared {
    /// A ConfigMap owns the words of a tier, also by leaving them out; our own format owns what it mentions.
    fn owns_absent(&self) -> bool {
        self.origin == TierOrigin::ConfigMap
    }

    fn owned(&self) -> Vec<&'static str> {
        let optional = [
            ("display_name", self.display_name.is_some() || self.owns_absent()),
            ("description", self.description.is_some() || self.owns_absent()),
            ("limits", self.limits.is_some()),
            ("weight", self.weight.is_some()),
        ];
        let optional = optional.into_iter().filter(|(_, is_owned)| *is_owned).map(|(field, _)| field);
        optional.chain(["level", "groups"]).collect()
    }

    fn create(&self, position: i64, new_limits: &[Limit]) -> TierRecord {
        TierRecord {
            name: self.name.clone(),
            display_name: self.display_name.clone().unwrap_or_else(|| self.name.clone()),
            description: self.description.clone().unwrap_or_default(),
            level: self.level,
            groups: self.groups.clone(),
            limits: self.limits.clone().unwrap_or_else(|| new_limits.to_vec()),
            weight: self.weight.unwrap_or(1),
            origin: self.origin,
            position,
        }
    }

    fn update(&self, old: &TierRecord, position: i64) -> TierRecord {
        let word = |new: &Option<String>, old: &str, absent: &str| match new {
            Some(new) => new.clone(),
            None if self.owns_absent() => absent.to_owned(),
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
            origin: self.origin,
            position,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONFIG_MAP: &str = include_str!("../../../docs/examples/tier-to-group-mapping.yaml");
    const OURS: &str = include_str!("../../../docs/examples/tiers.yaml");

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
    fn a_mounted_config_map_is_the_bare_list() {
        let list = "- name: free\n  displayName: Free\n  groups: ['system:authenticated']\n- {name: gold, level: 9, groups: [g]}\n";
        let plan = plan(list, &[]);
        assert_eq!(plan.create.iter().map(|tier| tier.origin).collect::<Vec<_>>(), [TierOrigin::ConfigMap; 2]);
    }

    #[test]
    fn applying_again_changes_nothing_and_leaving_out_deletes_only_what_was_declared() {
        let first = plan(CONFIG_MAP, &[]);
        assert!(plan(CONFIG_MAP, &first.create).is_empty());
        let mut existing = first.create.clone();
        existing.push(TierRecord { name: "handmade".into(), origin: TierOrigin::Local, ..first.create[0].clone() });
        existing.push(TierRecord { name: "filed".into(), origin: TierOrigin::File, ..first.create[0].clone() });
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
    fn several_files_are_one_declaration_and_no_tier_may_be_in_two() {
        let file = |name: &str, text: &str| (name.to_owned(), text.to_owned());
        let ours = file("a.toml", "[[tiers]]\nname = \"own\"\ngroups = [\"g\"]\n");
        let map = file("tiers", "- {name: mapped, groups: [g]}\n");
        let both = Declaration::from_files(&[ours.clone(), map.clone()]).expect("declaration");
        assert_eq!(both.names().collect::<Vec<_>>(), ["own", "mapped"]);
        let again = file("z.yaml", "tiers:\n  - name: other\n    groups: [g]\n  - name: mapped\n    groups: [g]\n");
        let error = Declaration::from_files(&[ours, map, again]).expect_err("twice").to_string();
        assert_eq!(error, "`z.yaml` line 4: tier `mapped` is there twice");
    }

    #[test]
    fn a_file_that_grows_out_of_its_anchors_is_refused() {
        let grow =
            |number: u8| format!("a{}: &a{} [{}]\n", number + 1, number + 1, vec![format!("*a{number}"); 9].join(","));
        let text = format!("a0: &a0 [x]\n{}tiers: *a9\n", (0..9).map(grow).collect::<String>());
        let error = Declaration::from_yaml(&text).expect_err("too much").to_string();
        assert_eq!(error, "cannot read the tiers: it is too large, or its anchors make it so");
    }

    #[test]
    fn ten_thousand_tiers_are_read_in_one_pass_and_the_last_wrong_one_has_its_line() {
        let line = |number: u32| format!("  - {{name: t{number}, level: {number}, groups: [g]}}\n");
        let text: String = std::iter::once("tiers:\n".to_owned()).chain((0..10_000).map(line)).collect();
        assert_eq!(Declaration::from_yaml(&text).expect("declaration").names().count(), 10_000);
        let error = Declaration::from_yaml(&format!("{text}  - {{name: last, groups: []}}\n")).expect_err("no group");
        assert!(error.to_string().starts_with("line 10002: tier `last`"), "{error}");
    }

    #[test]
    fn a_wrong_file_is_refused_and_says_where() {
        for (text, says) in [
            ("tiers: [", "cannot read"),
            ("tiers:\n  - {name: a, groups: [g], colour: red}", "colour"),
            ("tiers:\n  - {name: a, groups: [g]}\n  - {name: a, groups: [g]}", "line 3: tier `a` is there twice"),
            ("tiers:\n  - {name: a, groups: []}", "line 2: tier `a`: tier `a` needs at least one group"),
            ("tiers:\n  - {name: a, groups: [g], level: -1}", "line 2: tier `a`: level -1 must be 0 to 2147483647"),
            ("tiers:\n  - {name: a, groups: [g], level: high}", "a whole number belongs here"),
            ("tiers:\n  - {name: a, groups: [g], level: 1.5}", "a whole number belongs here"),
            ("tiers:\n  - {name: a, groups: [g], weight: 5000}", "line 2: tier `a`: weight 5000 must be 1 to 1000"),
            ("- {name: a, groups: [g], level: -1}", "line 1: tier `a`: level -1 must be 0 to 2147483647"),
            ("tiers:\n  - {name: a, groups: [g], level: 2147483648}", "line 2: tier `a`: level 2147483648"),
            ("tiers:\n  - {name: A, groups: [g]}", "lowercase"),
            ("tiers:\n  - {name: '', groups: [g]}", "lowercase"),
            ("tiers:\n  - {name: ' ', groups: [g]}", "lowercase"),
            ("tiers:\n  - {name: a, groups: [g], limits: [0 tokens / 1m]}", "line 2: tier `a`: amount `0`"),
            ("kind: ConfigMap\ndata: {}", "no `data.tiers`"),
            (
                "kind: ConfigMap\ndata:\n  tiers: |\n    - {name: a, groups: [g]}\n    - {name: b, displayName: ' ', groups: [g]}",
                "line 5: tier `b`: the display name",
            ),
            (
                "kind: ConfigMap\ndata:\n  tiers: |\n    - {name: a, groups: [g]}\n    - {name: b, limits: [], groups: [g]}",
                "line 5: cannot read the tiers: unknown field `limits`",
            ),
            ("- {name: a, groups: [g], weight: 2}", "line 1: cannot read the tiers: unknown field `weight`"),
        ] {
            let error = Declaration::from_yaml(text).expect_err(text).to_string();
            assert!(error.contains(says), "{text}: {error}");
        }
        let error = Declaration::from_toml("[[tiers]]\nname = \"a\"\nlevel = \"x\"\n").expect_err("level").to_string();
        assert!(error.starts_with("line 3: "), "{error}");
    }
}
