//! How a draw is put into numbers that a sampler anywhere understands: parameters, and the tokens whose logits change.

use millgate_models::{Adjustment, Draw, Penalties};

use super::request::SamplingParams;

/// What came before a draw, and what must not follow.
#[derive(Debug, Clone, Copy)]
pub(crate) struct History<'a> {
    pub(crate) prompt: &'a [u32],
    /// The choice's completion so far.
    pub(crate) output: &'a [u32],
    /// Tokens that must not be drawn.
    pub(crate) forbidden: &'a [u32],
}

/// The draw of the token at `position` of a choice, without adjustments.
pub(crate) fn draw_of(params: &SamplingParams, choice: u32, position: usize) -> Draw {
    Draw {
        temperature: params.temperature,
        top_k: params.top_k,
        top_p: params.top_p,
        min_p: params.min_p,
        penalties: Penalties {
            repetition: params.repetition_penalty,
            presence: params.presence_penalty,
            frequency: params.frequency_penalty,
        },
        seed: params.seed,
        choice,
        position: u32::try_from(position).expect("positions fit the context window"),
        logprobs: params.logprobs,
        adjustments_start: 0,
        adjustments_len: 0,
        pending: None,
    }
}

/// Lists the tokens whose logits a draw changes. Holds scratch memory only.
#[derive(Debug, Default)]
pub(crate) struct Adjuster {
    /// By token: one more than its place in the list, or 0.
    places: Vec<u32>,
}

impl Adjuster {
    /// Appends one adjustment for each token of a vocabulary of `vocab_size` that the parameters or the history single out.
    pub(crate) fn list(
        &mut self,
        params: &SamplingParams,
        history: &History<'_>,
        vocab_size: usize,
        into: &mut Vec<Adjustment>,
    ) {
        let has_repetition = params.repetition_penalty != 1.0;
        let has_counted = params.presence_penalty != 0.0 || params.frequency_penalty != 0.0;
        if !has_repetition && !has_counted && params.logit_bias.is_empty() && history.forbidden.is_empty() {
            return;
        }
        self.places.resize(vocab_size, 0);
        let mut list = List { places: &mut self.places, first: into.len(), entries: into };
        if has_repetition {
            history.prompt.iter().for_each(|&token| list.entry(token, |entry| entry.is_seen = true));
        }
        if has_repetition || has_counted {
            let count = |entry: &mut Adjustment| (entry.is_seen, entry.count) = (true, entry.count + 1);
            history.output.iter().for_each(|&token| list.entry(token, count));
        }
        params.logit_bias.iter().for_each(|&(token, bias)| list.entry(token, |entry| entry.bias += bias));
        history.forbidden.iter().for_each(|&token| list.entry(token, |entry| entry.is_forbidden = true));
        let first = list.first;
        into[first..].iter().for_each(|entry| self.places[entry.token as usize] = 0);
    }
}

struct List<'a> {
    places: &'a mut [u32],
    first: usize,
    entries: &'a mut Vec<Adjustment>,
}

impl List<'_> {
    fn entry(&mut self, token: u32, change: impl FnOnce(&mut Adjustment)) {
        // A model's files may name end tokens that its output has no row for.
        let Some(place) = self.places.get_mut(token as usize) else { return };
        if *place == 0 {
            self.entries.push(Adjustment::none(token));
            *place = u32::try_from(self.entries.len() - self.first).expect("a vocabulary has fewer tokens than 2^32");
        }
        change(&mut self.entries[self.first + *place as usize - 1]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_is_listed_once_with_all_that_concerns_it() {
        let params = SamplingParams {
            repetition_penalty: 1.5,
            logit_bias: vec![(2, 0.5), (2, 0.25), (4, -1.0)],
            ..SamplingParams::default()
        };
        let history = History { prompt: &[1, 2, 1], output: &[2, 3, 2], forbidden: &[4, 99] };
        let mut adjuster = Adjuster::default();
        let mut list = vec![Adjustment::none(7)];
        for _ in 0..2 {
            list.truncate(1);
            adjuster.list(&params, &history, 8, &mut list);
            let entry =
                |token, count, bias, is_seen, is_forbidden| Adjustment { token, count, bias, is_seen, is_forbidden };
            let wanted = [
                Adjustment::none(7),
                entry(1, 0, 0.0, true, false),
                entry(2, 2, 0.75, true, false),
                entry(3, 1, 0.0, true, false),
                entry(4, 0, -1.0, false, true),
            ];
            assert_eq!(list, wanted);
        }
    }

    #[test]
    fn nothing_is_listed_where_nothing_changes() {
        let mut list = Vec::new();
        let history = History { prompt: &[1], output: &[2], forbidden: &[] };
        Adjuster::default().list(&SamplingParams::default(), &history, 8, &mut list);
        assert_eq!(list, []);
    }
}
