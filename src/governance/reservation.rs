//! How much a request reserves before it starts, and how much more it asks for while it runs.

use super::ports::Need;
use super::pricing::Price;

/// What a request asks to be admitted for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CompletionCap {
    /// The request named a maximum: so many tokens a sequence, already cut to what the context leaves.
    Explicit(u64),
    /// It did not: a sequence may grow to `most` tokens, context minus prompt.
    Open {
        /// The most a sequence can grow.
        most: u64,
    },
}

/// No context is so long. Counts stay far from the end of the 64-bit range, so that millions of them add up without overflow.
const TOKENS_MAX: u64 = 1 << 40;

/// What an admission charges.
///
/// An explicit maximum is reserved whole, so such an answer is never cut by a limit. Without one a block for each sequence is
/// reserved, or what is left, at least one token a sequence.
///
/// The caller puts in the price: tokens do not depend on it.
pub(super) fn admission(prompt_tokens: u64, sequences: u64, cap: CompletionCap, block_tokens: u64) -> Need {
    let all = |a_sequence: u64| a_sequence.saturating_mul(sequences).min(TOKENS_MAX);
    let (least, most) = match cap {
        CompletionCap::Explicit(cap) => (all(cap), all(cap)),
        CompletionCap::Open { most } => (all(most.min(1)), all(most.min(block_tokens))),
    };
    Need {
        requests: 1,
        prompt_tokens: prompt_tokens.min(TOKENS_MAX),
        sequences,
        completion_least: least,
        completion_most: most,
        price: Price::default(),
    }
}

/// What an extension charges: as much of `want` as is left, at least one token a sequence.
pub(super) fn extension(want: u64, sequences: u64) -> Need {
    let most = want.min(TOKENS_MAX);
    Need { completion_least: most.min(sequences.max(1)), completion_most: most, ..Need::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn completion(sequences: u64, cap: CompletionCap) -> (u64, u64) {
        let need = admission(10, sequences, cap, 256);
        (need.completion_least, need.completion_most)
    }

    #[test]
    fn an_explicit_maximum_is_reserved_whole_for_every_sequence() {
        assert_eq!(completion(3, CompletionCap::Explicit(100)), (300, 300));
        assert_eq!(completion(1, CompletionCap::Explicit(0)), (0, 0));
    }

    #[test]
    fn an_open_answer_reserves_a_block_a_sequence_and_needs_one_token_each() {
        assert_eq!(completion(2, CompletionCap::Open { most: 4000 }), (2, 512));
        assert_eq!(completion(2, CompletionCap::Open { most: 100 }), (2, 200));
        assert_eq!(completion(2, CompletionCap::Open { most: 0 }), (0, 0));
    }

    #[test]
    fn absurd_sizes_saturate_instead_of_wrapping_to_something_small() {
        let (least, _) = completion(u64::MAX, CompletionCap::Explicit(u64::MAX));
        assert_eq!(least, TOKENS_MAX);
        let need = admission(u64::MAX, 1, CompletionCap::Explicit(u64::MAX), 256);
        assert!(need.prompt_tokens.checked_add(need.completion_most).is_some());
    }

    #[test]
    fn an_extension_takes_what_is_left_but_not_less_than_a_token_a_sequence() {
        let need = extension(256, 3);
        assert_eq!((need.completion_least, need.completion_most, need.requests), (3, 256, 0));
        assert_eq!(extension(0, 3).completion_least, 0);
    }
}
