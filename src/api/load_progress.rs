//! How far a load is: written by the thread that loads, read by whoever asks.
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The phase of a load and the part of it that is done.
#[derive(Debug, Default)]
pub struct LoadProgress {
    phase: Mutex<Phase>,
    done_bytes: AtomicU64,
}

#[derive(Debug, Default)]
struct Phase {
    name: &'static str,
    total_bytes: Option<u64>,
}

impl LoadProgress {
    /// A load that waits for its turn.
    pub fn waiting() -> Self {
        Self { phase: Mutex::new(Phase { name: "waiting", total_bytes: None }), done_bytes: AtomicU64::new(0) }
    }

    /// Another phase begins, over after `total_bytes` where that is known.
    pub fn begin(&self, name: &'static str, total_bytes: Option<u64>) {
        let mut phase = self.lock();
        self.done_bytes.store(0, Ordering::Relaxed);
        *phase = Phase { name, total_bytes };
    }

    /// So many more bytes of the phase are done.
    pub fn advance(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The phase, and what is done of it from 0 to 1 where that is known.
    pub fn read(&self) -> (&'static str, Option<f64>) {
        let phase = self.lock();
        let done = self.done_bytes.load(Ordering::Relaxed);
        let share = phase.total_bytes.filter(|total| *total > 0).map(|total| done.min(total) as f64 / total as f64);
        // Three digits are plenty for a bar, and stay short in JSON.
        (phase.name, share.map(|share| (share * 1000.0).floor() / 1000.0))
    }

    fn lock(&self) -> MutexGuard<'_, Phase> {
        // One assignment under the lock: whole whatever happened elsewhere.
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_new_phase_begins_at_nothing_and_never_exceeds_the_whole() {
        let progress = LoadProgress::waiting();
        assert_eq!(progress.read(), ("waiting", None));
        progress.begin("download", Some(1000));
        progress.advance(333);
        assert_eq!(progress.read(), ("download", Some(0.333)));
        progress.advance(5000);
        assert_eq!(progress.read(), ("download", Some(1.0)));
        progress.begin("load", Some(0));
        assert_eq!(progress.read(), ("load", None));
    }
}
