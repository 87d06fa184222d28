//! Tokens that were checked before, by the digest of their text, so that using one costs no more than a key.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};

/// Tokens remembered; beyond it those that are over are forgotten first, then all of them.
const MOST: usize = 65_536;

/// What was proven about tokens, each until a time of its own.
pub(in crate::governance) struct Seen<T> {
    most: usize,
    entries: RwLock<HashMap<[u8; 32], Entry<T>>>,
}

struct Entry<T> {
    until_us: i64,
    proven: Arc<T>,
}

impl<T> Default for Seen<T> {
    fn default() -> Self {
        Self { most: MOST, entries: RwLock::default() }
    }
}

impl<T> Seen<T> {
    /// What was proven about the token with this digest, if that still holds.
    pub(in crate::governance) fn get(&self, digest: &[u8; 32], now_us: i64) -> Option<Arc<T>> {
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        entries.get(digest).filter(|entry| now_us < entry.until_us).map(|entry| entry.proven.clone())
    }

    /// Remembers what was proven, until `until_us`.
    pub(in crate::governance) fn put(&self, digest: [u8; 32], until_us: i64, proven: Arc<T>, now_us: i64) {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.len() >= self.most {
            entries.retain(|_, entry| now_us < entry.until_us);
        }
        if entries.len() >= self.most {
            entries.clear();
        }
        entries.insert(digest, Entry { until_us, proven });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_is_remembered_until_its_time_and_memory_is_bounded() {
        let seen = Seen { most: 3, ..Seen::default() };
        let digest = |n: u8| [n; 32];
        for n in 0..3 {
            seen.put(digest(n), 10 + i64::from(n), Arc::new(n), 0);
        }
        assert_eq!(seen.get(&digest(0), 9).as_deref(), Some(&0));
        assert_eq!(seen.get(&digest(0), 10), None, "over");
        seen.put(digest(3), 99, Arc::new(3), 11);
        let left: Vec<bool> = (0..4).map(|n| seen.get(&digest(n), 11).is_some()).collect();
        assert_eq!(left, [false, false, true, true], "those that were over made room");
        seen.put(digest(4), 99, Arc::new(4), 11);
        seen.put(digest(5), 99, Arc::new(5), 11);
        assert!(seen.entries.read().expect("no panic").len() <= 3);
        assert!(seen.get(&digest(5), 11).is_some());
    }
}
