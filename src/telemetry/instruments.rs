//! Counters, gauges and histograms made of atomics: nobody who counts ever waits for somebody who reads, or the reverse.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds one.
    pub fn inc(&self) {
        self.add(1);
    }

    /// Adds some.
    pub fn add(&self, more: u64) {
        self.0.fetch_add(more, Ordering::Relaxed);
    }

    /// The number so far.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A number that goes up and down.
#[derive(Debug, Default)]
pub struct Gauge(AtomicI64);

impl Gauge {
    /// Adds, or takes away.
    pub fn add(&self, change: i64) {
        self.0.fetch_add(change, Ordering::Relaxed);
    }

    /// Replaces it.
    pub fn set(&self, value: i64) {
        self.0.store(value, Ordering::Relaxed);
    }

    /// The number now.
    pub fn get(&self) -> i64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// How often values fell below each of some bounds.
#[derive(Debug)]
pub struct Histogram {
    bounds: &'static [f64],
    /// One for each bound, and one for what is above all.
    counts: Box<[AtomicU64]>,
    /// The sum's bits.
    sum: AtomicU64,
}

/// A histogram at one moment.
#[derive(Debug, Clone, PartialEq)]
pub struct Distribution {
    /// Upper bounds, ascending.
    pub bounds: &'static [f64],
    /// How many values lay in each step, the last one above all bounds.
    pub counts: Vec<u64>,
    /// The sum of all values.
    pub sum: f64,
}

impl Histogram {
    /// An empty histogram; `bounds` ascend.
    pub fn new(bounds: &'static [f64]) -> Self {
        let counts = (0..=bounds.len()).map(|_| AtomicU64::new(0)).collect();
        Self { bounds, counts, sum: AtomicU64::new(0f64.to_bits()) }
    }

    /// Counts a value.
    pub fn observe(&self, value: f64) {
        let place = self.bounds.partition_point(|bound| *bound < value);
        self.counts[place].fetch_add(1, Ordering::Relaxed);
        let add = |bits| Some((f64::from_bits(bits) + value).to_bits());
        // The closure never refuses, so this always succeeds.
        let _ = self.sum.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Counts a duration in seconds.
    pub fn observe_duration(&self, took: Duration) {
        self.observe(took.as_secs_f64());
    }

    /// What was counted so far.
    pub fn read(&self) -> Distribution {
        Distribution {
            bounds: self.bounds,
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum: f64::from_bits(self.sum.load(Ordering::Relaxed)),
        }
    }
}

impl Distribution {
    /// Both together; of the same bounds.
    pub fn plus(mut self, other: &Self) -> Self {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count += more;
        }
        self.sum += other.sum;
        self
    }
}

/// The values of a metric's labels, in the order of their names.
type Labels = Box<[Box<str>]>;

/// One instrument for each combination of label values, at most so many; what is more is counted together as `other`.
#[derive(Debug)]
pub struct Family<M> {
    /// Sorted by labels. Replaced as a whole, so that reading needs no lock.
    series: ArcSwap<Vec<(Labels, Arc<M>)>>,
    most: usize,
    make: fn() -> M,
}

/// The label value of what has no series of its own.
pub const OTHER: &str = "other";

impl<M> Family<M> {
    /// An empty family.
    pub fn new(most: usize, make: fn() -> M) -> Self {
        Self { series: ArcSwap::default(), most, make }
    }

    /// The instrument of these label values.
    pub fn get(&self, labels: &[&str]) -> Arc<M> {
        if let Some(found) = find(&self.series.load(), labels) {
            return found;
        }
        let made = Arc::new((self.make)());
        let mut kept = Arc::clone(&made);
        self.series.rcu(|series| {
            let others = vec![OTHER; labels.len()];
            let labels = if series.len() < self.most { labels } else { &others };
            let mut series = Vec::clone(series);
            match series.binary_search_by(|(found, _)| compare(found, labels)) {
                Ok(at) => kept = Arc::clone(&series[at].1),
                Err(at) => {
                    kept = Arc::clone(&made);
                    series.insert(at, (labels.iter().map(|label| (*label).into()).collect(), Arc::clone(&made)));
                }
            }
            series
        });
        kept
    }

    /// Every instrument with its label values, sorted by them.
    pub fn read(&self) -> Arc<Vec<(Labels, Arc<M>)>> {
        self.series.load_full()
    }
}

fn find<M>(series: &[(Labels, Arc<M>)], labels: &[&str]) -> Option<Arc<M>> {
    let at = series.binary_search_by(|(found, _)| compare(found, labels)).ok()?;
    Some(Arc::clone(&series[at].1))
}

fn compare(found: &Labels, wanted: &[&str]) -> std::cmp::Ordering {
    found.iter().map(AsRef::as_ref).cmp(wanted.iter().copied())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_counts_in_the_first_step_that_holds_it() {
        let histogram = Histogram::new(&[1.0, 2.0]);
        for value in [0.5, 1.0, 1.5, 2.5] {
            histogram.observe(value);
        }
        let read = histogram.read();
        assert_eq!((read.counts.as_slice(), read.sum), (&[2, 1, 1][..], 5.5));
    }

    #[test]
    fn series_beyond_the_bound_are_counted_together() {
        let family = Family::new(2, Counter::default);
        for user in ["a", "b", "c", "d", "a"] {
            family.get(&[user, "t"]).inc();
        }
        let read: Vec<_> = family.read().iter().map(|(labels, count)| (labels.join("/"), count.get())).collect();
        assert_eq!(read, [("a/t".to_owned(), 2), ("b/t".to_owned(), 1), ("other/other".to_owned(), 2)]);
    }

    #[test]
    fn threads_that_make_a_series_at_once_count_into_the_same() {
        let family = Family::new(100, Counter::default);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| (0..1000).for_each(|number: u32| family.get(&[["a", "b"][number as usize % 2]]).inc()));
            }
        });
        assert_eq!(family.read().iter().map(|(_, count)| count.get()).collect::<Vec<_>>(), [4000, 4000]);
    }
}
