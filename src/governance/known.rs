//! Identities that were looked up before: read without a lock and without counting a reference, on every request.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::{BuildHasher, Hash};
use std::sync::Arc;

use arc_swap::ArcSwap;
use foldhash::fast::RandomState;

/// Parts that are replaced one by one when something is added; a part is copied then, so it must stay small.
const PARTS: usize = 256;

type Part<K, V> = HashMap<K, Arc<V>, RandomState>;

/// What is known, by key; a part that is full is forgotten and looked up again, so memory stays bounded.
///
/// The hash has a secret of the process, and only what the store holds is ever put in: nobody can choose what collides.
#[derive(Debug)]
pub(super) struct Known<K, V> {
    parts: Box<[ArcSwap<Part<K, V>>]>,
    hasher: RandomState,
    most_a_part: usize,
}

impl<K: Hash + Eq + Clone, V> Known<K, V> {
    /// Nothing yet, and about `most` at most.
    pub(super) fn new(most: usize) -> Self {
        Self {
            parts: std::iter::repeat_with(ArcSwap::default).take(PARTS).collect(),
            hasher: RandomState::default(),
            most_a_part: most.div_ceil(PARTS),
        }
    }

    /// Looks at what is known.
    pub(super) fn look<Q: Hash + Eq + ?Sized, T>(&self, key: &Q, look: impl FnOnce(&Arc<V>) -> T) -> Option<T>
    where
        K: Borrow<Q>,
    {
        self.part(key).load().get(key).map(look)
    }

    /// Puts it in the place of what was known before.
    pub(super) fn put(&self, key: &K, value: &Arc<V>) {
        self.part(key).rcu(|part| {
            let mut part = if part.len() >= self.most_a_part { Part::default() } else { Part::clone(part) };
            part.insert(key.clone(), Arc::clone(value));
            part
        });
    }

    fn part<Q: Hash + ?Sized>(&self, key: &Q) -> &ArcSwap<Part<K, V>> {
        let hash = self.hasher.hash_one(key);
        // The low bits choose within a part.
        &self.parts[(hash >> 56) as usize % PARTS]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_word_counts_and_memory_stays_bounded() {
        let known = Known::new(512);
        for number in 0..10_000u32 {
            known.put(&number, &Arc::new(number));
        }
        known.put(&9_999, &Arc::new(7));
        assert_eq!(known.look(&9_999, |value| **value), Some(7));
        assert!((0..10_000u32).filter(|number| known.look(number, |_| ()).is_some()).count() <= 512);
    }
}
