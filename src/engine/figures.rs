//! What an engine shows of itself: its thread writes and anybody reads without a lock, so that a scrape every few milliseconds
//! never stands in its way.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use arc_swap::ArcSwap;

use super::handle::EngineTotals;
use crate::telemetry::Histogram;

/// Upper bounds of the histogram of tokens a step, as vLLM has them.
const STEP_TOKENS: &[f64] = &[1.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0, 1024.0, 2048.0, 4096.0, 8192.0, 16384.0];

/// The figures of one engine.
#[derive(Debug)]
pub(crate) struct Figures {
    totals: ArcSwap<EngineTotals>,
    queued: AtomicUsize,
    open: AtomicUsize,
    is_draining: AtomicBool,
    is_stopped: AtomicBool,
    fault: OnceLock<String>,
    step_tokens: Histogram,
}

/// The figures of one moment.
#[derive(Debug, Clone)]
pub(crate) struct Glance {
    pub(crate) totals: EngineTotals,
    pub(crate) open: usize,
    pub(crate) is_draining: bool,
    pub(crate) is_stopped: bool,
    pub(crate) fault: Option<String>,
}

impl Figures {
    pub(crate) fn new() -> Self {
        Self {
            totals: ArcSwap::default(),
            queued: AtomicUsize::new(0),
            open: AtomicUsize::new(0),
            is_draining: AtomicBool::new(false),
            is_stopped: AtomicBool::new(false),
            fault: OnceLock::new(),
            step_tokens: Histogram::new(STEP_TOKENS),
        }
    }

    /// Shows the totals of a step.
    pub(crate) fn publish(&self, totals: EngineTotals) {
        self.totals.store(totals.into());
    }

    /// Shows how many requests wait in the bounded queue, and how many have no terminal event.
    pub(crate) fn count(&self, queued: usize, open: usize) {
        self.queued.store(queued, Ordering::Relaxed);
        self.open.store(open, Ordering::Relaxed);
    }

    /// Shows that new requests are refused.
    pub(crate) fn drain(&self) {
        self.is_draining.store(true, Ordering::Relaxed);
    }

    /// Shows that the thread has ended.
    pub(crate) fn stop(&self) {
        self.is_stopped.store(true, Ordering::Release);
    }

    /// Keeps the first fault.
    pub(crate) fn report_fault(&self, fault: String) {
        // A later one is a consequence of the first.
        let _ = self.fault.set(fault);
    }

    /// Sequence rows of each step: how full the batches are.
    pub(crate) fn step_tokens(&self) -> &Histogram {
        &self.step_tokens
    }

    /// All figures of this moment.
    pub(crate) fn glance(&self) -> Glance {
        let queued_requests = self.queued.load(Ordering::Relaxed);
        Glance {
            totals: EngineTotals { queued_requests, ..**self.totals.load() },
            open: self.open.load(Ordering::Relaxed),
            is_draining: self.is_draining.load(Ordering::Relaxed),
            is_stopped: self.is_stopped.load(Ordering::Acquire),
            fault: self.fault.get().cloned(),
        }
    }
}
