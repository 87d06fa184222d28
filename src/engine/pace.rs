//! Learns what a step costs, so that prompts can be cut into chunks that keep steps short.

use std::time::Duration;

/// Share of the past that each new measurement replaces.
const FRESHNESS: f64 = 0.1;
/// Steps with guesses, one after the other, before one without: what guesses cost is the difference.
const MAX_DRAFTED_STEPS: u32 = 31;

/// Measured cost of steps: a line over the number of decode rows, and a price for each prompt token beside them.
///
/// Both follow slow change, such as growing contexts or a neighbour on the machine. How a prompt is cut never changes
/// its results, only when they come.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pace {
    decode: Line,
    prefill_ms_per_token: Option<f64>,
    draft_ms_per_row: Option<f64>,
    /// Steps with guesses since one without.
    drafted_steps: u32,
    /// Completion tokens and requests finished a second, for the estimate that a refused caller gets.
    ms_per_request: Option<f64>,
}

/// A line through exponentially faded points.
#[derive(Debug, Clone, Copy, Default)]
struct Line {
    weight: f64,
    x: f64,
    y: f64,
    xx: f64,
    xy: f64,
}

impl Pace {
    /// Takes in one step: sequences that computed one token, guesses beside them, tokens of longer chunks, and its duration.
    pub(crate) fn observe(&mut self, decode_rows: usize, draft_rows: usize, prefill_tokens: usize, took: Duration) {
        let took_ms = took.as_secs_f64() * 1e3;
        if draft_rows > 0 {
            self.drafted_steps += 1;
            let price = (took_ms - self.decode_ms(decode_rows)).max(0.0) / draft_rows as f64;
            let old = self.draft_ms_per_row.unwrap_or(price);
            self.draft_ms_per_row = Some(old + FRESHNESS * (price - old));
            return;
        }
        self.drafted_steps = 0;
        if prefill_tokens == 0 {
            self.decode.add(decode_rows as f64, took_ms);
            return;
        }
        // A step never costs nothing, however much the decode rows were thought to take.
        let rest = (took_ms - self.decode_ms(decode_rows)).max(took_ms * 0.1);
        let price = rest / prefill_tokens as f64;
        let old = self.prefill_ms_per_token.unwrap_or(price);
        self.prefill_ms_per_token = Some(old + FRESHNESS * (price - old));
    }

    /// Prompt tokens that fit beside `decode_rows` into a step of `most`; at least `floor`, at most `ceiling`.
    ///
    /// Before anything is measured it is `floor`.
    pub(crate) fn prefill_tokens(&self, decode_rows: usize, most: Duration, floor: usize, ceiling: usize) -> usize {
        let Some(price) = self.prefill_ms_per_token else { return floor.min(ceiling) };
        let spare_ms = most.as_secs_f64() * 1e3 - self.decode_ms(decode_rows);
        let fits = (spare_ms / price).max(0.0);
        // The cast saturates, and a machine that fast is bounded by the ceiling.
        (fits as usize).clamp(floor.min(ceiling), ceiling)
    }

    /// What a guess costs beside so many decode rows, as a share of their step; nothing before it was measured, and too much
    /// when it is time to measure a step without any.
    pub(crate) fn draft_cost(&self, decode_rows: usize) -> f64 {
        if self.drafted_steps >= MAX_DRAFTED_STEPS {
            return f64::INFINITY;
        }
        let price = self.draft_ms_per_row.unwrap_or(0.0);
        let step = self.decode_ms(decode_rows);
        if step > 0.0 { price / step } else { f64::INFINITY }
    }

    /// Takes in that a request was finished `since_last` after the one before.
    pub(crate) fn observe_finish(&mut self, since_last: Duration) {
        let took_ms = since_last.as_secs_f64() * 1e3;
        let old = self.ms_per_request.unwrap_or(took_ms);
        self.ms_per_request = Some(old + FRESHNESS * (took_ms - old));
    }

    /// When a full queue will probably have a place again: 1 to 60 s.
    pub(crate) fn retry_after(&self) -> Duration {
        let ms = self.ms_per_request.unwrap_or(1e3);
        Duration::from_secs_f64((ms / 1e3).clamp(1.0, 60.0)).max(Duration::from_secs(1))
    }

    fn decode_ms(&self, rows: usize) -> f64 {
        if rows == 0 { 0.0 } else { self.decode.at(rows as f64).max(0.0) }
    }
}

impl Line {
    fn add(&mut self, x: f64, y: f64) {
        for (sum, new) in
            [(&mut self.weight, 1.0), (&mut self.x, x), (&mut self.y, y), (&mut self.xx, x * x), (&mut self.xy, x * y)]
        {
            *sum = *sum * (1.0 - FRESHNESS) + new * FRESHNESS;
        }
    }

    /// Least squares; the mean where the points lie at one place.
    fn at(&self, x: f64) -> f64 {
        if self.weight == 0.0 {
            return 0.0;
        }
        let (mean_x, mean_y) = (self.x / self.weight, self.y / self.weight);
        let spread = self.xx / self.weight - mean_x * mean_x;
        let slope = if spread > 1e-6 { (self.xy / self.weight - mean_x * mean_y) / spread } else { 0.0 };
        // More rows never take less time; noise may say so.
        mean_y + slope.max(0.0) * (x - mean_x)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: Duration = Duration::from_millis(60);

    /// A machine with a fixed cost for each part.
    fn machine(rows: usize, tokens: usize) -> Duration {
        Duration::from_secs_f64((5.0 + 0.5 * rows as f64 + 0.25 * tokens as f64) / 1e3)
    }

    #[test]
    fn after_a_few_steps_chunks_fill_the_step_and_do_not_exceed_it() {
        let mut pace = Pace::default();
        assert_eq!(pace.prefill_tokens(4, STEP, 16, 512), 16);
        for round in 0..60 {
            let rows = 1 + round % 8;
            pace.observe(rows, 0, 0, machine(rows, 0));
            let tokens = pace.prefill_tokens(rows, STEP, 16, 512);
            pace.observe(rows, 0, tokens, machine(rows, tokens));
        }
        for rows in [1, 4, 8, 20] {
            let tokens = pace.prefill_tokens(rows, STEP, 16, 512);
            let took = machine(rows, tokens).as_secs_f64() * 1e3;
            assert!((50.0..61.0).contains(&took), "{rows} rows, {tokens} tokens: {took} ms");
        }
    }

    #[test]
    fn a_machine_that_is_too_slow_still_gets_the_floor_and_a_fast_one_the_ceiling() {
        let mut slow = Pace::default();
        slow.observe(2, 0, 0, Duration::from_millis(90));
        slow.observe(2, 0, 16, Duration::from_millis(200));
        assert_eq!(slow.prefill_tokens(2, STEP, 16, 512), 16);
        let mut fast = Pace::default();
        fast.observe(2, 0, 16, Duration::from_micros(10));
        assert_eq!(fast.prefill_tokens(2, STEP, 16, 512), 512);
        assert_eq!(fast.prefill_tokens(2, STEP, 16, 8), 8);
    }
}
