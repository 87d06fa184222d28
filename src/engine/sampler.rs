//! Draws the next token of one row from its logits, with that row's own parameters and nothing else.

use millgate_models::{Adjustment, Draw, DrawError, Drawn, Scores};

use super::asking::{Adjuster, History, draw_of};
use super::random::uniform;
use super::request::SamplingParams;
use super::softmax::{self, Normaliser};

/// One row to draw from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row<'a> {
    /// One logit a token of the vocabulary.
    pub(crate) logits: &'a [f32],
    pub(crate) params: &'a SamplingParams,
    pub(crate) history: History<'a>,
    /// Index of the choice.
    pub(crate) choice: u32,
}

/// Draws tokens. Holds scratch memory only: no call depends on an earlier one.
#[derive(Debug, Default)]
pub(crate) struct Sampler {
    adjuster: Adjuster,
    adjustments: Vec<Adjustment>,
    adjusted: Vec<f32>,
    candidates: Vec<u32>,
}

impl Sampler {
    /// Draws one token.
    ///
    /// # Errors
    /// [`DrawError`] when logits are NaN or +inf, or when nothing may be drawn.
    pub(crate) fn draw(&mut self, row: &Row<'_>) -> Result<Drawn, DrawError> {
        let mut adjustments = std::mem::take(&mut self.adjustments);
        adjustments.clear();
        self.adjuster.list(row.params, &row.history, row.logits.len(), &mut adjustments);
        let position = row.history.prompt.len() + row.history.output.len();
        let drawn = self.draw_adjusted(row.logits, &draw_of(row.params, row.choice, position), &adjustments);
        self.adjustments = adjustments;
        drawn
    }

    /// Draws one token from logits that are first changed by `adjustments`, each of which names another token.
    ///
    /// # Errors
    /// As [`Self::draw`].
    pub(crate) fn draw_adjusted(
        &mut self,
        raw: &[f32],
        draw: &Draw,
        adjustments: &[Adjustment],
    ) -> Result<Drawn, DrawError> {
        let raw_max = softmax::checked_max(raw)?;
        let Self { adjusted, candidates, .. } = self;
        let logits = if adjustments.is_empty() {
            raw
        } else {
            adjusted.clear();
            adjusted.extend_from_slice(raw);
            for adjustment in adjustments {
                let logit = &mut adjusted[adjustment.token as usize];
                *logit = adjustment.apply(*logit, &draw.penalties);
            }
            adjusted
        };
        let likeliest = argmax(logits)?;
        let token = if draw.temperature == 0.0 {
            likeliest
        } else {
            let cut = cut(logits, likeliest, draw, candidates);
            pick(logits, likeliest, draw, cut)
        };
        let scores = draw.logprobs.map(|top| scores(raw, raw_max, token, usize::from(top)));
        Ok(Drawn { token, scores })
    }

    /// Log probabilities of a token that is given, not drawn: one of the prompt's.
    ///
    /// # Errors
    /// [`DrawError::NotANumber`].
    pub(crate) fn score(&self, logits: &[f32], token: u32, top: usize) -> Result<Scores, DrawError> {
        let raw_max = softmax::checked_max(logits)?;
        Ok(scores(logits, raw_max, token, top))
    }
}

/// The likeliest token, the lowest id among equals.
fn argmax(logits: &[f32]) -> Result<u32, DrawError> {
    let max = softmax::max(logits);
    if max == f32::NEG_INFINITY {
        return Err(DrawError::NothingLeft);
    }
    let found = (0..).zip(logits).find(|&(_, &logit)| logit == max);
    // Extreme penalties or biases can overflow although the raw logits were checked.
    found.filter(|_| max.is_finite()).map(|(token, _)| token).ok_or(DrawError::NotANumber)
}

/// The last token, in order of likelihood, that may be drawn. Tokens are ordered by logit, then by id.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Cut {
    logit: f32,
    token: u32,
}

impl Cut {
    const NONE: Self = Self { logit: f32::NEG_INFINITY, token: u32::MAX };

    fn keeps(self, logit: f32, token: u32) -> bool {
        logit > self.logit || logit == self.logit && token <= self.token
    }

    fn stricter(self, other: Self) -> Self {
        if self.keeps(other.logit, other.token) { other } else { self }
    }
}

/// Where top-k, top-p and min-p cut the vocabulary off. The likeliest token always stays.
fn cut(logits: &[f32], likeliest: u32, params: &Draw, candidates: &mut Vec<u32>) -> Cut {
    let max = logits[likeliest as usize];
    let mut cut = Cut::NONE;
    if params.min_p > 0.0 {
        // p >= min_p * p_max, solved for the logit.
        cut = cut.stricter(Cut { logit: max + params.temperature * params.min_p.ln(), token: u32::MAX });
    }
    let top_k = params.top_k as usize;
    let has_top_k = top_k > 0 && top_k < logits.len();
    if !has_top_k && params.top_p >= 1.0 {
        return cut;
    }
    candidates.clear();
    candidates.extend((0..).zip(logits).filter(|&(_, &logit)| logit > f32::NEG_INFINITY).map(|(token, _)| token));
    if has_top_k && top_k < candidates.len() {
        candidates.select_nth_unstable_by(top_k - 1, |&a, &b| likelier(logits, a, b));
        candidates.truncate(top_k);
        let token = candidates[top_k - 1];
        cut = cut.stricter(Cut { logit: logits[token as usize], token });
    }
    if params.top_p < 1.0 {
        let weight = |token: u32| f64::from(softmax::exp((logits[token as usize] - max) / params.temperature));
        let token = nucleus_end(candidates, logits, f64::from(params.top_p), weight);
        cut = cut.stricter(Cut { logit: logits[token as usize], token });
    }
    cut
}

fn likelier(logits: &[f32], a: u32, b: u32) -> std::cmp::Ordering {
    // Logits are no NaN here; `total_cmp` would tell -0 from 0, which `Cut` does not.
    logits[b as usize].partial_cmp(&logits[a as usize]).unwrap_or(std::cmp::Ordering::Equal).then(a.cmp(&b))
}

/// The last token of the smallest set of likeliest candidates that holds the share `top_p` of their weight.
///
/// A selection, not a sort: each round halves the part that holds the end, so the whole costs about two passes.
fn nucleus_end(candidates: &mut [u32], logits: &[f32], top_p: f64, weight: impl Fn(u32) -> f64) -> u32 {
    let total: f64 = candidates.iter().map(|&token| weight(token)).sum();
    let mut missing = total * top_p;
    let mut part = candidates;
    while part.len() > 1 {
        let middle = part.len() / 2;
        part.select_nth_unstable_by(middle, |&a, &b| likelier(logits, a, b));
        let (likely, rest) = part.split_at_mut(middle);
        let likely_weight: f64 = likely.iter().map(|&token| weight(token)).sum();
        if likely_weight >= missing {
            part = likely;
        } else {
            missing -= likely_weight;
            part = rest;
        }
    }
    part[0]
}

/// Draws among the tokens that the cut keeps, in order of their ids, so that the outcome does not depend on how the
/// cut was found.
fn pick(logits: &[f32], likeliest: u32, draw: &Draw, cut: Cut) -> u32 {
    let max = logits[likeliest as usize];
    let weight = |logit: f32| f64::from(softmax::exp((logit - max) / draw.temperature));
    let kept = || (0..).zip(logits).filter(|&(token, &logit)| cut.keeps(logit, token));
    let total: f64 = kept().map(|(_, &logit)| weight(logit)).sum();
    let mut target = uniform(draw.seed, draw.choice, draw.position, 0) * total;
    let mut last = likeliest;
    for (token, &logit) in kept() {
        let weight = weight(logit);
        if weight > 0.0 {
            if target < weight {
                return token;
            }
            target -= weight;
            last = token;
        }
    }
    // Rounding can leave a rest beyond the last token.
    last
}

fn scores(logits: &[f32], max: f32, token: u32, top: usize) -> Scores {
    let normaliser = Normaliser::new(logits, max);
    let logprob = normaliser.logprob(logits[token as usize]);
    let top = top_tokens(logits, top).into_iter().map(|token| (token, normaliser.logprob(logits[token as usize])));
    Scores { logprob, top: top.collect() }
}

/// The `count` likeliest tokens in order; `count` is small, so a short sorted list does.
fn top_tokens(logits: &[f32], count: usize) -> Vec<u32> {
    let mut top: Vec<u32> = Vec::with_capacity(count + 1);
    for (token, &logit) in (0_u32..).zip(logits) {
        if top.len() == count && top.last().is_none_or(|&last| logits[last as usize] >= logit) {
            continue;
        }
        let place = top.partition_point(|&other| logits[other as usize] >= logit);
        top.insert(place, token);
        top.truncate(count);
    }
    top
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
