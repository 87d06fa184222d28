//! Where a replay is played: empty counters, and a clock that shows the time of the event at hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use crate::governance::clock::Clock;
use crate::governance::ports::Counters;

/// A clock that shows what it was last set to.
#[derive(Debug, Default)]
pub struct ReplayClock {
    wall_us: AtomicI64,
    steady_us: AtomicI64,
}

impl ReplayClock {
    /// Sets both clocks: calendar periods go by the wall clock, windows by the steady one.
    pub(super) fn set(&self, wall_us: i64, steady_us: i64) {
        self.wall_us.store(wall_us, Ordering::SeqCst);
        self.steady_us.store(steady_us, Ordering::SeqCst);
    }
}

impl Clock for ReplayClock {
    fn now_us(&self) -> i64 {
        self.wall_us.load(Ordering::SeqCst)
    }

    fn steady_us(&self) -> i64 {
        self.steady_us.load(Ordering::SeqCst)
    }
}

/// Empty counters with the clock they go by; one for each replay.
#[derive(Clone)]
pub struct Stage {
    pub(super) clock: Arc<ReplayClock>,
    pub(super) counters: Arc<dyn Counters>,
}

impl Stage {
    /// Counters made by `make` from the clock that the replay will set.
    pub fn new(make: impl FnOnce(Arc<dyn Clock>) -> Arc<dyn Counters>) -> Self {
        let clock = Arc::new(ReplayClock::default());
        Self { counters: make(clock.clone()), clock }
    }
}

impl std::fmt::Debug for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Stage").finish_non_exhaustive()
    }
}
