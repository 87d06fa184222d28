//! Turns on the thread pool: callers are let in one after the other, in the order in which they came.
//!
//! A plain lock lets the thread that has just given it up take it again before a sleeper wakes. Two models that run
//! hundreds of operations a step would so shut each other out for as long as one of them has work.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

thread_local! {
    /// The turnstiles that this thread is inside of.
    static INSIDE: RefCell<Vec<u64>> = const { RefCell::new(Vec::new()) };
}

/// Lets one thread in at a time.
#[derive(Debug)]
pub(crate) struct Turnstile {
    /// Unlike that of any other, also of one that is gone: what a thread remembers must not be taken for another's.
    id: u64,
    queue: Mutex<Queue>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct Queue {
    /// The number that the next caller gets.
    next: u64,
    /// The number that is inside, or may go in.
    serving: u64,
}

/// The right to use the pool until it is dropped; it belongs to the thread that got it.
#[derive(Debug)]
#[must_use = "the turn ends when it is dropped"]
pub struct Turn<'a> {
    turnstile: &'a Turnstile,
    /// False inside another turn of the same thread, which goes on when this one ends.
    is_outermost: bool,
    /// What a thread remembers of its turns does not follow them to another thread.
    stays_on_its_thread: PhantomData<*const ()>,
}

impl Turnstile {
    pub(crate) fn new() -> Self {
        static NEXT_ID: AtomicU64 = AtomicU64::new(0);
        let id = NEXT_ID.fetch_add(1, Ordering::Relaxed);
        Self { id, queue: Mutex::default(), moved: Condvar::new() }
    }

    /// Waits for this thread's turn; at once inside a turn that it has already.
    ///
    /// INVARIANT: of all threads, at most one is between the return of this function and the drop of an outermost turn.
    pub(crate) fn enter(&self) -> Turn<'_> {
        let is_outermost = !INSIDE.with_borrow(|inside| inside.contains(&self.id));
        if is_outermost {
            let mut queue = self.queue();
            let mine = queue.next;
            queue.next += 1;
            while queue.serving != mine {
                queue = self.moved.wait(queue).unwrap_or_else(PoisonError::into_inner);
            }
            drop(queue);
            INSIDE.with_borrow_mut(|inside| inside.push(self.id));
        }
        Turn { turnstile: self, is_outermost, stays_on_its_thread: PhantomData }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        // Each change under the lock is complete before anything can panic.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        if self.is_outermost {
            INSIDE.with_borrow_mut(|inside| inside.retain(|&id| id != self.turnstile.id));
            self.turnstile.queue().serving += 1;
            self.turnstile.moved.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Waits until so many threads have asked for a turn, the one inside counted.
    fn await_callers(turnstile: &Turnstile, count: u64) {
        let waiting = || {
            let queue = turnstile.queue();
            queue.next - queue.serving
        };
        while waiting() < count {
            std::thread::yield_now();
        }
    }

    #[test]
    fn who_asks_again_at_once_goes_behind_those_who_wait() {
        let turnstile = Turnstile::new();
        let order = Mutex::new(Vec::new());
        let visit = |name: &'static str| {
            let _turn = turnstile.enter();
            order.lock().unwrap().push(name);
        };
        std::thread::scope(|scope| {
            let turn = turnstile.enter();
            scope.spawn(|| visit("second"));
            await_callers(&turnstile, 2);
            scope.spawn(|| visit("third"));
            await_callers(&turnstile, 3);
            drop(turn);
            visit("first, again");
        });
        assert_eq!(order.into_inner().unwrap(), ["second", "third", "first, again"]);
    }

    #[test]
    fn a_turn_inside_a_turn_does_not_wait_and_does_not_end_it() {
        let (turnstile, other) = (Turnstile::new(), Turnstile::new());
        let outer = turnstile.enter();
        drop(turnstile.enter());
        drop(other.enter());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(turnstile.enter()));
            await_callers(&turnstile, 2);
            assert!(!waiting.is_finished());
            drop(turnstile.enter());
            drop(outer);
        });
        let queue = turnstile.queue();
        assert_eq!((queue.next, queue.serving), (2, 2));
    }
}
