//! The threads that share the work of one operation.
//!
//! A forward pass runs hundreds of operations a few microseconds apart, so idle threads spin for a moment before they
//! sleep, and an operation never waits for a sleeper: whoever is awake takes the parts.

use crate::Level;
use crate::turn::{Turn, Turnstile};
use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long an idle thread spins before it sleeps: longer than the gaps inside a step, far shorter than a step.
const SPIN: Duration = Duration::from_micros(50);

/// Set in [`Shared::state`] while a job may be entered; the bits below count the threads inside.
const OPEN: u64 = 1 << 15;
/// One job later; the job number sits above the open bit.
const NEXT_JOB: u64 = 1 << 16;

thread_local! {
    static IS_INSIDE_JOB: Cell<bool> = const { Cell::new(false) };
}

type Work<'a> = dyn Fn(usize) + Sync + 'a;

/// A fixed set of threads that work on one operation at a time.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    /// Passed before a job runs: callers from several threads take turns.
    turnstile: Turnstile,
    workers: Vec<JoinHandle<()>>,
    /// INVARIANT: this machine has it. Every call of a kernel relies on that.
    level: Level,
}

struct Shared {
    /// Job number, open bit, and how many workers are inside.
    state: AtomicU64,
    job: UnsafeCell<Option<Job>>,
    next_part: AtomicUsize,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    is_stopping: AtomicBool,
    num_sleepers: Mutex<usize>,
    wake: Condvar,
}

#[derive(Clone, Copy)]
struct Job {
    work: *const Work<'static>,
    parts: usize,
}

// SAFETY: `job` is written only by the caller whose turn it is while no worker is inside (open bit clear, count zero), and
// read only by workers counted inside; the state transitions order the two. The work behind the pointer is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; the raw pointer is only followed inside a job.
unsafe impl Send for Shared {}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Pool {
    /// Starts a pool of `threads` threads (at least one), the caller of [`Pool::run`] counted as one of them.
    pub fn new(threads: usize) -> Self {
        Self::with_level(threads, Level::of_this_machine()).expect("the level was just found on this machine")
    }

    /// As [`Pool::new`], with slower instructions than the machine has: for tests and comparisons. `None` when the
    /// machine lacks them.
    pub fn with_level(threads: usize, level: Level) -> Option<Self> {
        if !level.is_available() {
            return None;
        }
        let shared = Arc::new(Shared {
            state: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next_part: AtomicUsize::new(0),
            panic: Mutex::new(None),
            is_stopping: AtomicBool::new(false),
            num_sleepers: Mutex::new(0),
            wake: Condvar::new(),
        });
        let start = |index: usize| {
            let shared = Arc::clone(&shared);
            let body = move || shared.work_until_stopped();
            // A thread that cannot be started is no reason to fail: the others take its parts.
            std::thread::Builder::new().name(format!("kernel-{index}")).spawn(body).ok()
        };
        let workers = (1..threads.min(OPEN as usize)).map_while(start).collect();
        Some(Self { shared, turnstile: Turnstile::new(), workers, level })
    }

    /// Starts a pool with as many threads as this process may keep busy: its CPU affinity, and its cgroup's quota (both
    /// versions) rounded down.
    pub fn for_this_machine() -> Self {
        Self::new(std::thread::available_parallelism().map_or(1, NonZeroUsize::get))
    }

    /// The instruction set operations of this pool use.
    pub fn level(&self) -> Level {
        self.level
    }

    /// How many threads work on an operation.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Waits until no other thread uses the pool and keeps it for this one until the turn is dropped: a forward pass in one
    /// go is faster than two that take turns at every operation. Who waits longest is next.
    pub fn turn(&self) -> Turn<'_> {
        self.turnstile.enter()
    }

    /// Calls `work` once for every part `0..parts`, on all threads, and returns when every call has returned.
    ///
    /// Parts must not depend on each other. Called from within `work` it runs on the calling thread alone.
    ///
    /// Panics, once no thread works any more, with the first panic of a part; parts not yet begun are then dropped.
    pub fn run(&self, parts: usize, work: &Work<'_>) {
        if parts <= 1 || self.workers.is_empty() || IS_INSIDE_JOB.get() {
            (0..parts).for_each(work);
            return;
        }
        let turn = self.turn();
        self.shared.run(parts, work);
        let panic = locked(&self.shared.panic).take();
        drop(turn);
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.is_stopping.store(true, Ordering::SeqCst);
        drop(locked(&self.shared.num_sleepers));
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            // A worker catches the panics of parts, so an error here could only be one already reported.
            let _ = worker.join();
        }
    }
}

impl Shared {
    fn run(&self, parts: usize, work: &Work<'_>) {
        // SAFETY: only the lifetime is erased; this function returns after every thread has left the job.
        let work = unsafe { std::mem::transmute::<*const Work<'_>, *const Work<'static>>(work) };
        let job = Job { work, parts };
        // SAFETY: the job is closed and nobody is inside (end of the last call), and callers take turns.
        unsafe { *self.job.get() = Some(job) };
        self.next_part.store(0, Ordering::Relaxed);
        // INVARIANT: the count is zero here, so the sum is exactly the next job number with the open bit.
        self.state.fetch_add(NEXT_JOB | OPEN, Ordering::SeqCst);
        if *locked(&self.num_sleepers) > 0 {
            self.wake.notify_all();
        }
        self.take_parts(job);
        self.state.fetch_and(!OPEN, Ordering::SeqCst);
        let mut spins = 0u32;
        while self.state.load(Ordering::Acquire) & (OPEN - 1) != 0 {
            // The last parts end within microseconds, unless the system took a worker's core away: then give ours up.
            spins += 1;
            if spins > 10_000 { std::thread::yield_now() } else { std::hint::spin_loop() }
        }
    }

    fn take_parts(&self, job: Job) {
        IS_INSIDE_JOB.set(true);
        // SAFETY: this thread is inside the job, whose caller keeps the work alive until everybody has left.
        let work = unsafe { &*job.work };
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let part = self.next_part.fetch_add(1, Ordering::Relaxed);
                if part >= job.parts {
                    break;
                }
                work(part);
            }
        }));
        IS_INSIDE_JOB.set(false);
        if let Err(panic) = result {
            self.next_part.store(job.parts, Ordering::Relaxed);
            locked(&self.panic).get_or_insert(panic);
        }
    }

    fn work_until_stopped(&self) {
        let mut last_job = 0;
        while let Some(job) = self.wait_for_job_after(last_job) {
            last_job = job;
            // SAFETY: `enter` counted this thread inside, so the caller neither returns nor writes the job.
            let job = unsafe { *self.job.get() }.expect("an open job was written before it was opened");
            self.take_parts(job);
            self.state.fetch_sub(1, Ordering::Release);
        }
    }

    /// Spins, then sleeps, until a job other than `last` is open, and enters it. `None` when the pool is dropped.
    fn wait_for_job_after(&self, last: u64) -> Option<u64> {
        let start = Instant::now();
        loop {
            for _ in 0..64 {
                if let Some(job) = self.enter_job_after(last) {
                    return Some(job);
                }
                std::hint::spin_loop();
            }
            if self.is_stopping.load(Ordering::SeqCst) {
                return None;
            }
            if start.elapsed() > SPIN {
                break;
            }
        }
        let mut num_sleepers = locked(&self.num_sleepers);
        *num_sleepers += 1;
        loop {
            // Checked under the lock the caller takes after opening a job: either we see the job, or it sees us.
            let entered = self.enter_job_after(last);
            if entered.is_some() || self.is_stopping.load(Ordering::SeqCst) {
                *num_sleepers -= 1;
                return entered;
            }
            num_sleepers = self.wake.wait(num_sleepers).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn enter_job_after(&self, last: u64) -> Option<u64> {
        let mut state = self.state.load(Ordering::Relaxed);
        loop {
            let job = state / NEXT_JOB;
            if state & OPEN == 0 || job == last {
                return None;
            }
            match self.state.compare_exchange_weak(state, state + 1, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(job),
                Err(now) => state = now,
            }
        }
    }
}

/// Locks, also after a panic elsewhere: what these locks guard is consistent at every moment.
fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_part_runs_exactly_once() {
        for threads in 1..=4 {
            let pool = Pool::new(threads);
            for parts in [0, 1, 2, 3, 7, 100] {
                let counts: Vec<AtomicUsize> = (0..parts).map(|_| AtomicUsize::new(0)).collect();
                pool.run(parts, &|part| {
                    counts[part].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|c| c.load(Ordering::Relaxed) == 1), "{threads} threads, {parts} parts");
            }
        }
    }

    #[test]
    fn a_panic_in_a_part_reaches_the_caller_and_the_pool_goes_on() {
        let pool = Pool::new(3);
        for bad in [0, 50, 99] {
            let run = || pool.run(100, &|part| assert!(part != bad, "part {bad} is bad"));
            let panic = catch_unwind(AssertUnwindSafe(run)).unwrap_err();
            assert_eq!(panic.downcast_ref::<String>().unwrap(), &format!("part {bad} is bad"));
            let count = AtomicUsize::new(0);
            pool.run(10, &|_| {
                count.fetch_add(1, Ordering::Relaxed);
            });
            assert_eq!(count.into_inner(), 10);
        }
    }

    #[test]
    fn callers_from_several_threads_take_turns() {
        let pool = Pool::new(2);
        let total = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..500 {
                        let mine = AtomicUsize::new(0);
                        pool.run(3, &|part| {
                            mine.fetch_add(part + 1, Ordering::Relaxed);
                        });
                        total.fetch_add(mine.into_inner(), Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 500 * 6);
    }

    #[test]
    fn a_run_inside_a_run_uses_the_calling_thread() {
        let pool = Pool::new(2);
        let count = AtomicUsize::new(0);
        pool.run(4, &|_| {
            let me = std::thread::current().id();
            pool.run(5, &|_| {
                assert_eq!(std::thread::current().id(), me);
                count.fetch_add(1, Ordering::Relaxed);
            });
        });
        assert_eq!(count.into_inner(), 20);
    }
}
