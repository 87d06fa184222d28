//! Where the server is in its life, and the tasks that must end before it may.
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use tokio_util::task::TaskTracker;

const STARTING: u8 = 0;
const READY: u8 = 1;
const DRAINING: u8 = 2;

/// Starting, then ready, then draining; shared by everything that asks.
#[derive(Debug)]
pub struct Lifecycle {
    phase: AtomicU8,
    generations: TaskTracker,
}

impl Default for Lifecycle {
    fn default() -> Self {
        Self { phase: AtomicU8::new(STARTING), generations: TaskTracker::new() }
    }
}

impl Lifecycle {
    /// Start-up is over: stores are open and at least one model answers. Without effect while draining.
    pub fn set_ready(&self) {
        let _ = self.phase.compare_exchange(STARTING, READY, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Refuses new work from now on; what is running goes on.
    pub fn start_draining(&self) {
        self.phase.store(DRAINING, Ordering::Release);
        self.generations.close();
    }

    /// Waits until every generation is settled, at most `longest`. Tells whether all are.
    pub async fn drained(&self, longest: Duration) -> bool {
        tokio::time::timeout(longest, self.generations.wait()).await.is_ok()
    }

    /// Whether the server takes work from the outside's point of view.
    pub fn is_ready(&self) -> bool {
        self.phase.load(Ordering::Acquire) == READY
    }

    /// Whether new work is refused.
    pub fn is_draining(&self) -> bool {
        self.phase.load(Ordering::Acquire) == DRAINING
    }

    /// The generations under way, which outlive the connections that asked for them.
    pub(crate) fn generations(&self) -> &TaskTracker {
        &self.generations
    }
}
