//! What a watched folder declares: the fields it owns, and whether its files could last be applied.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwap;

use super::declaration::Declaration;
use crate::governance::records::TierRecord;

/// How the files of the watched folder are doing.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TierFilesState {
    /// When they were last found in order, in microseconds since the Unix epoch.
    pub applied_at_us: Option<i64>,
    /// Why they cannot be applied now, with file, line and reason; the last good state stays in effect.
    pub problem: Option<String>,
}

/// The memory of the watched folder; empty while none is watched.
#[derive(Debug, Default)]
pub struct Watched {
    owned: ArcSwap<HashMap<String, Owned>>,
    state: Mutex<Option<TierFilesState>>,
}

#[derive(Debug)]
struct Owned {
    file: String,
    fields: Vec<&'static str>,
}

impl Watched {
    /// The files are in order and say this.
    pub(in crate::governance) fn applied(&self, declared: &Declaration, now_us: i64) {
        let owned = declared.ownership().map(|(name, file, fields)| {
            (name.to_owned(), Owned { file: file.unwrap_or("the watched folder").to_owned(), fields })
        });
        self.owned.store(Arc::new(owned.collect()));
        *self.lock() = Some(TierFilesState { applied_at_us: Some(now_us), problem: None });
    }

    /// The files cannot be applied; what they said before stays.
    pub(in crate::governance) fn failed(&self, problem: String) {
        self.lock().get_or_insert_default().problem = Some(problem);
    }

    /// How the files are doing; `None` while no folder is watched.
    pub(in crate::governance) fn state(&self) -> Option<TierFilesState> {
        self.lock().clone()
    }

    /// The file that declares a tier.
    pub(in crate::governance) fn file_of(&self, tier: &str) -> Option<String> {
        self.owned.load().get(tier).map(|owned| owned.file.clone())
    }

    /// The file and the first field it owns that differs between the two.
    pub(in crate::governance) fn conflict(&self, old: &TierRecord, new: &TierRecord) -> Option<(String, &'static str)> {
        let all = self.owned.load();
        let owned = all.get(&old.name)?;
        let differs = |field: &&'static str| match *field {
            "display_name" => old.display_name != new.display_name,
            "description" => old.description != new.description,
            "level" => old.level != new.level,
            "groups" => old.groups != new.groups,
            "limits" => old.limits != new.limits,
            _ => old.weight != new.weight,
        };
        owned.fields.iter().copied().find(differs).map(|field| (owned.file.clone(), field))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<TierFilesState>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
