//! The heartbeat of the engine thread: the one thing outside the worker that looks at the clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// When the engine thread was last seen alive.
#[derive(Debug)]
pub(crate) struct Pulse {
    born: Instant,
    last_beat_ms: AtomicU64,
}

impl Pulse {
    pub(crate) fn new() -> Self {
        Self { born: Instant::now(), last_beat_ms: AtomicU64::new(0) }
    }

    /// Called by the thread before each step and about once a second when idle.
    pub(crate) fn beat(&self) {
        let since_birth = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_beat_ms.store(since_birth, Ordering::Release);
    }

    /// Time since the last beat.
    pub(crate) fn age(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.last_beat_ms.load(Ordering::Acquire)))
    }
}
