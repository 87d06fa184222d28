//! How the attention of a step is cut into blocks of the GPU: pure arithmetic on the host, before anything is queued.
//!
//! Sequences with one new token are split over their context, so that one long one keeps the whole device busy; those
//! with more are cut into tiles of queries. Where a sequence is cut depends on its own length only: its result does not
//! depend on its batch mates.

use crate::{BLOCK_TOKENS, SequenceSpan};

/// Fewest tokens of context of a part.
const PART_TOKENS: usize = 256;
/// Most parts of one sequence; longer ones have longer parts.
const MAX_PARTS: usize = 32;
/// `slot` of an item that needs no other part.
const NO_SLOT: u32 = u32::MAX;
/// Words of an item and of a combination.
const WORDS: usize = 4;

/// Sizes of a model's attention that decide about cuts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AttentionSizes {
    /// Query heads.
    pub heads: usize,
    /// Heads of keys and values; `heads` is a multiple of it.
    pub kv_heads: usize,
    /// Elements of one head.
    pub head_dim: usize,
    /// A query sees this many latest positions, itself included; `None` sees all.
    pub window: Option<u32>,
    /// Whether activations are f32, which a kernel without tensor cores serves.
    pub is_f32: bool,
}

/// A step's cuts, as the kernels read them. Kept from step to step for its memory.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AttentionPlan {
    /// Work of [`super::decode_attention`].
    pub decode: Vec<u32>,
    /// Rows whose parts are added up after it.
    pub combine: Vec<u32>,
    /// Work of [`super::prefill_attention`].
    pub prefill: Vec<u32>,
    slots: usize,
}

impl AttentionPlan {
    /// What the kernels read as the lists' lengths: pieces of work, combinations.
    pub fn counts(&self) -> [u32; 2] {
        [(self.decode.len() / WORDS) as u32, (self.combine.len() / WORDS) as u32]
    }

    /// Partial results that the step needs room for.
    pub fn slots(&self) -> usize {
        self.slots
    }

    /// Cuts a step.
    pub fn fill(&mut self, sizes: &AttentionSizes, spans: &[SequenceSpan]) {
        self.decode.clear();
        self.combine.clear();
        self.prefill.clear();
        self.slots = 0;
        for (index, span) in (0..).zip(spans) {
            if sizes.is_f32 {
                self.decode.extend((0..span.query_len).flat_map(|query| [index, 0, span.context_len, query]));
            } else if span.query_len == 1 {
                self.split(sizes, index, span);
            } else {
                self.tile(sizes, index, span);
            }
        }
        sort_longest_first(&mut self.prefill);
    }

    fn split(&mut self, sizes: &AttentionSizes, index: u32, span: &SequenceSpan) {
        let (end, first) = (span.context_len, first_seen(span.context_len - 1, sizes.window));
        let part = part_tokens((end - first) as usize) as u32;
        if end - first <= part {
            self.decode.extend([index, first, end, NO_SLOT]);
            return;
        }
        let first_slot = self.slots as u32;
        let mut begin = first;
        while begin < end {
            // Parts end at multiples of blocks, so that no tile is read twice.
            let stop = ((begin + part) / BLOCK_TOKENS as u32 * BLOCK_TOKENS as u32).min(end);
            self.decode.extend([index, begin, stop, self.slots as u32]);
            self.slots += 1;
            begin = stop;
        }
        self.combine.extend([span.query_start, first_slot, self.slots as u32 - first_slot, 0]);
    }

    fn tile(&mut self, sizes: &AttentionSizes, index: u32, span: &SequenceSpan) {
        let group = (sizes.heads / sizes.kv_heads.max(1)).max(1);
        let rows = span.query_len as usize * group;
        for first_row in (0..rows).step_by(tile_rows(sizes.head_dim)) {
            let last_row = (first_row + tile_rows(sizes.head_dim)).min(rows) - 1;
            let position = |row: usize| span.context_len - span.query_len + (row / group) as u32;
            let begin = first_seen(position(first_row), sizes.window) / BLOCK_TOKENS as u32 * BLOCK_TOKENS as u32;
            self.prefill.extend([index, begin, position(last_row) + 1, first_row as u32]);
        }
    }
}

impl AttentionSizes {
    /// Most pieces of decode work of `rows` sequences with one new token each, of up to `max_context` tokens.
    pub fn max_items(&self, rows: usize, max_context: usize) -> usize {
        if self.is_f32 { rows } else { rows * parts(max_context) }
    }

    /// Elements of the buffer for partial results of as many.
    pub fn partial_len(&self, rows: usize, max_context: usize) -> usize {
        if self.is_f32 || parts(max_context) <= 1 {
            return 0;
        }
        rows * parts(max_context) * self.slot_len()
    }

    /// Elements of one partial result: sums, and two numbers a head.
    pub(super) fn slot_len(&self) -> usize {
        self.heads * (self.head_dim + 2)
    }
}

/// Tokens of one part of a context of `len` tokens.
fn part_tokens(len: usize) -> usize {
    len.div_ceil(MAX_PARTS - 1).next_multiple_of(BLOCK_TOKENS).max(PART_TOKENS)
}

/// Most parts that a context of up to `len` tokens is cut into.
fn parts(len: usize) -> usize {
    // A part more than the quotient, because the first one may start in the middle of a block.
    if len <= PART_TOKENS { 1 } else { (len / PART_TOKENS + 2).min(MAX_PARTS + 1) }
}

fn first_seen(position: u32, window: Option<u32>) -> u32 {
    window.map_or(0, |window| (position + 1).saturating_sub(window))
}

/// Rows of a tile: `TILE_ROWS` of `attention_prefill.cu`.
pub(super) fn tile_rows(head_dim: usize) -> usize {
    if head_dim > 128 { 64 } else { 128 }
}

/// Tiles that walk over much context start first, so that none of them is left alone at the end.
fn sort_longest_first(items: &mut [u32]) {
    items.as_chunks_mut::<WORDS>().0.sort_by_key(|item| std::cmp::Reverse(item[2] - item[1]));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sizes(window: Option<u32>) -> AttentionSizes {
        AttentionSizes { heads: 8, kv_heads: 2, head_dim: 128, window, is_f32: false }
    }

    fn span(query_start: u32, query_len: u32, context_len: u32) -> SequenceSpan {
        SequenceSpan { query_start, query_len, context_len, table_start: 0, table_len: context_len.div_ceil(32) }
    }

    fn plan(sizes: &AttentionSizes, spans: &[SequenceSpan]) -> AttentionPlan {
        let mut plan = AttentionPlan::default();
        plan.fill(sizes, spans);
        plan
    }

    #[test]
    fn short_contexts_are_not_split_and_long_ones_are_covered_without_gaps() {
        assert_eq!(plan(&sizes(None), &[span(0, 1, 200)]).decode, [0, 0, 200, NO_SLOT]);
        for window in [None, Some(1), Some(31), Some(300), Some(5000)] {
            for len in [1, 31, 256, 257, 512, 513, 4095, 8192, 9000, 131_072] {
                let plan = plan(&sizes(window), &[span(3, 1, len)]);
                let items = plan.decode.as_chunks::<WORDS>().0;
                let mut next = first_seen(len - 1, window);
                for (slot, item) in (0..).zip(items) {
                    assert_eq!((item[0], item[1]), (0, next), "{len}");
                    assert!(item[2] > item[1]);
                    assert_eq!(item[3], if items.len() == 1 { NO_SLOT } else { slot });
                    next = item[2];
                }
                assert_eq!(next, len);
                assert!(items.len() <= sizes(window).max_items(1, len as usize), "{len}: {} parts", items.len());
                assert!(plan.slots() * 8 * 130 <= sizes(window).partial_len(1, len as usize), "{len}");
                if items.len() > 1 {
                    assert_eq!(plan.combine, [3, 0, items.len() as u32, 0]);
                }
            }
        }
    }

    #[test]
    fn a_sequence_is_cut_alike_whoever_is_beside_it() {
        let alone = plan(&sizes(None), &[span(0, 1, 3000)]);
        let beside = plan(&sizes(None), &[span(0, 1, 700), span(1, 1, 3000)]);
        let cuts = |plan: &AttentionPlan, index: u32| -> Vec<(u32, u32)> {
            plan.decode.as_chunks::<WORDS>().0.iter().filter(|i| i[0] == index).map(|i| (i[1], i[2])).collect()
        };
        assert_eq!(cuts(&alone, 0), cuts(&beside, 1));
    }

    #[test]
    fn tiles_cover_every_query_and_all_it_sees_longest_first() {
        for window in [None, Some(40)] {
            let spans = [span(0, 100, 100), span(100, 33, 1000), span(133, 1, 9)];
            let plan = plan(&sizes(window), &spans);
            let items = plan.prefill.as_chunks::<WORDS>().0;
            assert_eq!(items.len(), 4 + 2);
            assert!(items.windows(2).all(|pair| pair[0][2] - pair[0][1] >= pair[1][2] - pair[1][1]));
            for (index, span) in (0..2).zip(&spans) {
                for row in 0..span.query_len * 4 {
                    let position = span.context_len - span.query_len + row / 4;
                    let holder = items.iter().find(|i| i[0] == index && i[3] <= row && row < i[3] + 128);
                    let [_, begin, end, _] = holder.expect("every row has its tile");
                    assert!(*begin <= first_seen(position, window) && position < *end && begin % 32 == 0);
                }
            }
            assert_eq!(plan.decode, [2, 0, 9, NO_SLOT]);
        }
    }

    #[test]
    fn single_precision_takes_a_query_a_piece() {
        let sizes = AttentionSizes { is_f32: true, ..sizes(None) };
        let plan = plan(&sizes, &[span(0, 2, 9), span(2, 1, 4)]);
        assert_eq!(plan.decode, [0, 0, 9, 0, 0, 0, 9, 1, 1, 0, 4, 0]);
        assert_eq!((plan.counts(), plan.slots()), ([3, 0], 0));
    }
}
