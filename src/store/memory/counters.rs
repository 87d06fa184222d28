//! Counters in this process's memory: a decision locks the accounts it concerns, and nothing else, for a few hundred
//! nanoseconds.
//!
//! A reservation's page is locked first and kept, so calls about one reservation take turns; then all its accounts, so a
//! decision over several counters is all or nothing. No lock is held across an await.

use std::sync::Arc;

use async_trait::async_trait;
use smallvec::smallvec;
use uuid::Uuid;

use crate::governance::clock::Clock;
use crate::governance::ports::{Bill, Charge, Count, CounterError, Counters, LimiterTotals, Need, Reserved, Restored};
use crate::governance::records::spend;

use super::account::{Accounts, Locked, SHARDS, Seat, Several};
use super::book::{Block, Hold, Page, counted};
use super::counter::Now;
use super::sync::{Mutex, MutexGuard, lock};

/// Windows, calendar counters and holds of one process.
pub struct MemoryCounters {
    clock: Arc<dyn Clock>,
    accounts: Accounts,
    book: [Mutex<Page>; SHARDS],
}

impl MemoryCounters {
    /// Empty counters that tell the time by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, accounts: Accounts::default(), book: Default::default() }
    }

    fn now(&self) -> Now {
        Now { wall_us: self.clock.now_us(), steady_us: self.clock.steady_us() }
    }

    fn page(&self, id: Uuid) -> MutexGuard<'_, Page> {
        // The last bits of a UUID of version 7 are random.
        let page = usize::try_from(id.as_u128() % SHARDS as u128).unwrap_or(0);
        lock(&self.book[page])
    }

    /// Subjects kept in memory, idle ones that are not forgotten yet included.
    pub fn known(&self) -> usize {
        self.accounts.len()
    }

    /// Open reservations; for tests and the idle check: zero when nothing runs.
    pub fn open_holds(&self) -> usize {
        self.book.iter().map(|page| lock(page).len()).sum()
    }
}

/// Charges all or none; a grant is told together with the block it makes.
fn charge(
    locked: &mut Locked<'_>,
    charges: &[Charge],
    mut seats: Several<Seat>,
    need: Need,
    now: Now,
) -> (Reserved, Option<Block>) {
    match locked.check(charges, &seats, need, now) {
        Err(refusing) => (Reserved::Refused { refusing, counts: locked.counts(charges, &seats, now) }, None),
        Ok(completion_tokens) => {
            locked.hold(charges, &mut seats, need, completion_tokens, now);
            let counts = locked.counts(charges, &seats, now);
            let answer = Reserved::Granted { at_us: now.steady_us, completion_tokens, counts };
            let block = Block::new(now.steady_us, need, completion_tokens, seats, answer.clone());
            (answer, Some(block))
        }
    }
}

#[async_trait]
impl Counters for MemoryCounters {
    async fn reserve(&self, id: Uuid, charges: &Arc<[Charge]>, need: Need) -> Result<Reserved, CounterError> {
        let mut page = self.page(id);
        if let Some(hold) = page.open(&id) {
            return Ok(hold.blocks[0].answer.clone());
        }
        if page.is_settled(&id) {
            return Err(misused("reserve", "this reservation is settled"));
        }
        let (parties, own) = self.accounts.of(charges, || self.now());
        let mut locked = parties.lock();
        // Read under the locks, so that charges are counted in the order of their times.
        let now = self.now();
        let seats = locked.seats(charges, &own, now);
        let (answer, block) = charge(&mut locked, charges, seats, need, now);
        drop(locked);
        if let Some(block) = block {
            page.put(id, Box::new(Hold { charges: charges.clone(), parties, blocks: smallvec![block] }));
        }
        Ok(answer)
    }

    async fn extend(&self, id: Uuid, sequence: u32, need: Need) -> Result<Reserved, CounterError> {
        let mut page = self.page(id);
        let hold = page.open(&id).ok_or_else(|| misused("extend", "there is no such reservation"))?;
        if let Some(block) = hold.blocks.get(sequence as usize) {
            return Ok(block.answer.clone());
        }
        if sequence as usize != hold.blocks.len() {
            return Err(misused("extend", "a sequence number was left out"));
        }
        let Hold { charges, parties, blocks } = hold;
        let mut locked = parties.lock();
        let now = self.now();
        // The period of a calendar counter is fixed at admission; windows take the present.
        let seats = blocks[0].seats.clone();
        let (answer, block) = charge(&mut locked, charges, seats, need, now);
        blocks.extend(block);
        Ok(answer)
    }

    async fn settle(&self, id: Uuid, bill: Bill) -> Result<(), CounterError> {
        let mut page = self.page(id);
        let Some(hold) = page.close(id) else {
            return Ok(());
        };
        let Hold { charges, parties, blocks } = &*hold;
        let mut locked = parties.lock();
        for (block, spent) in blocks.iter().zip(spend(blocks.iter().map(|block| &block.extent), bill)) {
            page.kept(&spent);
            for (charge, seat) in charges.iter().zip(&block.seats) {
                let resource = charge.key.resource;
                locked.settle(seat, block.reserved(resource), counted(&spent, resource));
            }
        }
        Ok(())
    }

    async fn peek(&self, charges: &[Charge]) -> Result<Vec<Count>, CounterError> {
        Ok(charges.iter().map(|charge| self.accounts.count(charge, || self.now())).collect())
    }

    async fn probe(&self, charges: &[Charge], need: Need) -> Result<Reserved, CounterError> {
        let (parties, own) = self.accounts.of(charges, || self.now());
        let mut locked = parties.lock();
        let now = self.now();
        let seats = locked.seats(charges, &own, now);
        let decided = locked.check(charges, &seats, need, now);
        let counts = locked.counts(charges, &seats, now);
        Ok(match decided {
            Ok(completion_tokens) => Reserved::Granted { at_us: now.steady_us, completion_tokens, counts },
            Err(refusing) => Reserved::Refused { refusing, counts },
        })
    }

    async fn totals(&self) -> Result<LimiterTotals, CounterError> {
        Ok(self.book.iter().fold(LimiterTotals::default(), |sum, page| lock(page).add_to(sum)))
    }

    fn blank(&self, clock: Arc<dyn Clock>) -> Arc<dyn Counters> {
        Arc::new(Self::new(clock))
    }

    async fn restore(&self, rows: Vec<Restored>) -> Result<(), CounterError> {
        for row in rows {
            let charges = [Charge { key: row.key, hard: None, bounds: row.bounds }];
            let (parties, own) = self.accounts.of(&charges, || self.now());
            let mut locked = parties.lock();
            let seats = locked.seats(&charges, &own, self.now());
            locked.restore(&seats[0], row.used, row.at_us, row.bounds);
        }
        Ok(())
    }
}

fn misused(operation: &'static str, message: &str) -> CounterError {
    CounterError { operation, message: message.into() }
}
