//! The rules of tiers: names, levels, which one a user gets, and the three there are at first.

use std::collections::HashSet;

use super::limits::{Limit, check_limits};
use super::policy::{ADMINS, AUTHENTICATED};
use super::records::{TierOrigin, TierRecord};

/// The highest level.
pub const LEVEL_MAX: u32 = i32::MAX as u32;
/// The longest resource name.
pub const NAME_MAX: usize = 253;
/// The longest display name, in characters.
pub const DISPLAY_NAME_MAX: usize = 253;
/// The longest description, in characters.
pub const DESCRIPTION_MAX: usize = 2000;
/// The instance whose service accounts' namespaces belong to tiers, as the documents we follow call it.
pub const INSTANCE: &str = "maas-default-gateway";
/// The largest scheduling weight.
pub const WEIGHT_MAX: u32 = 1000;

/// What is wrong with a tier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct TierError {
    /// Which field.
    pub param: &'static str,
    /// What is wrong with it.
    pub message: String,
}

impl TierError {
    fn new(param: &'static str, message: impl Into<String>) -> Self {
        Self { param, message: message.into() }
    }
}

/// The tier of a user in `groups`: the highest level wins, the first declared among equals.
///
/// Each tier also holds the service accounts of its own namespace, `system:serviceaccounts:{instance}-tier-{name}`, without
/// naming that group.
pub fn resolve<'a, S: AsRef<str>>(tiers: &'a [TierRecord], groups: &[S], instance: &str) -> Option<&'a TierRecord> {
    let mine: HashSet<&str> = groups.iter().map(AsRef::as_ref).collect();
    let implied: HashSet<&str> = mine.iter().filter_map(|group| tier_of_namespace(group, instance)).collect();
    let holds = |tier: &&TierRecord| {
        implied.contains(tier.name.as_str()) || tier.groups.iter().any(|group| mine.contains(group.as_str()))
    };
    tiers.iter().filter(holds).min_by(|a, b| {
        b.level.cmp(&a.level).then_with(|| a.position.cmp(&b.position)).then_with(|| a.name.cmp(&b.name))
    })
}

/// The tier in whose namespace the service accounts of a group live.
fn tier_of_namespace<'a>(group: &'a str, instance: &str) -> Option<&'a str> {
    group.strip_prefix("system:serviceaccounts:")?.strip_prefix(instance)?.strip_prefix("-tier-")
}

/// How many different levels lie below `level`, at most 255: the engine's priority.
pub fn rank(tiers: &[TierRecord], level: u32) -> u8 {
    let mut below: Vec<u32> = tiers.iter().map(|tier| tier.level).filter(|other| *other < level).collect();
    below.sort_unstable();
    below.dedup();
    u8::try_from(below.len()).unwrap_or(u8::MAX)
}

/// True for `^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`, at most 253 characters.
pub fn is_resource_name(name: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !name.is_empty()
        && name.len() <= NAME_MAX
        && name.bytes().all(inner)
        && !name.starts_with('-')
        && !name.ends_with('-')
}

/// The resource name made from a display name: `Data Science Team` becomes `data-science-team`.
///
/// # Errors
/// A display name without a single letter a-z or digit gives nothing to make a name of.
pub fn name_from(display_name: &str) -> Result<String, TierError> {
    let mut name = String::new();
    for c in display_name.to_lowercase().chars() {
        if c.is_ascii_alphanumeric() {
            name.push(c);
        } else if !name.ends_with('-') && !name.is_empty() {
            name.push('-');
        }
    }
    name.truncate(NAME_MAX);
    let name = name.trim_matches('-');
    if name.is_empty() {
        return Err(TierError::new("name", format!("no resource name can be made from `{display_name}`: give one")));
    }
    Ok(name.to_owned())
}

/// Checks one tier by itself.
///
/// # Errors
/// [`TierError`] names the field.
pub fn check(tier: &TierRecord) -> Result<(), TierError> {
    if !is_resource_name(&tier.name) {
        return Err(TierError::new(
            "name",
            format!(
                "`{}` must be 1 to 253 lowercase letters, digits and hyphens, beginning and ending with a letter or digit",
                tier.name
            ),
        ));
    }
    if tier.display_name.trim().is_empty() {
        return Err(TierError::new("display_name", format!("the display name of `{}` must not be empty", tier.name)));
    }
    if RESERVED.contains(&tier.name.as_str()) {
        return Err(TierError::new(
            "name",
            format!("`{}` is a word of the API's addresses: choose another", tier.name),
        ));
    }
    check_words("display_name", &tier.display_name, DISPLAY_NAME_MAX)?;
    check_words("description", &tier.description, DESCRIPTION_MAX)?;
    if tier.level > LEVEL_MAX {
        return Err(TierError::new("level", format!("level {} must be 0 to {LEVEL_MAX}", tier.level)));
    }
    if tier.groups.is_empty() {
        return Err(TierError::new("groups", format!("tier `{}` needs at least one group", tier.name)));
    }
    if let Some(group) = tier.groups.iter().find(|group| !is_group_name(group)) {
        return Err(TierError::new("groups", format!("`{group}` is not a group name")));
    }
    if tier.weight == 0 || tier.weight > WEIGHT_MAX {
        return Err(TierError::new("weight", format!("weight {} must be 1 to {WEIGHT_MAX}", tier.weight)));
    }
    check_limits(&tier.limits).map_err(|error| TierError::new("limits", error.to_string()))
}

/// Names that addresses below `/admin/v1/tiers/` use for something else.
const RESERVED: [&str; 2] = ["apply", "simulate"];

fn check_words(param: &'static str, text: &str, max: usize) -> Result<(), TierError> {
    if text.chars().count() > max {
        return Err(TierError::new(param, format!("`{param}` must have at most {max} characters")));
    }
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err(TierError::new(param, format!("`{param}` must not contain control characters")));
    }
    Ok(())
}

/// True for names that groups may have: printable, no spaces at the ends, at most 253 characters.
pub fn is_group_name(name: &str) -> bool {
    !name.is_empty() && name.chars().count() <= 253 && name.trim() == name && !name.chars().any(char::is_control)
}

/// The limits of the tier `free`: enough for a person who is trying it out, not enough to keep others waiting.
pub fn free_limits() -> Vec<Limit> {
    limits(&["60 requests / 1m", "40000 tokens / 1m", "500000 tokens / day", "4 concurrent"])
}

/// The tiers of a fresh server.
pub fn defaults() -> Vec<TierRecord> {
    let tier =
        |name: &str, display: &str, description: &str, level: u32, groups: &[&str], limits: Vec<Limit>| TierRecord {
            name: name.into(),
            display_name: display.into(),
            description: description.into(),
            level,
            groups: groups.iter().map(|group| (*group).to_owned()).collect(),
            limits,
            weight: 1 << level,
            origin: TierOrigin::Local,
            position: i64::from(level),
        };
    vec![
        tier("free", "Free", "For everybody who has a key.", 0, &[AUTHENTICATED], free_limits()),
        tier(
            "premium",
            "Premium",
            "For members of premium-users.",
            1,
            &["premium-users"],
            limits(&["600 requests / 1m", "400000 tokens / 1m", "10000000 tokens / day", "32 concurrent"]),
        ),
        tier(
            "enterprise",
            "Enterprise",
            "For members of enterprise-users, and for administrators.",
            2,
            &["enterprise-users", ADMINS],
            limits(&["10000 requests / 1m", "10000000 tokens / 1m", "1024 concurrent"]),
        ),
    ]
}

fn limits(texts: &[&str]) -> Vec<Limit> {
    texts.iter().map(|text| text.parse().expect("the built-in limits are well formed")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_highest_level_among_the_groups_wins_and_it_is_the_only_tier() {
        let tiers = defaults();
        let tier = |groups: &[&str]| resolve(&tiers, groups, INSTANCE).map(|tier| tier.name.clone());
        assert_eq!(tier(&[AUTHENTICATED]).as_deref(), Some("free"));
        assert_eq!(tier(&["enterprise-users", "premium-users", AUTHENTICATED]).as_deref(), Some("enterprise"));
        assert_eq!(tier(&[ADMINS]).as_deref(), Some("enterprise"));
        assert_eq!(tier(&["strangers"]), None);
    }

    #[test]
    fn a_tier_holds_the_service_accounts_of_its_namespace() {
        let tiers = defaults();
        let tier = |group: &str, instance: &str| resolve(&tiers, &[group], instance).map(|tier| tier.name.clone());
        let premium = "system:serviceaccounts:maas-default-gateway-tier-premium";
        assert_eq!(tier(premium, INSTANCE).as_deref(), Some("premium"));
        assert_eq!(tier(premium, "another"), None);
        assert_eq!(tier("system:serviceaccounts:another-tier-free", "another").as_deref(), Some("free"));
        assert_eq!(tier("system:serviceaccounts:maas-default-gateway-tier-gold", INSTANCE), None);
        assert_eq!(tier("maas-default-gateway-tier-premium", INSTANCE), None, "the namespace is not the group");
    }

    #[test]
    fn declared_tiers_may_tie_and_the_first_in_the_file_wins() {
        let mut tiers = defaults();
        tiers[1].level = 2;
        let tier = resolve(&tiers, &["premium-users", "enterprise-users"], INSTANCE).expect("tier");
        assert_eq!(tier.name, "premium");
    }

    #[test]
    fn the_defaults_are_valid_and_do_not_lock_a_newcomer_out() {
        let tiers = defaults();
        for tier in &tiers {
            check(tier).expect("valid");
        }
        assert!(free_limits().iter().all(|limit| limit.amount >= 4));
        assert_eq!((rank(&tiers, 0), rank(&tiers, 1), rank(&tiers, 2)), (0, 1, 2));
    }

    #[test]
    fn names_come_from_display_names() {
        assert_eq!(name_from("Data Science Team").as_deref(), Ok("data-science-team"));
        assert_eq!(name_from("  Équipe №1 — été!  ").as_deref(), Ok("quipe-1-t"));
        assert!(name_from("日本").is_err());
    }

    #[test]
    fn a_tier_without_group_display_name_or_weight_is_refused_by_field() {
        let broken = |change: fn(&mut TierRecord)| {
            let mut tier = defaults().remove(0);
            change(&mut tier);
            check(&tier).expect_err("broken").param
        };
        assert_eq!(broken(|tier| tier.groups.clear()), "groups");
        assert_eq!(broken(|tier| tier.groups = vec!["a\nb".into()]), "groups");
        assert_eq!(broken(|tier| tier.display_name = "  ".into()), "display_name");
        assert_eq!(broken(|tier| tier.weight = 0), "weight");
        assert_eq!(broken(|tier| tier.level = LEVEL_MAX + 1), "level");
        assert_eq!(broken(|tier| tier.name = "Free".into()), "name");
        assert_eq!(broken(|tier| tier.name = "apply".into()), "name");
        assert_eq!(broken(|tier| tier.description = "x".repeat(DESCRIPTION_MAX + 1)), "description");
        assert_eq!(broken(|tier| tier.display_name = "a\u{7}".into()), "display_name");
        assert_eq!(broken(|tier| tier.limits.push(tier.limits[0].clone())), "limits");
    }

    proptest! {
        #[test]
        fn a_generated_name_is_always_a_valid_one(display in "\\PC{0,100}") {
            if let Ok(name) = name_from(&display) {
                prop_assert!(is_resource_name(&name), "{name}");
            }
        }
    }
}
