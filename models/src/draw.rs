//! Drawing where the logits are: what is asked for each output row, what comes back, and models that can do it.

use std::time::Duration;

use crate::batch::Batch;
use crate::model::{ForwardError, ModelSpec};

/// Steps that may be in flight at the same time: one computes, one waits behind it.
pub const MAX_IN_FLIGHT: usize = 2;

/// A model that draws tokens where it computes, so that a step can be launched before the one ahead of it is read.
///
/// Steps and block copies run in the order in which they were launched: no earlier step sees what a later one writes.
pub trait DrawingModel {
    /// Puts a step behind those in flight and returns without waiting for it.
    ///
    /// # Errors
    /// [`ForwardError`] when the step is malformed or one too many, or when the device takes no work; it is not in flight then.
    fn launch(&mut self, step: &Step) -> Result<(), ForwardError>;

    /// Waits for the oldest step in flight and returns what came of it.
    ///
    /// # Errors
    /// [`ForwardError`] when the step failed, or when none is in flight. A failed step is in flight no longer.
    fn collect(&mut self) -> Result<StepOutput<'_>, ForwardError>;

    /// Has the device time every step from now on, where it can; see [`StepOutput::device_time`].
    fn time_steps(&mut self) {}
}

/// One step: a batch, the tokens of it that are still on the device, and what is wanted of each output row.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Step {
    /// What to compute. The ids of pending tokens are 0 here.
    pub batch: Batch,
    /// Tokens of the batch that the step launched before this one draws.
    pub pending: Vec<PendingToken>,
    /// One entry an output row of the batch.
    pub outputs: Vec<Output>,
    /// The adjustments of all draws; a draw names its part.
    pub adjustments: Vec<Adjustment>,
}

/// A token that nobody has read yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingToken {
    /// Index into the batch's tokens.
    pub row: u32,
    /// Which draw of the step before gives it, counted over that step's [`Output::Draw`] rows.
    pub draw: u32,
}

/// What is wanted of an output row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Output {
    /// Its logits, for a caller that draws or scores itself.
    Logits,
    /// The next token.
    Draw(Draw),
}

/// How a token is drawn from a row.
///
/// Applied in this order: repetition, presence and frequency penalties; biases; bans; temperature; `top_k`; `top_p`; `min_p`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Draw {
    /// Divides the logits; 0 takes the likeliest token, the lowest id among equals.
    pub temperature: f32,
    /// Keeps only this many of the likeliest tokens; 0 = off.
    pub top_k: u32,
    /// Keeps the smallest set of likeliest tokens whose probabilities reach this sum; 1 = off.
    pub top_p: f32,
    /// Keeps tokens at least this share as likely as the likeliest one; 0 = off.
    pub min_p: f32,
    /// Penalties; see [`Adjustment::apply`].
    pub penalties: Penalties,
    /// Key of the random numbers.
    pub seed: u64,
    /// Index of the choice, part of the random numbers' counter.
    pub choice: u32,
    /// Position that the token will take, part of the counter.
    pub position: u32,
    /// Report log probabilities with this many alternatives.
    pub logprobs: Option<u8>,
    /// First of this draw's adjustments.
    pub adjustments_start: u32,
    /// Number of this draw's adjustments; each names another token.
    pub adjustments_len: u32,
    /// The draw of the step before whose token is the newest of the completion and not among the adjustments' counts.
    pub pending: Option<u32>,
}

/// How tokens that came up before are made less likely.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Divides positive and multiplies negative logits of tokens seen in prompt or completion; 1 = off.
    pub repetition: f32,
    /// Subtracted for every token that the completion holds.
    pub presence: f32,
    /// Subtracted once for each time that the completion holds the token.
    pub frequency: f32,
}

impl Penalties {
    /// Whether any of them changes anything.
    pub fn are_on(&self) -> bool {
        self.repetition != 1.0 || self.presence != 0.0 || self.frequency != 0.0
    }
}

/// What changes one token's logit in one row.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Adjustment {
    /// The token.
    pub token: u32,
    /// How often the completion holds it.
    pub count: u32,
    /// Added to its logit.
    pub bias: f32,
    /// Whether prompt or completion holds it.
    pub is_seen: bool,
    /// It must not be drawn.
    pub is_forbidden: bool,
}

impl Adjustment {
    /// Nothing is changed.
    pub fn none(token: u32) -> Self {
        Self { token, count: 0, bias: 0.0, is_seen: false, is_forbidden: false }
    }

    /// The adjusted logit. Every implementation computes it by these operations in this order, so that all agree to the bit.
    pub fn apply(&self, logit: f32, penalties: &Penalties) -> f32 {
        if self.is_forbidden {
            return f32::NEG_INFINITY;
        }
        let mut logit = logit;
        if self.is_seen && penalties.repetition != 1.0 {
            logit = if logit > 0.0 { logit / penalties.repetition } else { logit * penalties.repetition };
        }
        if self.count > 0 {
            logit -= penalties.presence + penalties.frequency * self.count as f32;
        }
        logit + self.bias
    }
}

/// What came of a step.
#[derive(Debug, Clone, Copy)]
pub struct StepOutput<'a> {
    /// Logits of the [`Output::Logits`] rows, in their order: `[rows, vocab_size]`.
    pub logits: &'a [f32],
    /// Tokens of the [`Output::Draw`] rows, in their order.
    pub draws: &'a [Result<Drawn, DrawError>],
    /// How long the device worked on it, by its own clock, if it was asked to tell.
    pub device_time: Option<Duration>,
}

/// A drawn token.
#[derive(Debug, Clone, PartialEq)]
pub struct Drawn {
    /// Its id.
    pub token: u32,
    /// Log probabilities, when they were asked for.
    pub scores: Option<Scores>,
}

/// Log probabilities of one position, of the model's own distribution: log-softmax of the raw logits.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    /// Of the token that stands at the position.
    pub logprob: f32,
    /// The likeliest tokens, likeliest first, the lower id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// Why no token can be drawn: an internal failure of this one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DrawError {
    /// The model's output is broken.
    #[error("the logits hold a value that is not a finite number")]
    NotANumber,
    /// Every token is ruled out.
    #[error("every token is forbidden")]
    NothingLeft,
}

impl Step {
    /// Empties the step and keeps its memory for the next one.
    pub fn clear(&mut self) {
        self.batch.clear();
        self.pending.clear();
        self.outputs.clear();
        self.adjustments.clear();
    }

    /// Number of rows that draw.
    pub fn num_draws(&self) -> usize {
        self.outputs.iter().filter(|output| matches!(output, Output::Draw(_))).count()
    }

    /// The adjustments of one of this step's draws.
    pub fn adjustments_of(&self, draw: &Draw) -> &[Adjustment] {
        &self.adjustments[draw.adjustments_start as usize..][..draw.adjustments_len as usize]
    }

    /// Checks that a model of this `spec` can compute the step after one with `previous_draws` draws.
    ///
    /// # Errors
    /// [`ForwardError::Batch`] naming the first thing that does not fit.
    pub fn check(&self, spec: &ModelSpec, previous_draws: usize) -> Result<(), ForwardError> {
        self.batch.check(spec)?;
        let fault = |what, found, limit| Err(ForwardError::Batch { what, found, limit });
        if self.outputs.len() != self.batch.output_rows.len() {
            return fault("wishes for output rows", self.outputs.len(), self.batch.output_rows.len());
        }
        for pending in &self.pending {
            if pending.row as usize >= self.batch.tokens.len() {
                return fault("row of a pending token", pending.row as usize, self.batch.tokens.len());
            }
            if pending.draw as usize >= previous_draws {
                return fault("draw of a pending token", pending.draw as usize, previous_draws);
            }
        }
        for output in &self.outputs {
            let Output::Draw(draw) = output else { continue };
            let end = draw.adjustments_start as usize + draw.adjustments_len as usize;
            if end > self.adjustments.len() {
                return fault("end of a draw's adjustments", end, self.adjustments.len());
            }
            if let Some(pending) = draw.pending.filter(|&pending| pending as usize >= previous_draws) {
                return fault("pending draw of a draw", pending as usize, previous_draws);
            }
        }
        match self.adjustments.iter().find(|adjustment| adjustment.token as usize >= spec.vocab_size) {
            Some(adjustment) => fault("token of an adjustment", adjustment.token as usize, spec.vocab_size),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adjustment_applies_penalties_then_bias_and_a_ban_beats_both() {
        let penalties = Penalties { repetition: 2.0, presence: 0.5, frequency: 0.25 };
        let seen = Adjustment { count: 2, is_seen: true, bias: 1.0, ..Adjustment::none(3) };
        assert_eq!(seen.apply(4.0, &penalties), 4.0 / 2.0 - 1.0 + 1.0);
        assert_eq!(seen.apply(-4.0, &penalties), -8.0 - 1.0 + 1.0);
        assert_eq!(Adjustment::none(3).apply(4.0, &penalties), 4.0);
        let banned = Adjustment { is_forbidden: true, ..seen };
        assert_eq!(banned.apply(4.0, &penalties), f32::NEG_INFINITY);
    }
}
