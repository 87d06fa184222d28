//! What groups named by somebody else count for here: never `system:...` and never administration, unless a map says so.

use std::collections::BTreeMap;

use super::policy::{ADMINS, AUTHENTICATED};

/// Groups of one token; more cannot be meant for us.
pub(super) const MOST: usize = 500;

/// The groups here that these names stand for, sorted and once each.
pub(super) fn given<'a>(names: impl IntoIterator<Item = &'a str>, map: &BTreeMap<String, String>) -> Vec<String> {
    let mut groups: Vec<String> = names.into_iter().filter_map(|name| group(name, map)).collect();
    groups.sort_unstable();
    groups.dedup();
    groups
}

/// The group here that one name stands for.
///
/// A name that is unsafe, reserved or gives administration counts only where the map says so. It is the group that is
/// refused, not the token: an unsafe name can be no tier's group, so leaving it out changes nothing but what is shown.
fn group(name: &str, map: &BTreeMap<String, String>) -> Option<String> {
    if let Some(mapped) = map.get(name) {
        return Some(mapped.clone());
    }
    let is_reserved = name.eq_ignore_ascii_case(ADMINS) || name.to_ascii_lowercase().starts_with("system:");
    if is_reserved || !is_safe(name) {
        // Everybody is in that one here, whoever says so.
        if name != AUTHENTICATED {
            tracing::debug!("a group of a token is left out: its name is unsafe or reserved");
        }
        return None;
    }
    Some(name.to_owned())
}

fn is_safe(name: &str) -> bool {
    let is_safe = |c: char| c.is_ascii_alphanumeric() || "._@+-:/".contains(c);
    !name.is_empty() && name.len() <= 200 && name.chars().all(is_safe)
}
