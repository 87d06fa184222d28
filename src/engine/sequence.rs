//! One sequence: the tokens that are known, how many of them are computed, and the blocks that hold those.

use millgate_models::BLOCK_TOKENS;

use super::guess::Guesser;
use super::prefix_cache::BlockHash;

/// Names a sequence: its request's serial number and its choice.
///
/// The order is the order of arrival, so that it decides who came first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct SequenceId {
    pub(crate) request: u64,
    pub(crate) choice: u32,
}

/// A sequence is `known` tokens of which the first `computed` are in the cache; a step computes some of the rest.
/// Prefill, decode, recompute after preemption and a cached prefix are all this one case. Where steps are launched before
/// the last one is read, the newest token may be `awaited`: computed with, but not known.
#[derive(Debug, Clone)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    /// Prompt and completion so far.
    pub(crate) known: Vec<u32>,
    pub(crate) prompt_len: usize,
    /// Steps in flight count as computed.
    ///
    /// INVARIANT: below `len()` while no step of it is in flight: the last token's logits are wanted again or for the first
    /// time.
    pub(crate) computed: usize,
    /// Tokens that steps in flight draw: they follow the known ones, and the model alone knows them.
    pub(crate) awaited: usize,
    /// Steps in flight that have a part of this sequence.
    pub(crate) in_flight: u32,
    /// A step in flight whose rows the host must see before this can go on.
    pub(crate) is_held: bool,
    /// Holds `computed` tokens at least.
    pub(crate) table: Vec<u32>,
    /// Prefix hashes of full blocks of `known`, as far as they were needed.
    pub(crate) hashes: Vec<BlockHash>,
    /// Blocks at the beginning of the table that were offered to the prefix cache.
    pub(crate) published: usize,
    /// Prompt positions from here to the last but one have output rows of their own; `prompt_len` for none.
    pub(crate) score_from: usize,
    /// Prompt tokens that were computed or found before, so that computing them again costs their flow nothing.
    pub(crate) paid_prompt: usize,
    /// Prompt tokens beyond those that their flow was charged for when this got its place; what is never computed is given
    /// back.
    pub(crate) pledged: usize,
    /// Whether the prompt was computed and every choice has a sequence of its own.
    pub(crate) has_forked: bool,
    /// What may follow.
    pub(crate) guesser: Guesser,
}

impl Sequence {
    pub(crate) fn new(id: SequenceId, prompt: Vec<u32>, wants_prompt_scores: bool) -> Self {
        let prompt_len = prompt.len();
        let score_from = if wants_prompt_scores { 0 } else { prompt_len };
        Self {
            id,
            known: prompt,
            prompt_len,
            computed: 0,
            awaited: 0,
            in_flight: 0,
            is_held: false,
            table: Vec::new(),
            hashes: Vec::new(),
            published: 0,
            score_from,
            paid_prompt: 0,
            pledged: 0,
            has_forked: false,
            guesser: Guesser::default(),
        }
    }

    /// Tokens, known or awaited.
    pub(crate) fn len(&self) -> usize {
        self.known.len() + self.awaited
    }

    /// Tokens that are not computed.
    pub(crate) fn pending(&self) -> usize {
        self.len() - self.computed
    }

    /// The completion so far.
    pub(crate) fn output(&self) -> &[u32] {
        &self.known[self.prompt_len..]
    }

    /// Blocks that all tokens need.
    pub(crate) fn blocks_needed(&self) -> usize {
        self.len().div_ceil(BLOCK_TOKENS)
    }

    /// Whether the cache may serve this sequence: not when the logits of its prompt are wanted.
    pub(crate) fn may_reuse(&self) -> bool {
        self.score_from >= self.prompt_len
    }

    /// Positions in `first..first + count` whose logits score the prompt token after them.
    pub(crate) fn score_positions(&self, first: usize, count: usize) -> std::ops::Range<usize> {
        let end = (first + count).min(self.prompt_len.saturating_sub(1));
        let start = first.max(self.score_from);
        start..end.max(start)
    }
}
