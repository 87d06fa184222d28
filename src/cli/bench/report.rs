//! What a benchmark found: percentiles and rates, as a table and as JSON.

use std::time::Duration;

use serde::Serialize;

/// What one request experienced.
#[derive(Debug, Clone, Default)]
pub(super) struct Sample {
    /// From sending to the first text.
    pub(super) ttft: Duration,
    /// From sending to the end.
    pub(super) total: Duration,
    /// Gaps between pieces of text that followed one another.
    pub(super) gaps: Vec<Duration>,
    /// As the server counted them.
    pub(super) prompt_tokens: u64,
    /// Prompt tokens found in the prefix cache.
    pub(super) cached_tokens: u64,
    /// As the server counted them.
    pub(super) completion_tokens: u64,
}

/// The figures of a run; times in milliseconds, rates a second.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Report {
    pub(super) url: String,
    pub(super) model: String,
    /// `closed loop` or `open loop`.
    pub(super) arrival: String,
    pub(super) clients: u32,
    pub(super) requests: usize,
    pub(super) failed: usize,
    /// The first failure in words.
    pub(super) first_failure: Option<String>,
    pub(super) wall_s: f64,
    pub(super) prompt_tokens: u64,
    pub(super) cached_tokens: u64,
    pub(super) completion_tokens: u64,
    pub(super) requests_per_s: f64,
    pub(super) output_tokens_per_s: f64,
    pub(super) total_tokens_per_s: f64,
    pub(super) ttft_ms: Spread,
    pub(super) itl_ms: Spread,
    pub(super) latency_ms: Spread,
}

/// Percentiles of a set of times, in milliseconds; zeros for an empty set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) p50: f64,
    pub(super) p95: f64,
    pub(super) p99: f64,
    pub(super) max: f64,
    pub(super) mean: f64,
}

impl Spread {
    fn of(times: impl Iterator<Item = Duration>) -> Self {
        let mut ms: Vec<f64> = times.map(|time| time.as_secs_f64() * 1000.0).collect();
        ms.sort_by(f64::total_cmp);
        let Some(max) = ms.last().copied() else { return Self::default() };
        // Nearest rank: a percentile is always a time that was really seen.
        let rank = |share: f64| ms[((share * ms.len() as f64).ceil() as usize).clamp(1, ms.len()) - 1];
        let mean = ms.iter().sum::<f64>() / ms.len() as f64;
        Self { p50: rank(0.50), p95: rank(0.95), p99: rank(0.99), max, mean }
    }
}

impl Report {
    /// Fills in everything that follows from the samples.
    pub(super) fn fill(mut self, samples: &[Sample], wall: Duration) -> Self {
        let seconds = wall.as_secs_f64().max(1e-9);
        let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>();
        self.wall_s = wall.as_secs_f64();
        self.prompt_tokens = sum(|sample| sample.prompt_tokens);
        self.cached_tokens = sum(|sample| sample.cached_tokens);
        self.completion_tokens = sum(|sample| sample.completion_tokens);
        self.requests = samples.len();
        self.requests_per_s = samples.len() as f64 / seconds;
        self.output_tokens_per_s = self.completion_tokens as f64 / seconds;
        self.total_tokens_per_s = (self.prompt_tokens + self.completion_tokens) as f64 / seconds;
        self.ttft_ms = Spread::of(samples.iter().map(|sample| sample.ttft));
        self.itl_ms = Spread::of(samples.iter().flat_map(|sample| sample.gaps.iter().copied()));
        self.latency_ms = Spread::of(samples.iter().map(|sample| sample.total));
        self
    }

    /// The report for people.
    pub(super) fn text(&self) -> String {
        let each = self.requests.max(1) as u64;
        let mut text = format!(
            "{} at {}, {}, {} clients: {} requests in {:.1} s{}\n\
             prompt {} tokens each ({} of all {} from the prefix cache), answer {} tokens each\n\n\
             {:>24}{:>12.1}\n{:>24}{:>12.1}\n{:>24}{:>12.2}\n\n{:>24}{:>10}{:>10}{:>10}{:>10}\n",
            self.model,
            self.url,
            self.arrival,
            self.clients,
            self.requests,
            self.wall_s,
            if self.failed > 0 { format!(", {} FAILED", self.failed) } else { String::new() },
            self.prompt_tokens / each,
            self.cached_tokens,
            self.prompt_tokens,
            self.completion_tokens / each,
            "output tokens/s",
            self.output_tokens_per_s,
            "total tokens/s",
            self.total_tokens_per_s,
            "requests/s",
            self.requests_per_s,
            "milliseconds",
            "p50",
            "p95",
            "p99",
            "max",
        );
        let rows =
            [("time to first token", self.ttft_ms), ("between tokens", self.itl_ms), ("whole answer", self.latency_ms)];
        for (name, spread) in rows {
            text += &format!(
                "{name:>24}{:>10.1}{:>10.1}{:>10.1}{:>10.1}\n",
                spread.p50, spread.p95, spread.p99, spread.max
            );
        }
        if let Some(failure) = &self.first_failure {
            text += &format!("\nfirst failure: {failure}\n");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_times_that_were_seen() {
        let spread = Spread::of((1..=100).map(Duration::from_millis));
        assert_eq!((spread.p50, spread.p95, spread.p99, spread.max, spread.mean), (50.0, 95.0, 99.0, 100.0, 50.5));
        assert_eq!(Spread::of(std::iter::empty()), Spread::default());
        let one = Spread::of(std::iter::once(Duration::from_millis(7)));
        assert_eq!((one.p50, one.p99), (7.0, 7.0));
    }
}
