//! What usage is reported by besides the names: the groups a user was in and the labels of the key, when a request came.
//!
//! Many requests share one: it is worked out once for an identity, and the store keeps each different one once.

use std::collections::BTreeMap;

use sha2::{Digest, Sha256};
use uuid::Uuid;

/// Groups kept at most; who is in more is reported under the first of them by name.
const GROUPS_MAX: usize = 64;

/// Groups and labels of a request, named by their content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attribution {
    /// Made from the content: equal groups and labels have equal ids.
    pub id: Uuid,
    /// The user's groups, sorted; the one that everybody is in is left out.
    pub groups: Vec<String>,
    /// The key's labels.
    pub labels: BTreeMap<String, String>,
}

impl Attribution {
    /// Names this content.
    pub fn new(mut groups: Vec<String>, labels: BTreeMap<String, String>) -> Self {
        groups.sort_unstable();
        groups.dedup();
        groups.truncate(GROUPS_MAX);
        let text = serde_json::to_vec(&(&groups, &labels)).expect("lists of strings are always JSON");
        let mut id = [0; 16];
        id.copy_from_slice(&Sha256::digest(text)[..16]);
        Self { id: Uuid::from_bytes(id), groups, labels }
    }
}

impl Default for Attribution {
    fn default() -> Self {
        Self::new(Vec::new(), BTreeMap::new())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_id_follows_the_content_and_nothing_else() {
        let of = |groups: &[&str], labels: &[(&str, &str)]| {
            let groups = groups.iter().map(|group| (*group).to_owned()).collect();
            let labels = labels.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
            Attribution::new(groups, labels).id
        };
        assert_eq!(of(&["a", "b"], &[("x", "y")]), of(&["b", "a", "a"], &[("x", "y")]));
        assert_ne!(of(&["a", "b"], &[]), of(&["a"], &[("b", "")]));
        assert_eq!(of(&[], &[]), Attribution::default().id);
    }

    #[test]
    fn what_is_kept_of_somebody_in_a_thousand_groups_is_bounded() {
        let groups = (0..1000).map(|n| format!("group-{n:04}")).collect();
        assert_eq!(Attribution::new(groups, BTreeMap::new()).groups.len(), GROUPS_MAX);
    }
}
