//! A group of journal entries that are committed together; entries that cancel out are never written.

use std::collections::{HashMap, HashSet};

use uuid::Uuid;

use crate::governance::attribution::Attribution;
use crate::governance::ports::{Extent, JournalEntry, Notice, NoticeOutcome, RefusalCount};
use crate::governance::records::{LedgerRecord, ReservationRecord, Usage};

/// What one transaction writes.
#[derive(Debug, Default)]
pub(super) struct Group {
    pub(super) opens: HashMap<Uuid, ReservationRecord>,
    pub(super) extents: HashMap<Uuid, Vec<Extent>>,
    pub(super) progress: HashMap<Uuid, Usage>,
    pub(super) closes: Vec<LedgerRecord>,
    /// Requests that are settled and whose reservation may be on the disk.
    pub(super) settled: Vec<Uuid>,
    pub(super) refusals: Vec<RefusalCount>,
    pub(super) notices: Vec<Notice>,
    pub(super) told: Vec<NoticeOutcome>,
}

impl Group {
    /// Adds an entry; later ones of a request replace earlier ones.
    pub(super) fn add(&mut self, entry: JournalEntry) {
        match entry {
            JournalEntry::Open(row) => {
                self.opens.insert(row.request.id, row);
            }
            JournalEntry::Extend { id, extents } => match self.opens.get_mut(&id) {
                Some(open) => open.extents = extents,
                None => {
                    self.extents.insert(id, extents);
                }
            },
            JournalEntry::Progress { id, usage } => match self.opens.get_mut(&id) {
                Some(open) => open.progress = usage,
                None => {
                    self.progress.insert(id, usage);
                }
            },
            JournalEntry::Close(row) => {
                let id = row.request.id;
                if self.opens.remove(&id).is_none() {
                    self.extents.remove(&id);
                    self.progress.remove(&id);
                    self.settled.push(id);
                }
                self.closes.push(row);
            }
            JournalEntry::Refused(counts) => self.refusals.extend(counts),
            JournalEntry::Notice(notice) => self.notices.push(notice),
            JournalEntry::Told(outcome) => self.told.push(outcome),
        }
    }

    /// Puts back ledger rows that an earlier group failed to write, before its own.
    pub(super) fn owe(&mut self, mut owed: Vec<LedgerRecord>) {
        if owed.is_empty() {
            return;
        }
        self.settled.extend(owed.iter().map(|row| row.request.id));
        owed.append(&mut self.closes);
        let mut seen = HashSet::new();
        owed.retain(|row| seen.insert(row.request.id));
        self.closes = owed;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.notices.is_empty()
            && self.told.is_empty()
            && self.opens.is_empty()
            && self.extents.is_empty()
            && self.progress.is_empty()
            && self.closes.is_empty()
            && self.refusals.is_empty()
    }

    /// Every attribution that its rows refer to, with repetitions.
    pub(super) fn attributions(&self) -> impl Iterator<Item = &Attribution> {
        let opens = self.opens.values().map(|row| &*row.request.attribution);
        let closes = self.closes.iter().map(|row| &*row.request.attribution);
        opens.chain(closes).chain(self.refusals.iter().map(|count| &*count.attribution))
    }
}
