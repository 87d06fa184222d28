//! Accounts: all counters of one subject behind one lock, and several accounts locked together for one decision.
//!
//! Lock order: a shard of the map is never locked together with an account, save while it sweeps accounts that nobody else
//! can reach; accounts are locked in the order of their addresses, which do not change while somebody holds them.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::sync::Arc;

use foldhash::fast::FixedState;
use smallvec::SmallVec;

use crate::governance::calendar::Bounds;
use crate::governance::ports::{Charge, Count, CounterKey, Need, Refusing, Retry, Subject};

use super::counter::{Counter, Now, Ticket};
use super::sync::{Mutex, MutexGuard, lock};

/// The counters of one subject. A counter's place never changes while the account lives.
#[derive(Debug, Default)]
pub(super) struct Account {
    counters: Vec<(CounterKey, Counter)>,
}

/// As many as an admission usually concerns; more are kept on the heap.
pub(super) type Few<T> = SmallVec<[T; 2]>;
/// As many as an admission usually charges.
pub(super) type Several<T> = SmallVec<[T; 8]>;

/// An account as decisions share it.
pub(super) type Shared = Arc<Mutex<Account>>;

impl Account {
    /// The place of a counter, made if need be; `guess` is where it likely is.
    fn place(&mut self, key: &CounterKey, guess: usize) -> usize {
        if self.counters.get(guess).is_some_and(|(there, _)| there == key) {
            return guess;
        }
        self.find(key).unwrap_or_else(|| {
            self.counters.push((key.clone(), Counter::new(&key.window)));
            self.counters.len() - 1
        })
    }

    fn find(&self, key: &CounterKey) -> Option<usize> {
        self.counters.iter().position(|(there, _)| there == key)
    }

    fn is_idle(&mut self, now: Now) -> bool {
        self.counters.iter_mut().all(|(_, counter)| counter.is_idle(now))
    }
}

/// Where one charge is counted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seat {
    /// Index into the accounts that are locked together.
    account: u32,
    counter: u32,
    pub(super) ticket: Ticket,
}

/// The accounts that one list of charges concerns, each once, in the order in which they are locked.
#[derive(Debug, Clone)]
pub(super) struct Parties(Few<Shared>);

impl Parties {
    pub(super) fn lock(&self) -> Locked<'_> {
        Locked(self.0.iter().map(|account| lock(account)).collect())
    }
}

/// Accounts locked together: what is decided about them is decided at one moment.
pub(super) struct Locked<'a>(Few<MutexGuard<'a, Account>>);

impl Locked<'_> {
    fn counter(&mut self, seat: &Seat) -> &mut Counter {
        &mut self.0[seat.account as usize].counters[seat.counter as usize].1
    }

    /// Finds the counter of each charge and the place in it where a charge made now would be counted.
    pub(super) fn seats(&mut self, charges: &[Charge], accounts: &[usize], now: Now) -> Several<Seat> {
        let mut seats = Several::with_capacity(charges.len());
        for (guess, (charge, account)) in charges.iter().zip(accounts).enumerate() {
            let there = &mut self.0[*account];
            let counter = there.place(&charge.key, guess);
            let ticket = there.counters[counter].1.ticket(charge.bounds, now);
            let place = |index: usize| u32::try_from(index).expect("a request charges few counters");
            seats.push(Seat { account: place(*account), counter: place(counter), ticket });
        }
        seats
    }

    /// Whether all charges would pass, and with how many completion tokens.
    ///
    /// # Errors
    /// Every charge that would not.
    pub(super) fn check(
        &mut self,
        charges: &[Charge],
        seats: &[Seat],
        need: Need,
        now: Now,
    ) -> Result<u64, Vec<Refusing>> {
        let mut refusing = Vec::new();
        let mut most = need.completion_most;
        for (index, (charge, seat)) in charges.iter().zip(seats).enumerate() {
            let Some(amount) = charge.hard else { continue };
            let resource = charge.key.resource;
            if need.charged(resource, need.completion_most) == 0 {
                // It takes nothing here: a counter that was filled under a higher amount is not its business.
                continue;
            }
            let least = need.charged(resource, need.completion_least);
            let counter = self.counter(seat);
            let total = counter.total(seat.ticket, now);
            let refused = if least > amount {
                Some(Retry::Never)
            } else if total > amount - least {
                Some(counter.retry(seat.ticket, least, amount, now))
            } else {
                None
            };
            match refused {
                Some(retry) => refusing.push(Refusing { charge: index, requested: least, retry }),
                None if need.is_elastic(resource) => most = most.min(need.affordable_tokens(resource, amount - total)),
                None => {}
            }
        }
        if refusing.is_empty() { Ok(most) } else { Err(refusing) }
    }

    /// Counts what [`Locked::check`] has allowed, as held.
    pub(super) fn hold(&mut self, charges: &[Charge], seats: &mut [Seat], need: Need, completion: u64, now: Now) {
        for (charge, seat) in charges.iter().zip(seats) {
            let amount = need.charged(charge.key.resource, completion);
            let mut ticket = seat.ticket;
            self.counter(seat).hold(&mut ticket, amount, now);
            seat.ticket = ticket;
        }
    }

    /// Ends the hold of one charge: of `reserved`, `kept` stays counted.
    pub(super) fn settle(&mut self, seat: &Seat, reserved: u64, kept: u64) {
        self.counter(seat).settle(seat.ticket, reserved, kept);
    }

    /// Puts back what was used before.
    pub(super) fn restore(&mut self, seat: &Seat, used: u64, at_us: i64, bounds: Option<Bounds>) {
        self.counter(seat).restore(used, at_us, bounds);
    }

    /// Where each charge's counter stands.
    pub(super) fn counts(&mut self, charges: &[Charge], seats: &[Seat], now: Now) -> Arc<[Count]> {
        charges.iter().zip(seats).map(|(charge, seat)| self.counter(seat).count(charge.bounds, now)).collect()
    }
}

/// Shards of a map: enough that two threads seldom meet.
pub(super) const SHARDS: usize = 16;
/// The fewest accounts of a shard worth looking through for idle ones; few in unit tests, so that they see it happen.
const SWEEP_MIN: usize = if cfg!(test) { 2 } else { 64 };

/// Without a secret: subjects are ids that we make ourselves, and interleavings can then be tried again.
pub(super) type Hashing = FixedState;

#[derive(Default)]
struct Shard {
    accounts: HashMap<Subject, Shared, Hashing>,
    sweep_at: usize,
}

/// Every account, by subject.
#[derive(Default)]
pub(super) struct Accounts {
    shards: [Mutex<Shard>; SHARDS],
    hasher: Hashing,
}

impl Accounts {
    /// The accounts of some charges, made if need be, and for each charge which of them is its own.
    pub(super) fn of(&self, charges: &[Charge], now: impl Fn() -> Now) -> (Parties, Several<usize>) {
        let mut parties: Few<Shared> = Few::new();
        let mut subjects: Few<&Subject> = Few::new();
        let mut own = Several::with_capacity(charges.len());
        for charge in charges {
            let subject = &charge.key.subject;
            own.push(subjects.iter().position(|known| *known == subject).unwrap_or_else(|| {
                subjects.push(subject);
                parties.push(self.account(subject, &now));
                subjects.len() - 1
            }));
        }
        if parties.len() > 1 {
            let mut order: Few<usize> = (0..parties.len()).collect();
            order.sort_unstable_by_key(|index| Arc::as_ptr(&parties[*index]));
            let rank = |index: usize| order.iter().position(|there| *there == index).unwrap_or(index);
            own.iter_mut().for_each(|index| *index = rank(*index));
            parties.sort_unstable_by_key(Arc::as_ptr);
        }
        (Parties(parties), own)
    }

    /// The count of one charge; nothing is made for it.
    pub(super) fn count(&self, charge: &Charge, now: impl Fn() -> Now) -> Count {
        let account = lock(self.shard(&charge.key.subject)).accounts.get(&charge.key.subject).cloned();
        let mut account = account.as_ref().map(|account| lock(account));
        // Read under the lock, as by every decision.
        let now = now();
        match account.as_mut().and_then(|account| account.find(&charge.key).map(|place| (account, place))) {
            Some((account, place)) => account.counters[place].1.count(charge.bounds, now),
            None => Counter::new(&charge.key.window).count(charge.bounds, now),
        }
    }

    fn account(&self, subject: &Subject, now: impl Fn() -> Now) -> Shared {
        let mut shard = lock(self.shard(subject));
        if let Some(account) = shard.accounts.get(subject) {
            return account.clone();
        }
        shard.sweep_if_due(now());
        shard.accounts.entry(subject.clone()).or_default().clone()
    }

    fn shard(&self, subject: &Subject) -> &Mutex<Shard> {
        let hash = usize::try_from(self.hasher.hash_one(subject) % SHARDS as u64).unwrap_or(0);
        &self.shards[hash]
    }

    pub(super) fn len(&self) -> usize {
        self.shards.iter().map(|shard| lock(shard).accounts.len()).sum()
    }
}

impl Shard {
    /// Forgets idle accounts. Looking for them costs as much as making them did: amortised constant.
    fn sweep_if_due(&mut self, now: Now) {
        if self.accounts.len() < self.sweep_at.max(SWEEP_MIN) {
            return;
        }
        // An account that an open reservation or a decision under way refers to is counted more than once, and no other
        // reference can come into being while the shard is locked.
        self.accounts.retain(|_, account| Arc::strong_count(account) > 1 || !lock(account).is_idle(now));
        self.sweep_at = self.accounts.len() * 2;
    }
}
