//! The book of reservations: what is open, and what was settled lately, so that a repeated call counts once.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::Arc;

use smallvec::SmallVec;
use uuid::Uuid;

use crate::governance::limits::Resource;
use crate::governance::ports::{Charge, Extent, LimiterTotals, Need, Reserved, Sums};

use super::account::{Hashing, Parties, SHARDS, Seat, Several};

/// Settled reservations that a page of the book remembers.
const REMEMBERED: usize = 8192 / SHARDS;

/// One page of the book; a reservation's id tells on which page it stands.
#[derive(Default)]
pub(super) struct Page {
    /// Boxed: entries of the map move when it grows.
    open: HashMap<Uuid, Box<Hold>, Hashing>,
    settled: HashSet<Uuid, Hashing>,
    settled_order: VecDeque<Uuid>,
    /// Kept by everything that was settled on this page.
    kept: Sums,
}

/// An open reservation: what it charges, and every block it was granted.
pub(super) struct Hold {
    pub(super) charges: Arc<[Charge]>,
    pub(super) parties: Parties,
    /// Most have one.
    pub(super) blocks: SmallVec<[Block; 1]>,
}

/// One grant.
pub(super) struct Block {
    pub(super) extent: Extent,
    pub(super) sequences: u64,
    pub(super) seats: Several<Seat>,
    pub(super) answer: Reserved,
}

impl Block {
    /// What was granted and charged to `seats`.
    pub(super) fn new(at_us: i64, need: Need, completion_tokens: u64, seats: Several<Seat>, answer: Reserved) -> Self {
        Self { extent: need.extent(at_us, completion_tokens), sequences: need.sequences, seats, answer }
    }

    /// What it charged on a counter of `resource`.
    pub(super) fn reserved(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Concurrent => self.sequences,
            other => counted(&self.extent, other),
        }
    }
}

/// What an extent counts for on a counter of `resource` after settlement: nothing is in flight any more.
pub(super) fn counted(extent: &Extent, resource: Resource) -> u64 {
    match resource {
        Resource::Requests => extent.requests,
        Resource::Tokens => extent.prompt_tokens + extent.completion_tokens,
        Resource::PromptTokens => extent.prompt_tokens,
        Resource::CompletionTokens => extent.completion_tokens,
        Resource::Cost => extent.cost_nano_usd,
        Resource::Concurrent => 0,
    }
}

fn sums(extent: &Extent) -> Sums {
    Sums {
        requests: extent.requests,
        prompt_tokens: extent.prompt_tokens,
        completion_tokens: extent.completion_tokens,
        cost_nano_usd: extent.cost_nano_usd,
    }
}

impl Page {
    pub(super) fn open(&mut self, id: &Uuid) -> Option<&mut Hold> {
        self.open.get_mut(id).map(Box::as_mut)
    }

    pub(super) fn is_settled(&self, id: &Uuid) -> bool {
        self.settled.contains(id)
    }

    pub(super) fn put(&mut self, id: Uuid, hold: Box<Hold>) {
        self.open.insert(id, hold);
    }

    /// Closes a reservation; `None` when it is not open.
    pub(super) fn close(&mut self, id: Uuid) -> Option<Box<Hold>> {
        let hold = self.open.remove(&id)?;
        if self.settled.insert(id) {
            self.settled_order.push_back(id);
        }
        if self.settled_order.len() > REMEMBERED
            && let Some(oldest) = self.settled_order.pop_front()
        {
            self.settled.remove(&oldest);
        }
        Some(hold)
    }

    /// Notes what one block of a settled reservation keeps.
    pub(super) fn kept(&mut self, spent: &Extent) {
        self.kept = self.kept.plus(sums(spent));
    }

    /// Adds what this page has settled and holds.
    pub(super) fn add_to(&self, sum: LimiterTotals) -> LimiterTotals {
        let blocks = self.open.values().flat_map(|hold| &hold.blocks);
        LimiterTotals {
            settled: sum.settled.plus(self.kept),
            held: blocks.fold(sum.held, |sum, block| sum.plus(sums(&block.extent))),
            open: sum.open + self.open.len() as u64,
        }
    }

    pub(super) fn len(&self) -> usize {
        self.open.len()
    }
}
