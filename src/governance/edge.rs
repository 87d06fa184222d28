//! What is bounded before any limit of a tier: failed credentials by source, so that guessing is slow while a credential that
//! is right always passes, and changes that users make to their own keys and tokens.

use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::Duration;

use ::governor::clock::Clock as GcraClock;
use ::governor::middleware::NoOpMiddleware;
use ::governor::nanos::Nanos;
use ::governor::state::keyed::DashMapStateStore;
use ::governor::{Quota, RateLimiter};

use super::clock::Clock;

/// Our clock in the form the `governor` crate reads.
#[derive(Clone)]
struct Steady(Arc<dyn Clock>);

impl GcraClock for Steady {
    type Instant = Nanos;

    fn now(&self) -> Nanos {
        let us = u64::try_from(self.0.steady_us()).unwrap_or(0);
        Nanos::from(Duration::from_micros(us))
    }
}

/// Counts what each of many does in a minute.
pub(super) struct Guard<K: Hash + Eq + Clone> {
    clock: Steady,
    limiter: RateLimiter<K, DashMapStateStore<K>, Steady, NoOpMiddleware<Nanos>>,
}

/// Counts failed credentials by source.
pub(super) type FailureGuard = Guard<IpAddr>;

impl<K: Hash + Eq + Clone> Guard<K> {
    /// Allows so much a minute and key, at least one.
    pub(super) fn new(per_minute: u32, clock: Arc<dyn Clock>) -> Self {
        let quota = Quota::per_minute(NonZeroU32::new(per_minute).unwrap_or(NonZeroU32::MIN));
        let clock = Steady(clock);
        Self { limiter: RateLimiter::dashmap_with_clock(quota, clock.clone()), clock }
    }

    /// Counts one.
    ///
    /// # Errors
    /// The time to wait, when it is one too many.
    pub(super) fn note(&self, key: &K) -> Result<(), Duration> {
        self.limiter.check_key(key).map_err(|not_until| not_until.wait_time_from(self.clock.now()))
    }

    /// Forgets those that have been quiet; called now and then, so that memory stays bounded.
    pub(super) fn forget_quiet(&self) {
        self.limiter.retain_recent();
    }
}

impl FailureGuard {
    /// Counts one failure.
    ///
    /// # Errors
    /// The time to wait, when the source has failed too often.
    pub(super) fn failed(&self, source: IpAddr) -> Result<(), Duration> {
        self.note(&network(source))
    }
}

/// An IPv6 subscriber owns a /64 and would otherwise have endless sources.
fn network(source: IpAddr) -> IpAddr {
    match source {
        IpAddr::V4(_) => source,
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => {
                let [a, b, c, d, ..] = v6.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::governance::clock::ManualClock;

    fn failures(guard: &FailureGuard, source: &str, times: u32) -> u32 {
        let source = source.parse().expect("address");
        (0..times).map(|_| u32::from(guard.failed(source).is_ok())).sum()
    }

    #[test]
    fn a_source_may_fail_so_often_a_minute_and_others_are_not_concerned() {
        let clock = Arc::new(ManualClock::at(1_000_000_000_000_000));
        let guard = FailureGuard::new(120, clock.clone());
        assert_eq!(failures(&guard, "192.0.2.1", 200), 120);
        assert_eq!(failures(&guard, "192.0.2.2", 10), 10);
        let wait = guard.failed("192.0.2.1".parse().expect("address")).expect_err("throttled");
        assert!(wait <= Duration::from_millis(500), "{wait:?}");
        clock.advance(wait);
        assert_eq!(failures(&guard, "192.0.2.1", 5), 1);
    }

    #[test]
    fn an_ipv6_network_is_one_source_and_a_mapped_address_is_the_ipv4_one() {
        let guard = FailureGuard::new(10, Arc::new(ManualClock::at(1_000_000_000_000_000)));
        assert_eq!(failures(&guard, "2001:db8::1", 6) + failures(&guard, "2001:db8::ffff:2", 6), 10);
        assert_eq!(failures(&guard, "2001:db8:0:1::1", 6), 6);
        assert_eq!(failures(&guard, "::ffff:192.0.2.9", 6) + failures(&guard, "192.0.2.9", 6), 10);
    }
}
