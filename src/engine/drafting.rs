//! Which guesses are computed along with the rows of a step: those that are likely enough to be worth their time.

use std::collections::HashMap;

use millgate_models::BLOCK_TOKENS;

use super::{Plan, Scheduler};

/// Guesses of a sequence in one step.
const MAX_DRAFT: usize = 15;

impl Scheduler {
    /// Adds guessed tokens to the rows of a step in which every sequence computes one token. A guess takes room that nobody
    /// else has use for: of the step, of the allowance, and of the cache.
    ///
    /// `row_cost`: what one more row costs, as a share of the step's cost without guesses.
    pub(crate) fn draft(&mut self, plan: &mut Plan, row_cost: f64) {
        let rows = plan.items.len();
        if !plan.items.iter().all(|item| item.count == 1 && item.draws == 1 && !item.needs_host) {
            return;
        }
        let mut room = self.limits.max_output_rows.min(self.limits.max_step_tokens).saturating_sub(rows);
        let mut drawn: HashMap<u64, u64> = HashMap::new();
        for item in &plan.items {
            *drawn.entry(item.id.request).or_default() += 1;
        }
        let mut value = Value { tokens: rows as f64, cost: 1.0, row_cost };
        for at in 0..rows {
            let item = plan.items[at];
            let terms = self.requests[&item.id.request];
            let drawn = drawn.get_mut(&item.id.request).expect("every item of the plan was counted");
            let sequence = self.sequences.get_mut(&item.id).expect("planned sequences live");
            sequence.guesser.guess(&sequence.known, MAX_DRAFT);
            let allowed = usize::try_from(terms.allowance.saturating_sub(*drawn)).unwrap_or(usize::MAX);
            let left = terms.max_tokens.saturating_sub(sequence.output().len() + 1);
            let most = room.min(allowed).min(left).min(sequence.guesser.tokens().len());
            let count = value.take(most, |count| sequence.guesser.odds(count));
            if count == 0 {
                continue;
            }
            // A guess takes no block that a running sequence could need next.
            let end = item.first + 1;
            let has_spare = self.blocks.available() > self.running.len();
            let owned = sequence.table.len() * BLOCK_TOKENS;
            let wanted = if has_spare { end + count } else { owned.min(end + count) };
            let count = self.reserve(item.id, wanted, plan).saturating_sub(end).min(count);
            plan.items[at].drafts = count;
            room -= count;
            *drawn += count as u64;
        }
    }

    /// Books which guesses of a step came true: they are computed and known, the others are neither.
    pub(crate) fn accept(&mut self, id: super::SequenceId, accepted: usize) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.computed += accepted;
        }
    }
}

/// What a step yields for what it costs.
struct Value {
    /// Tokens expected.
    tokens: f64,
    /// Cost, in steps without guesses.
    cost: f64,
    row_cost: f64,
}

impl Value {
    /// Takes guesses, at most so many, as long as each one yields more for its cost than the step does without it.
    fn take(&mut self, most: usize, odds: impl Fn(usize) -> f64) -> usize {
        for count in 0..most {
            let odds = odds(count + 1);
            if odds * self.cost <= self.row_cost * self.tokens {
                return count;
            }
            self.tokens += odds;
            self.cost += self.row_cost;
        }
        most
    }
}
