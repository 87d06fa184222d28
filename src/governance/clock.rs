//! What time it is: the machine's clock in production, a hand-moved one in tests.
//!
//! Governance never calls the operating system for the time; it asks a [`Clock`], so that a test can stand exactly one
//! microsecond before a window frees.

use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A source of time in microseconds since the Unix epoch.
pub trait Clock: Send + Sync + 'static {
    /// The wall clock; it may jump when an operator or NTP corrects it.
    fn now_us(&self) -> i64;

    /// The wall clock as it was at start plus the time that has really passed since; it never jumps and never goes back.
    ///
    /// Rate windows count by it, so that setting the machine's clock neither frees nor freezes a limit.
    fn steady_us(&self) -> i64;
}

/// The machine's own clocks.
#[derive(Debug)]
pub struct SystemClock {
    started: Instant,
    started_us: i64,
}

impl SystemClock {
    /// Reads both clocks once and ties them together.
    pub fn new() -> Self {
        Self { started: Instant::now(), started_us: wall_us() }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    fn now_us(&self) -> i64 {
        wall_us()
    }

    fn steady_us(&self) -> i64 {
        self.started_us.saturating_add(micros(self.started.elapsed()))
    }
}

#[expect(clippy::disallowed_methods, reason = "this is the clock everybody else asks")]
fn wall_us() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, micros)
}

/// A duration in whole microseconds; durations beyond 292,000 years saturate.
pub fn micros(length: Duration) -> i64 {
    // Without 128-bit division: this is asked several times on every request.
    let seconds = i64::try_from(length.as_secs()).unwrap_or(i64::MAX);
    seconds.saturating_mul(1_000_000).saturating_add(i64::from(length.subsec_micros()))
}

/// A clock that moves only when told to, for tests.
#[derive(Debug)]
pub struct ManualClock {
    wall_us: AtomicI64,
    steady_us: AtomicI64,
}

impl ManualClock {
    /// Stands still at `now_us`, microseconds since the Unix epoch.
    pub fn at(now_us: i64) -> Self {
        Self { wall_us: AtomicI64::new(now_us), steady_us: AtomicI64::new(now_us) }
    }

    /// Lets time pass on both clocks.
    pub fn advance(&self, by: Duration) {
        self.advance_us(micros(by));
    }

    /// Lets `by_us` microseconds pass on both clocks.
    pub fn advance_us(&self, by_us: i64) {
        self.wall_us.fetch_add(by_us, Ordering::SeqCst);
        self.steady_us.fetch_add(by_us, Ordering::SeqCst);
    }

    /// Sets the wall clock alone, as an operator would; no time passes.
    pub fn jump_wall_us(&self, by_us: i64) {
        self.wall_us.fetch_add(by_us, Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn now_us(&self) -> i64 {
        self.wall_us.load(Ordering::SeqCst)
    }

    fn steady_us(&self) -> i64 {
        self.steady_us.load(Ordering::SeqCst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_jump_of_the_wall_clock_leaves_the_steady_clock_alone() {
        let clock = ManualClock::at(1_000);
        clock.jump_wall_us(-3_600_000_000);
        clock.advance(Duration::from_micros(5));
        assert_eq!(clock.steady_us(), 1_005);
        assert_eq!(clock.now_us(), 1_005 - 3_600_000_000);
    }

    #[test]
    fn the_system_clocks_start_together_and_only_go_forward() {
        let clock = SystemClock::new();
        let (wall, steady) = (clock.now_us(), clock.steady_us());
        assert!((wall - steady).abs() < 1_000_000);
        assert!(clock.steady_us() >= steady);
    }
}
