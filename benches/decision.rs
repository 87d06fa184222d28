//! Measures decisions: how long single ones take, and how many of them several threads make in a second.

use std::sync::Barrier;
use std::time::{Duration, Instant};

/// Somebody who decides about requests, on one thread.
pub(crate) trait Decider: Send {
    /// One decision, let in or not.
    fn decide(&mut self);
    /// Ends the request that was let in, untimed where single decisions are timed.
    fn finish(&mut self);
}

/// Times of single decisions and the rate of whole rounds (decide and finish).
#[derive(Debug, Clone, Copy)]
pub(crate) struct Speed {
    /// Half of the decisions take no longer.
    pub(crate) p50: Duration,
    /// 99 of 100 take no longer.
    pub(crate) p99: Duration,
    /// 999 of 1000 take no longer.
    pub(crate) p999: Duration,
    /// Rounds a second, over all threads.
    pub(crate) rounds_per_second: f64,
}

/// Counts by time: sixteen classes for each doubling, so a class is at most 6 % wide.
struct Histogram(Vec<u64>);

impl Histogram {
    fn new() -> Self {
        Self(vec![0; 64 * 16])
    }

    fn class(nanos: u64) -> usize {
        let doubling = 63 - (nanos | 16).leading_zeros() as usize;
        doubling * 16 + ((nanos >> (doubling - 4)) & 15) as usize
    }

    fn add(&mut self, time: Duration) {
        self.0[Self::class(time.as_nanos() as u64)] += 1;
    }

    /// The upper end of the class that holds this quantile.
    fn quantile(&self, share: f64) -> Duration {
        let total: u64 = self.0.iter().sum();
        let wanted = (total as f64 * share).ceil() as u64;
        let mut seen = 0;
        let found = self.0.iter().position(|count| {
            seen += count;
            seen >= wanted
        });
        let class = found.unwrap_or(self.0.len() - 1);
        let (doubling, part) = (class / 16, class % 16);
        Duration::from_nanos(((16 + part as u64 + 1) << doubling) >> 4)
    }
}

/// Lets every decider run on a thread of its own, all at once: first to time single decisions, then for the rate.
pub(crate) fn measure(mut deciders: Vec<Box<dyn Decider>>, length: Duration) -> Speed {
    let mut all = Histogram::new();
    let timed = at_once(&mut deciders, |decider| {
        let mut times = Histogram::new();
        let end = Instant::now() + length;
        loop {
            let start = Instant::now();
            if start >= end {
                return times;
            }
            decider.decide();
            times.add(start.elapsed());
            decider.finish();
        }
    });
    for times in timed {
        all.0.iter_mut().zip(times.0).for_each(|(sum, count)| *sum += count);
    }
    let rates = at_once(&mut deciders, |decider| {
        let start = Instant::now();
        let mut rounds = 0u64;
        while start.elapsed() < length {
            for _ in 0..64 {
                decider.decide();
                decider.finish();
            }
            rounds += 64;
        }
        rounds as f64 / start.elapsed().as_secs_f64()
    });
    Speed {
        p50: all.quantile(0.5),
        p99: all.quantile(0.99),
        p999: all.quantile(0.999),
        rounds_per_second: rates.iter().sum(),
    }
}

fn at_once<T: Send>(deciders: &mut [Box<dyn Decider>], run: impl Fn(&mut dyn Decider) -> T + Sync) -> Vec<T> {
    let barrier = Barrier::new(deciders.len());
    std::thread::scope(|scope| {
        let threads: Vec<_> = deciders
            .iter_mut()
            .map(|decider| {
                let (barrier, run) = (&barrier, &run);
                scope.spawn(move || {
                    barrier.wait();
                    run(decider.as_mut())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no decider panics")).collect()
    })
}
