//! Counters in this process's memory, behind one lock that is held for the few hundred nanoseconds of one decision.
//!
//! One lock because a decision is all or nothing over several counters; it is never held across an await.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use async_trait::async_trait;
use uuid::Uuid;

use crate::governance::clock::Clock;
use crate::governance::ports::{Charge, Count, CounterError, Counters, Extent, Need, Reserved, Restored};
use crate::governance::records::{Usage, spend};

use super::counter::{Counter, Now, Table, Ticket, charged};

/// Settled reservations that are remembered, so that a repeated call does not charge again.
const REMEMBERED: usize = 8192;

/// Windows, calendar counters and holds of one process.
pub struct MemoryCounters {
    clock: Arc<dyn Clock>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    table: Table,
    holds: HashMap<Uuid, Hold>,
    settled: HashSet<Uuid>,
    settled_order: VecDeque<Uuid>,
}

/// An open reservation: what it charges, and every block it was granted.
struct Hold {
    charges: Arc<[Charge]>,
    counters: Vec<usize>,
    blocks: Vec<Block>,
}

/// One grant.
struct Block {
    extent: Extent,
    need: Need,
    tickets: Vec<Ticket>,
    answer: Reserved,
}

impl MemoryCounters {
    /// Empty counters that tell the time by `clock`.
    pub fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, state: Mutex::default() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Now {
        Now { wall_us: self.clock.now_us(), steady_us: self.clock.steady_us() }
    }

    /// Counters kept in memory, idle ones that are not forgotten yet included.
    pub fn known(&self) -> usize {
        self.lock().table.len()
    }

    /// Open reservations; for tests and the idle check: zero when nothing runs.
    pub fn open_holds(&self) -> usize {
        self.lock().holds.len()
    }
}

#[async_trait]
impl Counters for MemoryCounters {
    async fn reserve(&self, id: Uuid, charges: &Arc<[Charge]>, need: Need) -> Result<Reserved, CounterError> {
        let mut state = self.lock();
        // Read under the lock, so that charges are counted in the order of their times.
        let now = self.now();
        if let Some(hold) = state.holds.get(&id) {
            return Ok(hold.blocks[0].answer.clone());
        }
        if state.settled.contains(&id) {
            return Err(misused("reserve", "this reservation is settled"));
        }
        let counters: Vec<usize> = charges.iter().map(|charge| state.table.index(&charge.key)).collect();
        let tickets_at = |charge: &Charge, counter: &mut Counter| counter.ticket(charge.bounds, now);
        let mut tickets: Vec<Ticket> = Vec::with_capacity(counters.len());
        for (charge, counter) in charges.iter().zip(&counters) {
            tickets.push(tickets_at(charge, state.table.get(*counter)));
        }
        let answer = state.table.charge(charges, &counters, &mut tickets, need, now);
        if let Reserved::Granted { at_us, completion_tokens, .. } = &answer {
            let extent = Extent {
                at_us: *at_us,
                requests: need.requests,
                prompt_tokens: need.prompt_tokens,
                completion_tokens: *completion_tokens,
            };
            let block = Block { extent, need, tickets, answer: answer.clone() };
            state.holds.insert(id, Hold { charges: charges.clone(), counters, blocks: vec![block] });
        }
        state.sweep_if_due(now);
        Ok(answer)
    }

    async fn extend(&self, id: Uuid, sequence: u32, need: Need) -> Result<Reserved, CounterError> {
        let mut state = self.lock();
        let now = self.now();
        let State { table, holds, .. } = &mut *state;
        let hold = holds.get_mut(&id).ok_or_else(|| misused("extend", "there is no such reservation"))?;
        if let Some(block) = hold.blocks.get(sequence as usize) {
            return Ok(block.answer.clone());
        }
        if sequence as usize != hold.blocks.len() {
            return Err(misused("extend", "a sequence number was left out"));
        }
        // The period of a calendar counter is fixed at admission; windows take the present.
        let mut tickets = hold.blocks[0].tickets.clone();
        let answer = table.charge(&hold.charges, &hold.counters, &mut tickets, need, now);
        if let Reserved::Granted { at_us, completion_tokens, .. } = &answer {
            let extent = Extent { at_us: *at_us, completion_tokens: *completion_tokens, ..Extent::default() };
            hold.blocks.push(Block { extent, need, tickets, answer: answer.clone() });
        }
        Ok(answer)
    }

    async fn settle(&self, id: Uuid, used: Usage) -> Result<(), CounterError> {
        let mut state = self.lock();
        let Some(hold) = state.holds.remove(&id) else {
            return Ok(());
        };
        let extents: Vec<Extent> = hold.blocks.iter().map(|block| block.extent).collect();
        for (block, spent) in hold.blocks.iter().zip(spend(&extents, used)) {
            for ((charge, counter), ticket) in hold.charges.iter().zip(&hold.counters).zip(&block.tickets) {
                let resource = charge.key.resource;
                let reserved = charged(&block.extent, &block.need, resource);
                let kept = charged(&spent, &Need::default(), resource);
                state.table.get(*counter).settle(*ticket, reserved, kept);
            }
        }
        state.remember(id);
        Ok(())
    }

    async fn peek(&self, charges: &[Charge]) -> Result<Vec<Count>, CounterError> {
        let mut state = self.lock();
        let now = self.now();
        Ok(charges
            .iter()
            .map(|charge| {
                state.table.find(&charge.key).map_or_else(Count::default, |counter| counter.count(charge.bounds, now))
            })
            .collect())
    }

    async fn probe(&self, charges: &[Charge], need: Need) -> Result<Reserved, CounterError> {
        let mut state = self.lock();
        let now = self.now();
        let counters: Vec<usize> = charges.iter().map(|charge| state.table.index(&charge.key)).collect();
        let mut tickets = Vec::with_capacity(counters.len());
        for (charge, counter) in charges.iter().zip(&counters) {
            tickets.push(state.table.get(*counter).ticket(charge.bounds, now));
        }
        let answer = state.table.check(charges, &counters, &tickets, need, now);
        state.sweep_if_due(now);
        Ok(answer)
    }

    async fn restore(&self, rows: Vec<Restored>) -> Result<(), CounterError> {
        let mut state = self.lock();
        for row in rows {
            let counter = state.table.index(&row.key);
            state.table.get(counter).restore(row.used, row.at_us, row.bounds);
        }
        Ok(())
    }
}

impl State {
    fn remember(&mut self, id: Uuid) {
        if self.settled.insert(id) {
            self.settled_order.push_back(id);
        }
        if self.settled_order.len() > REMEMBERED
            && let Some(oldest) = self.settled_order.pop_front()
        {
            self.settled.remove(&oldest);
        }
    }

    fn sweep_if_due(&mut self, now: Now) {
        if !self.table.is_sweep_due() {
            return;
        }
        let held: HashSet<usize> = self.holds.values().flat_map(|hold| hold.counters.iter().copied()).collect();
        self.table.sweep(&held, now);
    }
}

fn misused(operation: &'static str, message: &str) -> CounterError {
    CounterError { operation, message: message.into() }
}
